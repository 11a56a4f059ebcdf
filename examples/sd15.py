"""Stable Diffusion 1.5 with every network call and with those alone that the latents ask for.

    python examples/sd15.py --prompt "a red ball on a white background" --out sd15

Writes the images of both, their difference and the decisions, prints the summary and the times.
Needs the weights (a name on the hub or a folder), transformers and accelerate.
"""

from comparison import main

if __name__ == "__main__":
    main(__doc__, model="stable-diffusion-v1-5/stable-diffusion-v1-5", guidance=7.5)
