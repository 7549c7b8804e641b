"""Recorded frames from a video, a folder of pictures or one picture."""

from __future__ import annotations

import abc
import bisect
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

PICTURES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Suffixes of files that are read as pictures; any other file is read as a video."""
_MORE_THAN_8_BITS = ("F", "I")
Picture = np.ndarray[Any, Any]
"""One frame: RGB, uint8, ``(H, W, 3)``."""


class Chunk(NamedTuple):
    """A few consecutive frames.

    Args:
        frames: Their indices in the recording, from 0.
        pictures: RGB, uint8, ``(N, H, W, 3)``.
    """

    frames: list[int]
    pictures: Tensor


class Recording(abc.ABC):
    """Frames of a recording. Every iteration reads them anew, a few at a time.

    A frame that cannot be decoded is left out and counted. A new chunk begins where the size changes.

    Args:
        path: The file or folder.
        stride: Take every n-th frame.
        limit: The most frames to take; all if None.
        batch_size: Frames in a chunk; bounds the memory.
    """

    def __init__(self, path: str | Path, *, stride: int = 1, limit: int | None = None, batch_size: int = 16) -> None:
        for name, number in (("stride", stride), ("limit", limit), ("batch_size", batch_size)):
            if number is not None and number < 1:
                raise ValueError(f"Expected `{name}` of at least 1, but got {number}.")
        self.path, self.stride, self.limit, self.batch_size = Path(path), stride, limit, batch_size
        self.skipped: dict[str, str] = {}
        """Frame -> why the last iteration could not decode it."""

    def __iter__(self) -> Iterator[Chunk]:
        """Chunks in order.

        Raises:
            ValueError: If no frame could be decoded.
        """
        self.skipped = {}
        frames: list[int] = []
        pictures: list[Picture] = []
        for frame, picture in itertools.islice(self._read(), self.limit):
            if pictures and (len(pictures) == self.batch_size or picture.shape != pictures[0].shape):
                yield _chunk(frames, pictures)
                frames, pictures = [], []
            frames.append(frame)
            pictures.append(picture)
        if not frames:
            raise ValueError(self._explain_emptiness())
        yield _chunk(frames, pictures)

    def pick(self, frames: Iterable[int]) -> dict[int, Picture]:
        """Single frames by their indices."""
        indices = set(frames)
        pictures: dict[int, Picture] = {}
        for chunk in self:
            pairs = zip(chunk.frames, chunk.pictures, strict=True)
            pictures |= {frame: picture.numpy() for frame, picture in pairs if frame in indices}
            if len(pictures) == len(indices):
                break
        return pictures

    @abc.abstractmethod
    def _read(self) -> Iterator[tuple[int, Picture]]:
        """Every ``stride``-th frame with its index; those that cannot be decoded go into ``skipped``."""

    def _explain_emptiness(self) -> str:
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
        self.files = sorted(
            (f for f in files if f.suffix.lower() in PICTURES and f.name[0] != "."), key=_by_frame_number
        )
        if not self.files:
            raise ValueError(
                f"Expected pictures ({', '.join(sorted(PICTURES))}) in {self.path}, but found none. "
                "Name the folder that holds the frames, or a video file."
            )

    def _read(self) -> Iterator[tuple[int, Picture]]:
        for frame in range(0, len(self.files), self.stride):
            try:
                picture = _read_picture(self.files[frame])
            except Exception as error:  # what a broken file raises depends on its format
                self.skipped[self.files[frame].name] = f"{type(error).__name__}: {error}"
            else:
                yield frame, picture


class Video(Recording):
    """A video file, read with PyAV.

    A frame's index is the number of packets that are shown before it, so that frames which the decoder drops leave a
    gap and are counted. Frames that the decoder marks as damaged are left out too.
    """

    def __init__(self, path: str | Path, **options: Any) -> None:
        super().__init__(path, **options)
        _import_av()

    def _read(self) -> Iterator[tuple[int, Picture]]:
        av = _import_av()
        try:
            container = av.open(str(self.path))
        except av.FFmpegError as error:
            raise ValueError(f"Expected a video at {self.path}, but it cannot be opened: {error.strerror}.") from error
        with container:
            if not container.streams.video:
                raise ValueError(f"Expected a video at {self.path}, but it holds no pictures, only sound or data.")
            yield from self._decode(container, av.FFmpegError)

    def _decode(self, container: Any, failure: type[Exception]) -> Iterator[tuple[int, Picture]]:
        shown: list[int] = []
        following, reason = 0, "the decoder gave no frame"
        for packet in _readable_packets(container, failure, self.skipped):
            if packet.pts is not None and not packet.is_discard:
                bisect.insort(shown, packet.pts)
            try:
                frames = packet.decode()
            except failure as error:
                reason = f"{type(error).__name__}: {error}"
                if packet.pts is None:
                    self._skip(range(following, following + 1), reason)
                    following += 1
                continue
            for frame in frames:
                index = following if frame.pts is None else max(following, bisect.bisect_left(shown, frame.pts))
                self._skip(range(following, index), reason)
                following = index + 1
                if frame.is_corrupt:
                    self._skip(range(index, following), "the decoder marks it as damaged")
                elif index % self.stride == 0:
                    yield index, frame.to_ndarray(format="rgb24")
        self._skip(range(following, len(shown)), reason)

    def _skip(self, frames: range, reason: str) -> None:
        self.skipped |= {f"frame {frame}": reason for frame in frames if frame % self.stride == 0}


def open_recording(
    path: str | Path, *, stride: int = 1, limit: int | None = None, batch_size: int = 16
) -> Pictures | Video:
    """A recording by its path: a folder or a file of :data:`PICTURES`, else a video.

    Args:
        path: The file or folder.
        stride: Take every n-th frame.
        limit: The most frames to take; all if None.
        batch_size: Frames in a chunk.

    Raises:
        FileNotFoundError: If the path does not exist.
        ValueError: If a folder holds no pictures, or a number is below 1.
        ImportError: For a video without PyAV.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"Expected a video or a folder of pictures at {path}, but there is nothing.")
    kind = Pictures if path.is_dir() or path.suffix.lower() in PICTURES else Video
    return kind(path, stride=stride, limit=limit, batch_size=batch_size)


def _chunk(frames: list[int], pictures: list[Picture]) -> Chunk:
    return Chunk(frames, torch.from_numpy(np.stack(pictures)))


def _read_picture(path: Path) -> Picture:
    from PIL import Image

    with Image.open(path) as picture:
        if picture.mode.startswith(_MORE_THAN_8_BITS):
            raise ValueError(f"Expected 8 bits a channel, but got mode {picture.mode}. Convert it to 8 bits.")
        return np.asarray(picture.convert("RGB"))


def _by_frame_number(path: Path) -> list[tuple[bool, int, str]]:
    """Digits count as numbers, so that frame_10 comes after frame_9."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _readable_packets(container: Any, failure: type[Exception], skipped: dict[str, str]) -> Iterator[Any]:
    """Packets of the first video stream, as far as the file can be read."""
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    try:
        yield from container.demux(stream)
    except failure as error:
        skipped["the rest of the file"] = f"{type(error).__name__}: {error}"


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError(
            'Expected PyAV for reading a video, but it is not installed. Run: pip install "lightning-robust[video]" '
            "- or pass a folder of pictures."
        ) from error
    return av
