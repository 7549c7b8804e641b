"""A case book: scenes that once went wrong, a YAML file each, with the bounds that they have to keep.

# cases/bridge.yaml
why: In the shadow of the bridge the left line swung by 3 px (fp16, release 12).
recording: ../recordings/drive_7.mp4
window: {first: 120, last: 180}
bounds:
  swing_px: 2
  emulated-fp16: {p99_px: 0.5, lost: 0.01}
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lightning_robust.deployment.replay.limits import read_numbers
from lightning_robust.reading import read_yaml
from lightning_robust.suggest import did_you_mean

if TYPE_CHECKING:
    from lightning_robust.deployment.replay.recording import Recording

_KEYS = ("why", "recording", "window", "bounds", "class", "before")
_NEEDED = ("why", "recording", "bounds")
_EPS = 1e-6  # frames
_WINDOW = ("first", "last", "first_s", "last_s", "stride")


@dataclass(frozen=True)
class Window:
    """Which frames of a recording a case is about.

    Args:
        first: The first frame, from 0.
        last: The last frame, which belongs to it; the recording's if None.
        first_s: The first moment, in seconds of a video, in place of ``first``.
        last_s: The last moment, in place of ``last``.
        stride: Take every n-th frame.
    """

    first: int = 0
    last: int | None = None
    first_s: float | None = None
    last_s: float | None = None
    stride: int = 1

    def frames(self, length: int, rate: float | None, what: str) -> tuple[int, int]:
        """The first and the last frame.

        Args:
            length: Frames of the recording.
            rate: Frames a second, where that is known.
            what: Names the file and the key in an error.

        Raises:
            ValueError: If no frame lies in the window, or the recording is too short for it.

        Example:
            >>> Window(first_s=1.0, last_s=1.5).frames(60, 25.0, "window")
            (25, 37)
        """
        first, last = self.first, length - 1 if self.last is None else self.last
        if self.first_s is not None or self.last_s is not None:
            if rate is None:
                raise ValueError(f"{what}: expected `first` and `last`, for the recording has no rate, not seconds.")
            first = first if self.first_s is None else math.ceil(self.first_s * rate - _EPS)
            last = last if self.last_s is None else math.floor(self.last_s * rate + _EPS)
        if first >= length or last >= length:
            raise ValueError(f"{what}: expected frames out of 0 to {length - 1}, but got {first} to {last}.")
        if last < first:
            raise ValueError(f"{what}: expected a frame in it, but none begins in these seconds.")
        return first, last


@dataclass(frozen=True)
class Case:
    """One scene, and what it has to keep.

    Args:
        file: The YAML file.
        why: Why it is in the book.
        recording: A video, a folder of pictures or one picture.
        bounds: Names of :func:`~.judge.replay_numbers` with the largest number that is allowed.
        window: The frames that it is about.
        kind: The class of case, such as ``"night"``, that a budget may have limits for; empty without one.
        before: What was measured before, by the same names.
        before_checkpoint: The checkpoint that it was measured with before, to be measured again.
    """

    file: Path
    why: str
    recording: Path
    bounds: Mapping[str, float]
    window: Window = field(default_factory=Window)
    kind: str = ""
    before: Mapping[str, float] = field(default_factory=dict)
    before_checkpoint: Path | None = None

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.file.stem

    def open(self, batch_size: int = 16) -> Recording:
        """The frames of the window.

        Raises:
            ValueError: If the recording cannot be read, or does not have the window.
        """
        from lightning_robust.deployment.replay.frames import open_recording

        whole = open_recording(self.recording)
        first, last = self.window.frames(whole.length, whole.rate, f"{self.file}: window")
        return open_recording(self.recording, first=first, last=last, stride=self.window.stride, batch_size=batch_size)


def read_cases(folder: str | Path) -> list[Case]:
    """The cases of a folder, one a YAML file, in the order of their names.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no case, or a file is not as it should be; the message names file and key.
    """
    return [_read_case(file) for file in _case_files(Path(folder))]


def check_windows(cases: Sequence[Case]) -> None:
    """Refuse a window that its recording does not have; one that cannot be read is found when its turn comes.

    Raises:
        ValueError: Naming the file and the key.
        ImportError: For a video without PyAV.
    """
    from lightning_robust.deployment.replay.frames import open_recording

    for case in cases:
        try:
            whole = open_recording(case.recording)
            length, rate = whole.length, whole.rate
        except ValueError:
            continue
        case.window.frames(length, rate, f"{case.file}: window")


def _case_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"Expected a folder of cases at {folder}, but there is none.")
    files = sorted(file for file in folder.iterdir() if file.suffix in (".yaml", ".yml") and file.name[0] != ".")
    if not files:
        raise ValueError(f"Expected cases, a YAML file each, in {folder}, but found none.")
    names = [file.stem for file in files]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"Expected one file for each name in {folder}, but got two for {twice[0]}. Rename one.")
    return files


def _read_case(file: Path) -> Case:
    content = read_yaml(file)
    if twice := _key_twice(yaml.compose(file.read_text(encoding="utf-8-sig"), yaml.SafeLoader)):
        raise ValueError(f"{file}: {twice}: expected it once, but it stands there twice.")
    content = _read_block(content, _KEYS, str(file), _NEEDED)
    recording = Path(os.path.normpath(file.parent / _text(content["recording"], f"{file}: recording")))
    if not recording.exists():
        raise ValueError(f"{file}: recording: expected a video or a folder of pictures at {recording}.")
    numbers, checkpoint = _before(content.get("before"), file)
    return Case(
        file,
        _text(content["why"], f"{file}: why"),
        recording,
        read_numbers(content["bounds"], f"{file}: bounds"),
        _window(content.get("window"), f"{file}: window"),
        _text(content["class"], f"{file}: class") if "class" in content else "",
        numbers,
        checkpoint,
    )


def _before(given: Any, file: Path) -> tuple[Mapping[str, float], Path | None]:
    """What was measured before: numbers, or the checkpoint that gives them."""
    if given is None:
        return {}, None
    if isinstance(given, Mapping):
        return read_numbers(given, f"{file}: before"), None
    checkpoint = file.parent / _text(given, f"{file}: before")
    if not checkpoint.is_file() and not (checkpoint / ".metadata").is_file():  # which sharded training writes
        raise ValueError(f"{file}: before: expected numbers, or a checkpoint, but there is none at {checkpoint}.")
    return {}, checkpoint


def _window(given: Any, what: str) -> Window:
    if given is None:
        return Window()
    content = _read_block(given, _WINDOW, what)
    for side in ("first", "last"):
        if side in content and f"{side}_s" in content:
            raise ValueError(f"{what}: expected `{side}` or `{side}_s`, but got both.")
    for key, value in content.items():
        _check_extent(value, key, what)
    window = Window(**content)
    for start, end in ((window.first, window.last), (window.first_s or 0.0, window.last_s)):
        if end is not None and end < start:
            raise ValueError(f"{what}: expected the last frame after the first, but got {start} to {end}.")
    return window


def _check_extent(value: Any, key: str, what: str) -> None:
    """Refuse what is no number of frames, or of seconds."""
    seconds = key.endswith("_s")
    lowest = 1 if key == "stride" else 0
    number = isinstance(value, (int, float) if seconds else int) and not isinstance(value, bool)
    if not number or not lowest <= value < math.inf:
        kind = "seconds" if seconds else "a whole number"
        raise ValueError(f"{what}: {key}: expected {kind} of at least {lowest}, but got {reprlib.repr(value)}.")


def _read_block(given: Any, known: Sequence[str], what: str, needed: Sequence[str] = ()) -> dict[str, Any]:
    """A block of the file, with known keys only."""
    if not isinstance(given, dict):
        raise ValueError(f"{what}: expected the keys {', '.join(known)}, but got {reprlib.repr(given)}.")
    for key in given:
        if key not in known:
            hint = did_you_mean(str(key), known)
            raise ValueError(f"{what}: expected the keys {', '.join(known)}, but got {key!r}.{hint}")
    if missing := [key for key in needed if key not in given]:
        raise ValueError(f"{what}: expected the key {missing[0]!r}, but it is not there.")
    return dict(given)


def _text(given: Any, what: str) -> str:
    if not isinstance(given, str) or not given.strip():
        raise ValueError(f"{what}: expected a text, but got {reprlib.repr(given)}.")
    return given.strip()


def _key_twice(node: yaml.Node | None) -> str:
    """A key that a block has twice, of which YAML would silently take the last one; empty if there is none."""
    if not isinstance(node, yaml.MappingNode):
        return ""
    names = [str(key.value) for key, _ in node.value]
    twice = [name for number, name in enumerate(names) if name in names[:number]]
    return next(filter(None, [*twice, *(_key_twice(value) for _, value in node.value)]), "")
