"""Recorded frames from a video, a folder of pictures or one picture."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from lightning_robust.deployment.replay.recording import Picture, Recording
from lightning_robust.deployment.replay.video import Video

PICTURES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""Suffixes of files that are read as pictures; any other file is read as a video."""
_MORE_THAN_8_BITS = ("F", "I")


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

    @property
    @override
    def length(self) -> int:
        return len(self.files)

    @override
    def _read(self) -> Iterator[tuple[int, Picture]]:
        for frame in filter(self._takes, range(len(self.files))):
            try:
                picture = read_picture(self.files[frame])
            except Exception as error:  # what a broken file raises depends on its format
                self.skipped[self.files[frame].name] = f"{type(error).__name__}: {error}"
            else:
                yield frame, picture


def open_recording(path: str | Path, **options: int | None) -> Pictures | Video:
    """A recording by its path: a folder or a file of :data:`PICTURES`, else a video.

    Args:
        path: The file or folder.
        options: As for :class:`~.recording.Recording`.

    Raises:
        FileNotFoundError: If the path does not exist.
        ValueError: If a folder holds no pictures, or a number is out of range.
        ImportError: For a video without PyAV.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"Expected a video or a folder of pictures at {path}, but there is nothing.")
    kind = Pictures if path.is_dir() or path.suffix.lower() in PICTURES else Video
    return kind(path, **options)


def read_picture(path: Path) -> Picture:
    """One picture ``(H, W, 3)``, RGB in bytes.

    Raises:
        ValueError: If it has more than 8 bits a channel.
    """
    from PIL import Image

    with Image.open(path) as picture:
        stored = _raw_mode(picture)  # Pillow opens colours of 16 bits as RGB
        if picture.mode.startswith(_MORE_THAN_8_BITS) or ";16" in stored:
            raise ValueError(f"Expected 8 bits a channel, but got mode {stored or picture.mode}. Convert it to 8 bits.")
        return np.asarray(picture.convert("RGB"))


def _raw_mode(picture: Any) -> str:
    """How a file stores its pixels, e.g. ``"RGB;16B"``; empty where Pillow does not say."""
    stored = picture.tile[0][3] if picture.tile else ""
    first = stored[0] if isinstance(stored, tuple) and stored else stored
    return first if isinstance(first, str) else ""


def _by_frame_number(path: Path) -> list[tuple[bool, int, str]]:
    """Digits count as numbers, so that frame_10 comes after frame_9."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]
