"""A stand-in for the CUDA driver and for what the executors need of torch.cuda."""
