"""The catalogue of what a car's preprocessing does differently from training's, in pixels before normalisation.

Each entry is a pair of functions on pictures ``(N, C, H, W)`` in [0, 1]: what training did, and what the car does.
Both take multiples of 1/255 in fp32 or fp64 and return the same shape and type; nothing is drawn at random, and a
picture comes out the same in whatever batch it goes in. How far a model's outputs move is measured in ``parity.py``.
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

Pixels = Callable[[Tensor], Tensor]
FRAME_SCALE = 2.5
"""How much larger than the network's input the virtual camera frame of the resize family is."""


@dataclass(frozen=True)
class Perturbation:
    """One thing that may differ between training and car.

    Args:
        name: As in the tags ``sensitivity/<name>/...``.
        description: What the car does differently.
        trained: What training makes of the pixels, ``(N, C, H, W)`` in [0, 1] to the same. Entries that share it share
            the function object, so that its outputs can be kept by it.
        deployed: What the car makes of them.
        colour: Whether it needs three channels.
    """

    name: str
    description: str
    trained: Pixels
    deployed: Pixels
    colour: bool = False

    def applies_to(self, channels: int) -> bool:
        """Whether pictures of so many channels can be perturbed like this."""
        return channels == 3 or (channels == 1 and not self.colour)


def perturbations(names: Literal["all", "none"] | list[str] = "all") -> tuple[Perturbation, ...]:
    """Entries of the catalogue by name, in its order.

    Raises:
        ValueError: For an unknown name; the message names the nearest.

    Example:
        >>> [entry.name for entry in perturbations(["bgr", "jpeg_90"])]
        ['jpeg_90', 'bgr']
    """
    if isinstance(names, str) and names in ("all", "none"):
        return tuple(CATALOGUE.values()) if names == "all" else ()
    wanted = [names] if isinstance(names, str) else names
    for name in wanted:
        if name not in CATALOGUE:
            near = difflib.get_close_matches(name, CATALOGUE, 3, 0.4)
            raise ValueError(
                f"Expected perturbations 'all', 'none' or names out of {list(CATALOGUE)}, but got {name!r}."
                + (f" Did you mean {' or '.join(near)}?" if near else "")
            )
    return tuple(entry for name, entry in CATALOGUE.items() if name in wanted)


def to_levels(pixels: Tensor) -> Tensor:
    """Round to the 256 levels of 8 bits, as a frame buffer does."""
    return _rounded(pixels * 255)


def _levels(pixels: Tensor) -> Tensor:
    """Whole numbers from 0 to 255: weights like 1/4 or 3/16 are exact on them, and so are ties when rounding."""
    return (pixels * 255).round_()


def _rounded(levels: Tensor) -> Tensor:
    """Back to pixels; takes the tensor over, so that no frame is held twice."""
    return levels.round_().clamp_(0, 255).div_(255)


def unchanged(pixels: Tensor) -> Tensor:
    """What training does where the car alone is perturbed."""
    return pixels.clone()


def camera_frame(pixels: Tensor) -> Tensor:
    """A frame ``FRAME_SCALE`` times as large that shows the same picture, in 8 bits.

    It holds no detail finer than the network's input, so that the aliasing a real frame would add is not seen here.
    """
    size = [round(FRAME_SCALE * side) for side in pixels.shape[-2:]]
    return to_levels(interpolate(pixels, size=size, mode="bicubic"))


def _area(frame: Tensor, size: tuple[int, int]) -> Tensor:
    """Mean over the area each output pixel covers, with fractions of pixels at its edges (OpenCV's ``INTER_AREA``).

    ``interpolate(mode="area")`` gives whole weight to pixels that are covered in part, and is a level or more off.
    """
    rows, columns = (_coverage(inner, outer) for inner, outer in zip(frame.shape[-2:], size, strict=True))
    return (rows.to(frame.device) @ frame.double() @ columns.T.to(frame.device)).to(frame.dtype)


