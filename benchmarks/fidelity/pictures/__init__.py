"""The pictures of a comparison: quality against calls, calls per sample, an ablation."""

from .curves import limit_picture, psnr_picture
from .samples import ablation_picture, nfe_picture

__all__ = ["ablation_picture", "limit_picture", "nfe_picture", "psnr_picture"]
