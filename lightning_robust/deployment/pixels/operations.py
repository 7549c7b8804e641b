"""What can be done to pixels between camera and network, as pictures ``(N, C, H, W)`` in [0, 1] to the same.

Which of them are called what, and what training does in their place, stands in ``catalogue.py``.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

FRAME_SCALE = 2.5
"""How much larger than the network's input the virtual camera frame of the resize family is."""


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


_kept_frames: ContextVar[dict[int, tuple[Tensor, Tensor]] | None] = ContextVar("kept_frames", default=None)


@contextmanager
def keep_camera_frames() -> Iterator[None]:
    """Build the camera frame of each tensor once, as long as this lasts; no such tensor may be changed meanwhile.

    For most filters the frame costs more than the filter. It is kept in bytes, 6.25 for each value of the pixels.
    """
    token = _kept_frames.set({})
    try:
        yield
    finally:
        _kept_frames.reset(token)


def _frame_levels(pixels: Tensor) -> Tensor:
    kept = _kept_frames.get()
    if kept is None:
        return _levels(camera_frame(pixels))
    if id(pixels) not in kept:  # the pixels are held beside their frame, so that no other tensor gets their id
        kept[id(pixels)] = pixels, _levels(camera_frame(pixels)).byte()
    return kept[id(pixels)][1].to(pixels.dtype)


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