def _coverage(inner: int, outer: int) -> Tensor:
    edges = torch.arange(outer + 1, dtype=torch.float64)[:, None] * (inner / outer)
    pixel = torch.arange(inner, dtype=torch.float64)
    covered = (edges[1:].minimum(pixel + 1) - edges[:-1].maximum(pixel)).clamp(min=0)
    return covered / covered.sum(1, keepdim=True)


_FILTERS: dict[str, Callable[..., Tensor]] = {
    "antialias": partial(interpolate, mode="bilinear", antialias=True),
    "bilinear": partial(interpolate, mode="bilinear"),
    "nearest": partial(interpolate, mode="nearest"),
    "area": _area,
    "bicubic": partial(interpolate, mode="bicubic"),
    "align_corners": partial(interpolate, mode="bilinear", align_corners=True),
}


def _downsized(pixels: Tensor, filter: str) -> Tensor:  # noqa: A002 - the field's word
    """Levels, not rounded yet."""
    return _FILTERS[filter](_levels(camera_frame(pixels)), size=tuple(pixels.shape[-2:]))


def resize(pixels: Tensor, filter: str) -> Tensor:  # noqa: A002
    """Bring a camera frame back to the network's size with one of the filters in use, in 8 bits.

    ``"antialias"`` is PIL's bilinear (also ``antialias=True`` in torch), ``"bilinear"`` OpenCV's ``INTER_LINEAR``,
    ``"nearest"``, ``"area"`` and ``"bicubic"`` are OpenCV's, ``"align_corners"`` is bilinear between corner pixels.
    """
    return _rounded(_downsized(pixels, filter))


def truncated_resize(pixels: Tensor) -> Tensor:
    """The antialiased resize whose result is cut off to 8 bits instead of rounded: half a level darker on average.

    Flat regions keep their level: a thousandth of one is added first, more than fp32 loses on the way.
    """
    return _rounded((_downsized(pixels, "antialias") + 1e-3).floor_())


def shift(pixels: Tensor, by: float) -> Tensor:
    """Content moved right and down by ``by`` pixels (0 to 1), bilinear, the border repeated."""
    height, width = pixels.shape[-2:]
    padded = pad(_levels(pixels), (1, 0, 1, 0), mode="replicate")
    rows = (1 - by) * padded[..., 1:, :] + by * padded[..., :height, :]
    return _rounded((1 - by) * rows[..., 1:] + by * rows[..., :width])


def _luma(kr: float, kb: float) -> Tensor:
    """The matrix from RGB in [0, 1] to Y in [0, 1] and Cb, Cr in [-0.5, 0.5] (ITU-R BT.601 and BT.709)."""
    y = torch.tensor([kr, 1 - kr - kb, kb], dtype=torch.float64)
    red, blue = torch.tensor([1.0, 0, 0]).double(), torch.tensor([0, 0, 1.0]).double()
    return torch.stack([y, (blue - y) / (2 * (1 - kb)), (red - y) / (2 * (1 - kr))])


BT601, BT709 = _luma(0.299, 0.114), _luma(0.2126, 0.0722)


def _mix(matrix: Tensor, pixels: Tensor) -> Tensor:
    first, second, third = pixels.unbind(1)
    return torch.stack([a * first + b * second + c * third for a, b, c in matrix.tolist()], 1)


def wrong_matrix(pixels: Tensor) -> Tensor:
    """Written as YCbCr with BT.601's matrix, read with BT.709's."""
    return to_levels(_mix(BT709.inverse() @ BT601, pixels))


def wrong_range(pixels: Tensor) -> Tensor:
    """Full-range YCbCr (BT.601) read as limited range: luma 16 becomes black, 235 white, colours gain 255 / 224.

    Grey pictures are luma alone.
    """
    if pixels.shape[1] == 1:
        return to_levels((pixels * 255 - 16) / 219)
    ycc = _mix(BT601, pixels)
    read = torch.cat([(ycc[:, :1] * 255 - 16) / 219, ycc[:, 1:] * (255 / 224)], 1)
    return to_levels(_mix(BT601.inverse(), read))


