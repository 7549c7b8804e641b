"""Recorded frames from a video, a folder of pictures or one picture. What is done with them stands in ``replay.py``."""

from __future__ import annotations

import abc
import bisect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

PICTURES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Endings of files that are read as pictures; any other file is read as a video."""
_DEEP = ("F", "I")


class Chunk(NamedTuple):
    """A few consecutive frames.

    Args:
        numbers: Their places in the recording, from 0.
        pictures: RGB, uint8, ``(N, H, W, 3)``.
    """

    numbers: list[int]
    pictures: Tensor


class Recording(abc.ABC):
    """Frames of a recording, read anew by every iteration, a few at a time.

    A frame that cannot be decoded is left out and counted; where the size changes a new chunk begins.

    Args:
        path: The file or folder.
        stride: Take every so many frames.
        limit: Take at most so many frames; all if None.
        batch_size: Frames in a chunk; bounds the memory.
    """

    def __init__(self, path: str | Path, *, stride: int = 1, limit: int | None = None, batch_size: int = 16) -> None:
        for name, number in (("stride", stride), ("limit", limit), ("batch_size", batch_size)):
            if number is not None and number < 1:
                raise ValueError(f"Expected `{name}` of at least 1, but got {number}.")
        self.path, self.stride, self.limit, self.batch_size = Path(path), stride, limit, batch_size
        self.skipped: dict[str, str] = {}
        """Frame -> why it could not be decoded, of the last iteration."""

    def __iter__(self) -> Iterator[Chunk]:
        """Chunks in order.

        Raises:
            ValueError: If not one frame could be decoded.
        """
        self.skipped = {}
        numbers: list[int] = []
        pictures: list[np.ndarray[Any, Any]] = []
        taken = 0
        for number, picture in self._frames():
            if pictures and (len(pictures) == self.batch_size or picture.shape != pictures[0].shape):
                yield _chunk(numbers, pictures)
                numbers, pictures = [], []
            numbers.append(number)
            pictures.append(picture)
            taken += 1
            if taken == self.limit:
                break
        if not taken:
            raise ValueError(self._nothing())
        yield _chunk(numbers, pictures)

    def pick(self, numbers: Iterable[int]) -> dict[int, np.ndarray[Any, Any]]:
        """Single frames by their numbers, RGB uint8 ``(H, W, 3)``."""
        wanted = set(numbers)
        found: dict[int, np.ndarray[Any, Any]] = {}
        for chunk in self:
            found |= {n: p.numpy() for n, p in zip(chunk.numbers, chunk.pictures, strict=True) if n in wanted}
            if len(found) == len(wanted):
                break
        return found

    @abc.abstractmethod
    def _frames(self) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
        """Every ``stride``-th frame with its number; those that cannot be decoded go into ``skipped``."""

    def _nothing(self) -> str:
        if not self.skipped:
            return f"Expected frames in {self.path}, but it has none."
        frame, reason = next(iter(self.skipped.items()))
        return (
            f"Expected frames in {self.path}, but none of its {len(self.skipped)} could be decoded. "
            f"The first is {frame}: {reason}"
        )


class Pictures(Recording):
    """A folder of pictures in natural order (2 before 10), or one picture."""

    def __init__(self, path: str | Path, **options: Any) -> None:
        super().__init__(path, **options)
        files = self.path.iterdir() if self.path.is_dir() else [self.path]
        self.files = sorted((f for f in files if f.suffix.lower() in PICTURES and f.name[0] != "."), key=_natural)
        if not self.files:
            raise ValueError(
                f"Expected pictures ({', '.join(sorted(PICTURES))}) in {self.path}, but found none. "
                "Name the folder that holds the frames, or a video file."
            )

    def _frames(self) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
        for number in range(0, len(self.files), self.stride):
            try:
                picture = _read_picture(self.files[number])
            except Exception as error:  # what a broken file raises depends on its format
                self.skipped[self.files[number].name] = f"{type(error).__name__}: {error}"
            else:
                yield number, picture


class Video(Recording):
    """A video file, read with PyAV.

    A frame's number is the number of packets that are shown before it, so that frames the decoder drops leave a gap
    and are counted. Frames that the decoder marks as damaged are left out too.
    """

    def __init__(self, path: str | Path, **options: Any) -> None:
        super().__init__(path, **options)
        _av()

    def _frames(self) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
        av = _av()
        try:
            container = av.open(str(self.path))
        except av.FFmpegError as error:
            raise ValueError(f"Expected a video at {self.path}, but it cannot be opened: {error.strerror}.") from error
        with container:
            if not container.streams.video:
                raise ValueError(f"Expected a video at {self.path}, but it holds no pictures, only sound or data.")
            yield from self._decoded(container, av.FFmpegError)

    def _decoded(self, container: Any, failure: type[Exception]) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
        shown: list[int] = []
        after, reason = 0, "the decoder gave no frame"
        for packet in _until_it_fails(container, failure, self.skipped):
            if packet.pts is not None and not packet.is_discard:
                bisect.insort(shown, packet.pts)
            try:
                frames = packet.decode()
            except failure as error:
                reason = f"{type(error).__name__}: {error}"
                if packet.pts is None:
                    self._skip(range(after, after + 1), reason)
                    after += 1
                continue
            for frame in frames:
                number = max(after, after if frame.pts is None else bisect.bisect_left(shown, frame.pts))
                self._skip(range(after, number), reason)
                after = number + 1
                if frame.is_corrupt:
                    self._skip(range(number, after), "the decoder marks it as damaged")
                elif number % self.stride == 0:
                    yield number, frame.to_ndarray(format="rgb24")
        self._skip(range(after, len(shown)), reason)

    def _skip(self, numbers: range, reason: str) -> None:
        self.skipped |= {f"frame {number}": reason for number in numbers if number % self.stride == 0}


def open_recording(
    path: str | Path, *, stride: int = 1, limit: int | None = None, batch_size: int = 16
) -> Pictures | Video:
    """A recording by its path: a folder or a file of :data:`PICTURES`, else a video.

    Args:
        path: The file or folder.
        stride: Take every so many frames.
        limit: Take at most so many frames; all if None.
        batch_size: Frames in a chunk.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If a folder holds no pictures, or a number is below 1.
        ImportError: For a video without PyAV.
    """
    place = Path(path)
    if not place.exists():
        raise FileNotFoundError(f"Expected a video or a folder of pictures at {place}, but there is nothing.")
    kind = Pictures if place.is_dir() or place.suffix.lower() in PICTURES else Video
    return kind(place, stride=stride, limit=limit, batch_size=batch_size)


def _chunk(numbers: list[int], pictures: list[np.ndarray[Any, Any]]) -> Chunk:
    return Chunk(numbers, torch.from_numpy(np.stack(pictures)))


def _read_picture(path: Path) -> np.ndarray[Any, Any]:
    from PIL import Image

    with Image.open(path) as picture:
        if picture.mode.startswith(_DEEP):
            raise ValueError(f"Expected 8 bits a channel, but got mode {picture.mode}. Convert it to 8 bits.")
        return np.asarray(picture.convert("RGB"))


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    """Digits count as numbers, so that frame_10 comes after frame_9."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _until_it_fails(container: Any, failure: type[Exception], skipped: dict[str, str]) -> Iterator[Any]:
    """Packets of the first video stream, as far as the file can be read."""
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    try:
        yield from container.demux(stream)
    except failure as error:
        skipped["the rest of the file"] = f"{type(error).__name__}: {error}"


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError(
            'Expected PyAV for reading a video, but it is not installed. Run: pip install "lightning-robust[video]" '
            "- or pass a folder of pictures."
        ) from error
    return av
