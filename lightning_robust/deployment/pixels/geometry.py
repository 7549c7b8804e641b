"""Operations that place content: the resize filters on a virtual camera frame, shift, crop, letterbox.

Pictures are ``(N, C, H, W)`` in [0, 1]; results lie on the 256 levels of 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from lightning_robust.deployment.pixels.operations import from_levels, quantise, through_pillow, whole_levels

FRAME_SCALE = 2.5
"""How much larger than the network's input the virtual camera frame of the resize family is."""

_Frames = dict[int, tuple[Tensor, Tensor]]
_shared_frames: ContextVar[_Frames | None] = ContextVar("shared_frames", default=None)


def camera_frame(pixels: Tensor) -> Tensor:
    """A frame ``FRAME_SCALE`` times as large that shows the same picture, in 8 bits.

    It holds no detail finer than the network's input, so that the aliasing a real frame would add is not seen here.
    """
    size = [frame_side(side) for side in pixels.shape[-2:]]
    return quantise(interpolate(pixels, size=size, mode="bicubic"))


def frame_side(side: int) -> int:
    """Height or width of the camera frame of pictures with this height or width."""
    return round(FRAME_SCALE * side)


def crop_margin(side: int, share: float) -> int:
    """Pixels that :func:`crop` takes off each end of a side, and of a bar that :func:`letterbox` adds."""
    return max(1, round(share * side))


@contextmanager
def share_camera_frames(frames: _Frames) -> Iterator[None]:
    """Inside this context the camera frame of each tensor is built once and stored in ``frames``.

    For most filters the frame costs more than the filter. It is stored in bytes, 6.25 for each value of the pixels.
    The tensors must not change while ``frames`` is in use.
    """
    token = _shared_frames.set(frames)
    try:
        yield
    finally:
        _shared_frames.reset(token)


def _frame_levels(pixels: Tensor) -> Tensor:
    frames = _shared_frames.get()
    if frames is None:
        return whole_levels(camera_frame(pixels))
    if id(pixels) not in frames:  # the pixels are stored beside their frame, so that no other tensor gets their id
        frames[id(pixels)] = pixels, whole_levels(camera_frame(pixels)).byte()
    return frames[id(pixels)][1].to(pixels.dtype)


def _resample(frame: Tensor, size: tuple[int, int], weights: Callable[[int, int], Tensor]) -> Tensor:
    """Apply the weights of each axis, ``(outputs, inputs)`` of its two lengths, in fp64."""
    rows, columns = (weights(inputs, outputs) for inputs, outputs in zip(frame.shape[-2:], size, strict=True))
    return (rows.to(frame.device) @ frame.double() @ columns.T.to(frame.device)).to(frame.dtype)


def _area_weights(inputs: int, outputs: int) -> Tensor:
    """Mean over the area each output pixel covers, with fractions of pixels at its edges (OpenCV's ``INTER_AREA``).

    ``interpolate(mode="area")`` gives whole weight to pixels that are covered in part, and is a level or more off.
    """
    edges = torch.arange(outputs + 1, dtype=torch.float64)[:, None] * (inputs / outputs)
    pixel = torch.arange(inputs, dtype=torch.float64)
    covered = (edges[1:].minimum(pixel + 1) - edges[:-1].maximum(pixel)).clamp(min=0)
    return covered / covered.sum(1, keepdim=True)


def _corner_weights(inputs: int, outputs: int) -> Tensor:
    """Bilinear at ``x * scale``, as if a pixel's place were its corner: everything moves half a step to the left."""
    place = torch.arange(outputs, dtype=torch.float64)[:, None] * (inputs / outputs)
    return (1 - (place - torch.arange(inputs, dtype=torch.float64)).abs()).clamp(min=0)


def _pillow_resize(frame: Tensor, size: tuple[int, int], filter: str) -> Tensor:  # noqa: A002 - the field's word
    """Pillow's own filters: torch has no Lanczos, and its bicubic is five levels off at edges, which Pillow clips."""
    from PIL import Image

    def resized(picture: Image.Image) -> Image.Image:
        return picture.resize((size[1], size[0]), Image.Resampling[filter])

    return through_pillow(frame / 255, resized) * 255


FILTERS: dict[str, Callable[..., Tensor]] = {
    "antialias": partial(interpolate, mode="bilinear", antialias=True),
    "bilinear": partial(interpolate, mode="bilinear"),
    "nearest": partial(interpolate, mode="nearest"),
    "area": partial(_resample, weights=_area_weights),
    "bicubic": partial(interpolate, mode="bicubic"),
    "pil_bicubic": partial(_pillow_resize, filter="BICUBIC"),
    "lanczos": partial(_pillow_resize, filter="LANCZOS"),
    "asymmetric": partial(_resample, weights=_corner_weights),
    "align_corners": partial(interpolate, mode="bilinear", align_corners=True),
}


def _downsize(pixels: Tensor, filter: str) -> Tensor:  # noqa: A002 - the field's word
    """The resized camera frame in levels, before rounding."""
    return FILTERS[filter](_frame_levels(pixels), size=tuple(pixels.shape[-2:]))


def resize(pixels: Tensor, filter: str) -> Tensor:  # noqa: A002
    """Bring a camera frame back to the network's size with one of the filters in use, in 8 bits.

    ``"antialias"`` is PIL's bilinear (also ``antialias=True`` in torch), ``"bilinear"`` OpenCV's ``INTER_LINEAR``,
    ``"nearest"``, ``"area"`` and ``"bicubic"`` are OpenCV's, ``"pil_bicubic"`` and ``"lanczos"`` are PIL's;
    ``"align_corners"`` is bilinear between corner pixels, ``"asymmetric"`` bilinear without half-pixel centres.
    """
    return from_levels(_downsize(pixels, filter))


def truncated_resize(pixels: Tensor) -> Tensor:
    """The antialiased resize whose result is cut off to 8 bits instead of rounded: half a level darker on average.

    Flat regions keep their level: a thousandth of one is added first, more than fp32 loses on the way.
    """
    return from_levels((_downsize(pixels, "antialias") + 1e-3).floor_())


def shift(pixels: Tensor, by: float) -> Tensor:
    """Content moved right and down by ``by`` pixels (0 to 1), bilinear, the border repeated."""
    height, width = pixels.shape[-2:]
    padded = pad(whole_levels(pixels), (1, 0, 1, 0), mode="replicate")
    rows = (1 - by) * padded[..., 1:, :] + by * padded[..., :height, :]
    return from_levels((1 - by) * rows[..., 1:] + by * rows[..., :width])


def crop(pixels: Tensor, share: float) -> Tensor:
    """Cut off a share of each side, at least one pixel, and stretch the rest back."""
    height, width = pixels.shape[-2:]
    top, left = crop_margin(height, share), crop_margin(width, share)
    inner = whole_levels(pixels)[..., top : height - top, left : width - left]
    return from_levels(interpolate(inner, size=(height, width), mode="bilinear", antialias=True))


def letterbox(pixels: Tensor, share: float) -> Tensor:
    """Shrunk to keep another aspect ratio, with a grey bar (114) of a share of the height above and below."""
    height, width = pixels.shape[-2:]
    bar = crop_margin(height, share)
    levels = whole_levels(pixels).double()  # in fp32 the ties of the new scale would be decided by its own error
    inner = interpolate(levels, size=(height - 2 * bar, width), mode="bilinear", antialias=True)
    return from_levels(pad(inner, (0, 0, bar, bar), value=114.0)).to(pixels.dtype)
