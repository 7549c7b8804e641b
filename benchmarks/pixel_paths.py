"""How real libraries decode, convert and resize: Pillow, OpenCV, FFmpeg (PyAV) and torch, each under its own name.

A decoder takes a file's bytes, a reader a video's path, and both give RGB, uint8 ``(H, W, 3)``. A resizer takes such a
picture and ``(height, width)``; those of torch give fp32 on no levels, as a network takes it, the others bytes.
``libraries.py`` and ``sysnoise.py`` measure with them. Needs opencv and PyAV.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

_PACKAGES = {"cv2": "opencv-python-headless", "av": "av", "PIL": "pillow"}
ACCURATE = ("BICUBIC", "FULL_CHR_H_INT", "ACCURATE_RND")
"""The flags with which swscale interpolates chroma and rounds; its default repeats chroma and cuts off."""
BT601, BT709 = (0.299, 0.114), (0.2126, 0.0722)
Picture = np.ndarray
Resizer = Callable[[Picture, tuple[int, int]], Picture]


def library(name: str) -> Any:
    """A package by the name that it is imported under.

    Raises:
        SystemExit: If it is not installed; names the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SystemExit(f"This needs {name}: pip install {_PACKAGES[name]}") from error


def to_rgb(frame: Any, flags: tuple[str, ...] = (), matrix: str | None = None) -> Picture:
    """A frame of PyAV through swscale.

    Args:
        frame: Of a decoder.
        flags: Of swscale, by their names; none is PyAV's default.
        matrix: ``"itu601"`` or ``"itu709"``; by default what the file says.
    """
    scale = library("av.video.reformatter")
    chosen = None
    for name in flags:
        chosen = scale.Interpolation[name] | (chosen or 0)
    converted: Picture = frame.reformat(format="rgb24", interpolation=chosen, src_colorspace=matrix).to_ndarray()
    return converted