def nv12(pixels: Tensor) -> Tensor:
    """Through NV12: BT.601, limited range, 8 bits, chroma at half the resolution both ways."""
    height, width = pixels.shape[-2:]
    even = pad(pixels, (0, width % 2, 0, height % 2), mode="replicate")
    ycc = _mix(BT601, even)
    luma = (ycc[:, :1] * 219 + 16).round()
    chroma = (avg_pool2d(ycc[:, 1:], 2) * 224 + 128).round()
    full = interpolate((chroma - 128) / 224, scale_factor=2.0, mode="nearest")
    rgb = _mix(BT601.inverse(), torch.cat([(luma - 16) / 219, full], 1))
    return to_levels(rgb[..., :height, :width])


def jpeg(pixels: Tensor, quality: int) -> Tensor:
    """Through libjpeg (by way of Pillow) at a quality of 1 to 100, chroma subsampled 4:2:0.

    Not kornia's JPEG: that one is differentiable, and at quality 90 a level or two away from libjpeg on average.
    """
    from PIL import Image

    levels = (pixels * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    decoded = []
    for picture in levels:
        stream = io.BytesIO()
        Image.fromarray(picture if picture.shape[2] == 3 else picture[..., 0]).save(stream, "JPEG", quality=quality)
        decoded.append(np.asarray(Image.open(stream)).reshape(picture.shape))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).to(pixels) / 255


def swap_channels(pixels: Tensor) -> Tensor:
    """RGB read as BGR."""
    return pixels.flip(1)


def brighten(pixels: Tensor, gain: float) -> Tensor:
    """All pixels times ``gain``, clipped."""
    bright = _levels(pixels).double() * gain  # in fp32 the error of 1.1 itself would decide the ties
    return _rounded(bright).to(pixels.dtype)


_TRAINED_RESIZE = partial(resize, filter="antialias")


def _resized(filter: str, description: str) -> Perturbation:  # noqa: A002
    return Perturbation(f"resize_{filter}", description, _TRAINED_RESIZE, partial(resize, filter=filter))


_ENTRIES = (
    _resized("bilinear", "resizes bilinearly without antialiasing (OpenCV's INTER_LINEAR) instead of with"),
    _resized("nearest", "resizes to the nearest pixel instead of bilinearly with antialiasing"),
    _resized("area", "resizes by area (OpenCV's INTER_AREA) instead of bilinearly with antialiasing"),
    _resized("bicubic", "resizes bicubically without antialiasing instead of bilinearly with"),
    _resized("align_corners", "resizes between corner pixels (align_corners) instead of half-pixel centres"),
    Perturbation("shift_half_pixel", "crops half a pixel further left and up", unchanged, partial(shift, by=0.5)),
    Perturbation("color_matrix", "reads YCbCr of BT.601 as BT.709", unchanged, wrong_matrix, colour=True),
    Perturbation("color_range", "reads full-range YCbCr as limited range", unchanged, wrong_range),
    Perturbation("nv12", "takes frames through NV12 (4:2:0)", unchanged, nv12, colour=True),
    Perturbation("jpeg_90", "takes frames through JPEG of quality 90", unchanged, partial(jpeg, quality=90)),
    Perturbation("truncation", "cuts off to 8 bits instead of rounding", _TRAINED_RESIZE, truncated_resize),
    Perturbation("bgr", "feeds BGR instead of RGB", unchanged, swap_channels, colour=True),
    Perturbation("brightness", "is 10 % brighter", unchanged, partial(brighten, gain=1.1)),
)
CATALOGUE: dict[str, Perturbation] = {entry.name: entry for entry in _ENTRIES}
"""All perturbations by name."""