def _asymmetric(frame: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear at ``x * scale``, as if a pixel's place were its corner: everything moves half a step to the left."""
    rows, columns = (_corner_weights(inner, outer) for inner, outer in zip(frame.shape[-2:], size, strict=True))
    return (rows.to(frame.device) @ frame.double() @ columns.T.to(frame.device)).to(frame.dtype)


def _corner_weights(inner: int, outer: int) -> Tensor:
    place = torch.arange(outer, dtype=torch.float64)[:, None] * (inner / outer)
    return (1 - (place - torch.arange(inner, dtype=torch.float64)).abs()).clamp(min=0)


def _pillow(frame: Tensor, size: tuple[int, int], filter: str) -> Tensor:  # noqa: A002 - the field's word
    """Pillow's own filters: torch has no Lanczos, and its bicubic is five levels off at edges, which Pillow clips."""
    from PIL import Image

    def resized(picture: Image.Image) -> Image.Image:
        return picture.resize((size[1], size[0]), Image.Resampling[filter])

    return _through_pillow(frame / 255, resized) * 255


_FILTERS: dict[str, Callable[..., Tensor]] = {
    "antialias": partial(interpolate, mode="bilinear", antialias=True),
    "bilinear": partial(interpolate, mode="bilinear"),
    "nearest": partial(interpolate, mode="nearest"),
    "area": _area,
    "bicubic": partial(interpolate, mode="bicubic"),
    "pil_bicubic": partial(_pillow, filter="BICUBIC"),
    "lanczos": partial(_pillow, filter="LANCZOS"),
    "asymmetric": _asymmetric,
    "align_corners": partial(interpolate, mode="bilinear", align_corners=True),
}


def _downsized(pixels: Tensor, filter: str) -> Tensor:  # noqa: A002 - the field's word
    """Levels, not rounded yet."""
    return _FILTERS[filter](_frame_levels(pixels), size=tuple(pixels.shape[-2:]))


def resize(pixels: Tensor, filter: str) -> Tensor:  # noqa: A002
    """Bring a camera frame back to the network's size with one of the filters in use, in 8 bits.

    ``"antialias"`` is PIL's bilinear (also ``antialias=True`` in torch), ``"bilinear"`` OpenCV's ``INTER_LINEAR``,
    ``"nearest"``, ``"area"`` and ``"bicubic"`` are OpenCV's, ``"pil_bicubic"`` and ``"lanczos"`` are PIL's;
    ``"align_corners"`` is bilinear between corner pixels, ``"asymmetric"`` bilinear without half-pixel centres.
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


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
BT601, BT709 = _luma(0.299, 0.114), _luma(0.2126, 0.0722)


def _mix(matrix: Tensor, pixels: Tensor) -> Tensor:
    first, second, third = pixels.unbind(1)
    return torch.stack([a * first + b * second + c * third for a, b, c in matrix.tolist()], 1)


def wrong_matrix(pixels: Tensor, reverse: bool = False) -> Tensor:
    """Written as YCbCr with BT.601's matrix, read with BT.709's; or the reverse."""
    written, read = (BT709, BT601) if reverse else (BT601, BT709)
    return to_levels(_mix(read.inverse() @ written, pixels))


def wrong_range(pixels: Tensor) -> Tensor:
    """Full-range YCbCr (BT.601) read as limited range: luma 16 becomes black, 235 white, colours gain 255 / 224.

    Grey pictures are luma alone.
    """
    if pixels.shape[1] == 1:
        return to_levels((pixels * 255 - 16) / 219)
    ycc = _mix(BT601, pixels)
    read = torch.cat([(ycc[:, :1] * 255 - 16) / 219, ycc[:, 1:] * (255 / 224)], 1)
    return to_levels(_mix(BT601.inverse(), read))


def unexpanded_range(pixels: Tensor) -> Tensor:
    """Limited-range YCbCr (BT.601) read as full range: black becomes 16, white 235, colours lose 224 / 255.

    Grey pictures are luma alone.
    """
    if pixels.shape[1] == 1:
        return to_levels((pixels * 219 + 16) / 255)
    ycc = _mix(BT601, pixels)
    read = torch.cat([(ycc[:, :1] * 219 + 16) / 255, ycc[:, 1:] * (224 / 255)], 1)
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

    def decoded(picture: Image.Image) -> Image.Image:
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=quality)
        return Image.open(stream)

    return _through_pillow(pixels, decoded)


def _through_pillow(pixels: Tensor, change: Callable[..., Any]) -> Tensor:
    """Pictures in 8 bits through a function of Pillow's images, one by one."""
    from PIL import Image

    levels = (pixels * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    grey = levels.shape[3] == 1
    changed = [np.asarray(change(Image.fromarray(picture[..., 0] if grey else picture))) for picture in levels]
    stacked = torch.from_numpy(np.stack(changed))
    return (stacked[:, None] if grey else stacked.permute(0, 3, 1, 2)).to(pixels) / 255


def swap_channels(pixels: Tensor) -> Tensor:
    """RGB read as BGR."""
    return pixels.flip(1)


def brighten(pixels: Tensor, gain: float) -> Tensor:
    """All pixels times ``gain``, clipped."""
    bright = _levels(pixels).double() * gain  # in fp32 the error of 1.1 itself would decide the ties
    return _rounded(bright).to(pixels.dtype)


def offset(pixels: Tensor, levels: int) -> Tensor:
    """All pixels plus so many levels, clipped."""
    return _rounded(_levels(pixels) + levels)


def gamma(pixels: Tensor, exponent: float) -> Tensor:
    """All pixels to the power of ``exponent``."""
    return to_levels(pixels.double() ** exponent).to(pixels.dtype)


def fewer_levels(pixels: Tensor, bits: int) -> Tensor:
    """Cut off to so many bits, the others zero."""
    step = 2 ** (8 - bits)
    return _rounded((_levels(pixels) / step).floor_() * step)


def divided_by_256(pixels: Tensor) -> Tensor:
    """Scaled by 1 / 256 instead of 1 / 255."""
    return pixels * (255 / 256)


def other_normalisation(pixels: Tensor) -> Tensor:
    """Normalised with mean and deviation 0.5 where training used ImageNet's, as pixels of training's normalisation.

    Grey pictures take the mean of ImageNet's three channels.
    """
    mean, std = pixels.new_tensor(_IMAGENET[0]), pixels.new_tensor(_IMAGENET[1])
    if pixels.shape[1] == 1:
        mean, std = mean.mean(0, keepdim=True), std.mean(0, keepdim=True)
    return (pixels - 0.5) / 0.5 * std[:, None, None] + mean[:, None, None]


def noise(pixels: Tensor, deviation: float) -> Tensor:
    """Gaussian noise of so many levels, drawn from the picture itself: equal pictures get equal noise."""
    levels = _levels(pixels)
    noisy = [picture + deviation * _drawn(picture) for picture in levels]
    return _rounded(torch.stack(noisy))


def _drawn(picture: Tensor) -> Tensor:
    seed = zlib.crc32(picture.byte().contiguous().cpu().numpy().tobytes())
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(picture.shape, generator=generator, dtype=torch.float64).to(picture)


def crop(pixels: Tensor, share: float) -> Tensor:
    """A share of each side, at least one pixel, cut off all round and the rest stretched back."""
    height, width = pixels.shape[-2:]
    top, left = max(1, round(share * height)), max(1, round(share * width))
    inner = _levels(pixels)[..., top : height - top, left : width - left]
    return _rounded(interpolate(inner, size=(height, width), mode="bilinear", antialias=True))


def letterbox(pixels: Tensor, share: float) -> Tensor:
    """Shrunk to keep another aspect ratio, with a grey bar (114) of a share of the height above and below."""
    height, width = pixels.shape[-2:]
    bar = max(1, round(share * height))
    levels = _levels(pixels).double()  # in fp32 the ties of the new scale would be decided by its own error
    inner = interpolate(levels, size=(height - 2 * bar, width), mode="bilinear", antialias=True)
    return _rounded(pad(inner, (0, 0, bar, bar), value=114.0)).to(pixels.dtype)
