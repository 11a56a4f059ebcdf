"""The parts of gpu_check.sh: device, sanitizers, aims and the report."""
