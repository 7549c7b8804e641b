"""A recording: frames that are read anew at every iteration, a few at a time, whatever they are stored in."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

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
        first: The first frame to take, from 0.
        last: The last one; the recording's if None.
        stride: Take every n-th frame.
        limit: The most frames to take; all if None.
        batch_size: Frames in a chunk; bounds the memory.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        first: int = 0,
        last: int | None = None,
        stride: int = 1,
        limit: int | None = None,
        batch_size: int = 16,
    ) -> None:
        for name, number in (("stride", stride), ("limit", limit), ("batch_size", batch_size)):
            if number is not None and number < 1:
                raise ValueError(f"Expected `{name}` of at least 1, but got {number}.")
        if first < 0 or (last is not None and last < first):
            raise ValueError(f"Expected `first` of at least 0 and `last` not before it, but got {first} and {last}.")
        self.path, self.batch_size, self.limit = Path(path), batch_size, limit
        self.first, self.last, self.stride = first, last, stride
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

    @property
    @abc.abstractmethod
    def length(self) -> int:
        """Frames that the recording has, as far as the file tells without decoding them."""

    @property
    def rate(self) -> float | None:
        """Frames a second; None where that is not known."""
        return None

    @property
    def total(self) -> int:
        """Frames that an iteration takes if all can be decoded."""
        last = self.length - 1 if self.last is None else min(self.last, self.length - 1)
        count = len(range(self.first, last + 1, self.stride))
        return count if self.limit is None else min(count, self.limit)

    def _takes(self, frame: int) -> bool:
        inside = frame >= self.first and (self.last is None or frame <= self.last)
        return inside and (frame - self.first) % self.stride == 0

    @abc.abstractmethod
    def _read(self) -> Iterator[tuple[int, Picture]]:
        """Every frame that is taken with its index; those that cannot be decoded go into ``skipped``."""

    def _explain_emptiness(self) -> str:
        if not self.skipped:
            return f"Expected frames in {self.path}, but it has none."
        frame, reason = next(iter(self.skipped.items()))
        return (
            f"Expected frames in {self.path}, but none of its {len(self.skipped)} could be decoded. "
            f"The first is {frame}: {reason}"
        )


def _chunk(frames: list[int], pictures: list[Picture]) -> Chunk:
    return Chunk(frames, torch.from_numpy(np.stack(pictures)))
