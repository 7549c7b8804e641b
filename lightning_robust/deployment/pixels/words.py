"""The catalogue's differences in a few words, for figures and tables, and what to do about each kind."""

from __future__ import annotations

from lightning_robust.deployment.pixels.catalogue import CATALOGUE

_LABELS = {
    "resize_bilinear": "bilinear resize",
    "resize_nearest": "nearest-pixel resize",
    "resize_area": "resize by area",
    "resize_bicubic": "bicubic resize",
    "resize_pil_bicubic": "PIL's bicubic resize",
    "resize_lanczos": "Lanczos resize",
    "resize_align_corners": "aligned corners",
    "resize_asymmetric": "resize from corners",
    "shift_quarter_pixel": "shift by 0.25 px",
    "shift_half_pixel": "shift by 0.5 px",
    "shift_one_pixel": "shift by 1 px",
    "crop": "crop of 2 %",
    "letterbox": "grey bars",
    "color_matrix": "BT.709 for BT.601",
    "color_matrix_709": "BT.601 for BT.709",
    "color_range": "limited for full range",
    "color_range_limited": "full for limited range",
    "nv12": "NV12 (4:2:0)",
    "jpeg_95": "JPEG, quality 95",
    "jpeg_90": "JPEG, quality 90",
    "jpeg_75": "JPEG, quality 75",
    "truncation": "8 bits cut off",
    "levels_6_bit": "6 bits",
    "bgr": "BGR for RGB",
    "gain_105": "5 % brighter",
    "brightness": "10 % brighter",
    "gain_080": "20 % darker",
    "offset_8": "8 levels brighter",
    "scale_256": "256 for 255",
    "mean_std": "other mean and deviation",
    "gamma_11": "gamma 1.1",
    "gamma_09": "gamma 0.9",
    "gamma_07": "gamma 0.7",
    "noise_2": "noise of 2 levels",
    "noise_6": "noise of 6 levels",
}
_REMEDIES = {
    "resize_filter": "Resize with training's filter, antialiased or not as there.",
    "shift": "Crop at the same pixel, with half-pixel centres on both sides.",
    "crop": "Cut and pad as training does, before the resize.",
    "color_matrix": "Convert with the matrix that the camera or encoder names.",
    "color_range": "Read luma from 16 to 235 or from 0 to 255, as it was written.",
    "compression": "Train on frames from the same codec and chroma format.",
    "rounding": "Round to 8 bits: add a half before the cast.",
    "channel_order": "Swap the channels once: cv2 reads BGR.",
    "gain_offset": "Use training's divisor, mean and deviation; vary brightness in training.",
    "gamma": "Use training's tone curve; vary gamma in training.",
    "noise": "Add the sensor's noise in training, or switch on `adversarial`.",
}


def label_of(name: str) -> str:
    """A perturbation in a few words; the name itself where the catalogue has none.

    Example:
        >>> label_of("bgr"), label_of("gamma_09"), label_of("my_own")
        ('BGR for RGB', 'gamma 0.9', 'my own')
    """
    return _LABELS.get(name, name.replace("_", " "))


def remedy_of(name: str) -> str:
    """What to do where the deployed side has this difference; empty for one that is not of the catalogue."""
    return _REMEDIES[CATALOGUE[name].family] if name in CATALOGUE else ""
