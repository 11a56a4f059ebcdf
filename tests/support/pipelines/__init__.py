"""Small pipelines of diffusers with random weights, made here: nothing is fetched."""
