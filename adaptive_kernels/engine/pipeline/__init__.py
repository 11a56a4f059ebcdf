"""An engine for a diffusers pipeline: prompts in, images out."""