def by_formula(
    frame: Any, chroma: str = "nearest", weights: tuple[float, float] = BT601, full_range: bool | None = None
) -> Picture:
    """The planes of a 4:2:0 frame by the formula of ITU-R BT.601 or BT.709 in fp64, rounded.

    Args:
        frame: Of a decoder, of even height and width.
        chroma: ``"nearest"`` repeats a chroma value four times, ``"bilinear"`` interpolates between their centres.
        weights: Of red and blue in the luma.
        full_range: Whether black is 0 and white 255; None takes what the frame says.
    """
    height, width = frame.height, frame.width
    planes = frame.to_ndarray()  # luma, then both chromas, each of a quarter of its size
    luma = planes[:height].astype(np.float64)
    halves = torch.from_numpy(planes[height:].reshape(1, 2, height // 2, width // 2).astype(np.float64))
    blue, red = interpolate(halves, size=(height, width), mode=chroma)[0].numpy() - 128
    if not (frame.format.name.startswith("yuvj") or frame.color_range == 2 if full_range is None else full_range):
        luma, blue, red = (luma - 16) * (255 / 219), blue * (255 / 224), red * (255 / 224)
    of_red, of_blue = weights
    r, b = luma + 2 * (1 - of_red) * red, luma + 2 * (1 - of_blue) * blue
    g = (luma - of_red * r - of_blue * b) / (1 - of_red - of_blue)
    return np.stack([r, g, b], 2).round().clip(0, 255).astype(np.uint8)


def jpeg_frame(content: bytes) -> Any:
    """A JPEG file as FFmpeg's own decoder has it: planes, with an inverse DCT that is not libjpeg's."""
    av = library("av")
    (frame,) = av.CodecContext.create("mjpeg", "r").decode(av.Packet(content))
    return frame


def by_pillow(content: bytes) -> Picture:
    """Pillow's libjpeg: chroma interpolated ("fancy upsampling"), the slow integer DCT."""
    return np.asarray(library("PIL.Image").open(io.BytesIO(content)).convert("RGB"))


def by_opencv(content: bytes) -> Picture:
    """OpenCV's libjpeg, BGR swapped."""
    cv2 = library("cv2")
    return np.ascontiguousarray(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1])


def _by_ffmpeg(content: bytes, convert: Callable[[Any], Picture]) -> Picture:
    return convert(jpeg_frame(content))


DECODERS: Mapping[str, Callable[[bytes], Picture]] = {
    "Pillow": by_pillow,
    "OpenCV": by_opencv,
    "PyAV": partial(_by_ffmpeg, convert=to_rgb),
    "PyAV, accurate flags": partial(_by_ffmpeg, convert=partial(to_rgb, flags=ACCURATE)),
    "PyAV, chroma repeated, formula": partial(_by_ffmpeg, convert=by_formula),
    "PyAV, chroma bilinear, formula": partial(_by_ffmpeg, convert=partial(by_formula, chroma="bilinear")),
}
"""Of JPEG files; the first is training's."""


def frames_of(path: Path) -> Iterator[Any]:
    """The frames of a video as FFmpeg decodes them."""
    with library("av").open(str(path)) as container:
        yield from container.decode(video=0)


def by_video_capture(path: Path) -> Iterator[Picture]:
    """The frames of a video by OpenCV's ``VideoCapture``."""
    capture = library("cv2").VideoCapture(str(path))
    while True:
        read, frame = capture.read()
        if not read:
            return
        yield np.ascontiguousarray(frame[:, :, ::-1])


CONVERSIONS: Mapping[str, Callable[[Any], Picture]] = {
    "PyAV": to_rgb,
    "PyAV, accurate flags": partial(to_rgb, flags=ACCURATE),
    "formula, chroma repeated": by_formula,
    "formula, chroma bilinear": partial(by_formula, chroma="bilinear"),
    "PyAV, BT.709": partial(to_rgb, matrix="itu709"),
    "formula, full range": partial(by_formula, full_range=True),
}
"""Of a video's frames; the last two read the file as it was not written."""


def through_jpeg(picture: Picture, codec: str, quality: int) -> Picture:
    """A picture through a JPEG file.

    Args:
        picture: Of even height and width.
        codec: ``"Pillow"``, ``"OpenCV"`` or ``"PyAV"``, which writes and reads. PyAV's FFmpeg knows no quality of 1 to
            100; its ``qscale`` is 2 here for 90 and more, else 5.
        quality: 1 to 100.
    """
    if codec == "Pillow":
        stream = io.BytesIO()
        library("PIL.Image").fromarray(picture).save(stream, "JPEG", quality=quality)
        return by_pillow(stream.getvalue())
    if codec == "OpenCV":
        cv2 = library("cv2")
        return by_opencv(cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes())
    av = library("av")
    context = av.CodecContext.create("mjpeg", "w")
    context.width, context.height, context.pix_fmt = picture.shape[1], picture.shape[0], "yuvj420p"
    context.thread_count, context.time_base = 1, Fraction(1, 25)
    context.qmin = context.qmax = 2 if quality >= 90 else 5
    (packet,) = context.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuvj420p"))
    return to_rgb(jpeg_frame(bytes(packet)))


def through_nv12(
    picture: Picture, written: str = "itu601", read: str = "itu601", full: tuple[bool, bool] = (False, False)
) -> Picture:
    """A picture through FFmpeg's NV12: the matrix and the range that it is written and read with.

    Args:
        picture: Of even height and width.
        written: ``"itu601"`` or ``"itu709"``.
        read: The same on the way back.
        full: Whether the range is full on the way there, and is taken for full on the way back.
    """
    av, limits = library("av"), library("av.video.reformatter").ColorRange
    there, back = (limits.JPEG if value else limits.MPEG for value in full)
    source = av.VideoFrame.from_ndarray(picture, format="rgb24")
    planes = source.reformat(format="nv12", dst_colorspace=written, dst_color_range=there)
    converted: Picture = planes.reformat(
        format="rgb24", src_colorspace=read, src_color_range=back, dst_color_range=limits.JPEG
    ).to_ndarray()
    return converted


def _pillow(picture: Picture, size: tuple[int, int], name: str) -> Picture:
    image = library("PIL.Image")
    return np.asarray(image.fromarray(picture).resize((size[1], size[0]), image.Resampling[name]))


def _opencv(picture: Picture, size: tuple[int, int], name: str) -> Picture:
    cv2 = library("cv2")
    resized: Picture = cv2.resize(picture, (size[1], size[0]), interpolation=getattr(cv2, name))
    return resized


def _ffmpeg(picture: Picture, size: tuple[int, int], name: str) -> Picture:
    frame = library("av").VideoFrame.from_ndarray(picture, format="rgb24")
    chosen = library("av.video.reformatter").Interpolation[name]
    resized: Picture = frame.reformat(width=size[1], height=size[0], interpolation=chosen).to_ndarray(format="rgb24")
    return resized


def _torch(picture: Picture, size: tuple[int, int], mode: str, antialias: bool) -> Picture:
    levels = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float()
    resized = interpolate(levels, size=size, mode=mode, antialias=antialias)
    return resized[0].permute(1, 2, 0).clamp(0, 255).numpy()


RESIZERS: Mapping[str, Resizer] = {
    "torch bilinear, antialias": partial(_torch, mode="bilinear", antialias=True),
    "torch bilinear": partial(_torch, mode="bilinear", antialias=False),
    "torch bicubic, antialias": partial(_torch, mode="bicubic", antialias=True),
    "Pillow BILINEAR": partial(_pillow, name="BILINEAR"),
    "Pillow BICUBIC": partial(_pillow, name="BICUBIC"),
    "Pillow LANCZOS": partial(_pillow, name="LANCZOS"),
    "OpenCV INTER_LINEAR": partial(_opencv, name="INTER_LINEAR"),
    "OpenCV INTER_AREA": partial(_opencv, name="INTER_AREA"),
    "OpenCV INTER_CUBIC": partial(_opencv, name="INTER_CUBIC"),
    "OpenCV INTER_NEAREST": partial(_opencv, name="INTER_NEAREST"),
    "swscale BICUBIC": partial(_ffmpeg, name="BICUBIC"),
    "swscale BILINEAR": partial(_ffmpeg, name="BILINEAR"),
    "swscale FAST_BILINEAR": partial(_ffmpeg, name="FAST_BILINEAR"),
}


def _behind(frame: int, network: int) -> float:
    """How far before its place a pixel of NEAREST was taken, in the mean, in pixels of the frame."""
    places, step = np.arange(network), frame / network
    return float(((places + 0.5) * step - 0.5 - np.floor(places * step)).mean())


def moved_by_nearest(frame: tuple[int, int], network: tuple[int, int]) -> np.ndarray:
    """The motion of OpenCV's INTER_NEAREST in pixels of the frame, (3, 3): each output takes pixel ``floor(x * step)``.

    Args:
        frame: Its height and width.
        network: Those that it is brought down to.
    """
    down, right = map(_behind, frame, network)
    return np.array([[1.0, 0, right], [0, 1, down], [0, 0, 1]])


def moved_by_fast_bilinear(frame: tuple[int, int], network: tuple[int, int]) -> np.ndarray:
    """The motion of swscale's FAST_BILINEAR on x86 in pixels of the frame, (3, 3): columns alone are pulled together.

    swscale takes the step of columns so that the first pixels match and the last but one do, less 20 / 65536, and puts
    it into the filter that counts from the centres of pixels.

    Args:
        frame: Its height and width.
        network: Those that it is brought down to.
    """
    step = (frame[1] - 2) / (network[1] - 2) - 20 / 65536
    factor = frame[1] / network[1] / step
    return np.array([[factor, 0, 0.5 * factor - 0.5], [0, 1, 0], [0, 0, 1]])


MOTIONS: Mapping[str, Callable[[tuple[int, int], tuple[int, int]], np.ndarray]] = {
    "OpenCV INTER_NEAREST": moved_by_nearest,
    "swscale FAST_BILINEAR": moved_by_fast_bilinear,
}
"""Of the resizers that move the picture."""
