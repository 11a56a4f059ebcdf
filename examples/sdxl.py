"""Stable Diffusion XL with every network call and with those alone that the latents ask for.

    python examples/sdxl.py --prompt "a red ball on a white background" --out sdxl

Writes the images of both, their difference and the decisions, prints the summary and the times.
Needs the weights (a name on the hub or a folder), transformers and accelerate.
"""

from comparison import main

if __name__ == "__main__":
    main(__doc__, model="stabilityai/stable-diffusion-xl-base-1.0", guidance=5.0)
