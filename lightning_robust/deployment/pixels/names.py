"""The names of the perturbations, known before torch is imported; the catalogue holds what they do."""

from __future__ import annotations

from typing import Literal

from lightning_robust.checks import check_known
from lightning_robust.extensions import extension_names

Names = Literal["typical", "all", "none"] | list[str]
FAMILIES: dict[str, tuple[str, ...]] = {
    "resize_filter": (
        *("resize_bilinear", "resize_nearest", "resize_area", "resize_bicubic", "resize_pil_bicubic"),
        *("resize_lanczos", "resize_align_corners", "resize_asymmetric"),
    ),
    "shift": ("shift_quarter_pixel", "shift_half_pixel", "shift_one_pixel"),
    "crop": ("crop", "letterbox"),
    "color_matrix": ("color_matrix", "color_matrix_709"),
    "color_range": ("color_range", "color_range_limited"),
    "compression": ("nv12", "jpeg_95", "jpeg_90", "jpeg_75"),
    "rounding": ("truncation", "levels_6_bit"),
    "channel_order": ("bgr",),
    "gain_offset": ("gain_105", "brightness", "gain_080", "offset_8", "scale_256", "mean_std"),
    "gamma": ("gamma_11", "gamma_09", "gamma_07"),
    "noise": ("noise_2", "noise_6"),
}
"""The kinds of difference, which are also the causes that a fingerprint names, and the perturbations of each."""


def check_perturbation_names(names: Names) -> None:
    """Refuse a name that is neither a perturbation's, an installed package's included, nor a family's.

    Raises:
        ValueError: For an unknown name, of which the message names the nearest, or none at all.

    Example:
        >>> check_perturbation_names("typical")
        >>> check_perturbation_names(["bgr", "gamma"])
    """
    if not names:
        raise ValueError(f"Expected perturbations, or 'none' to say so, but got {names!r}.")
    if names not in ("typical", "all", "none"):
        own = (name for family in FAMILIES.values() for name in family)
        known = [*own, *FAMILIES, *extension_names("perturbations")]
        check_known(
            "perturbations 'typical', 'all', 'none' or names", [names] if isinstance(names, str) else names, known
        )
