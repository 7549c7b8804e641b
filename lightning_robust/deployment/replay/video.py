"""A video file as a recording, read with PyAV."""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typing_extensions import override

from lightning_robust.deployment.replay.recording import Picture, Recording


class Video(Recording):
    """A video file, read with PyAV.

    A frame's index is the number of packets that are shown before it, so that frames which the decoder drops leave a
    gap and are counted. Frames that the decoder marks as damaged are left out too.
    """

    def __init__(self, path: str | Path, **options: Any) -> None:
        super().__init__(path, **options)
        _import_av()

    @property
    @override
    def length(self) -> int:
        with self._open() as (container, failure):
            stream = container.streams.video[0]
            packets = _readable_packets(container, failure, {})
            return int(stream.frames) or sum(packet.size > 0 and not packet.is_discard for packet in packets)

    @property
    @override
    def rate(self) -> float | None:
        with self._open() as (container, _):
            rate = container.streams.video[0].average_rate
        return float(rate) if rate else None

    @override
    def _read(self) -> Iterator[tuple[int, Picture]]:
        with self._open() as (container, failure):
            yield from self._decode(container, failure)

    @contextlib.contextmanager
    def _open(self) -> Iterator[tuple[Any, type[Exception]]]:
        """The container, and what PyAV raises where it cannot go on."""
        av = _import_av()
        try:
            container = av.open(str(self.path))
        except av.FFmpegError as error:
            raise ValueError(f"Expected a video at {self.path}, but it cannot be opened: {error.strerror}.") from error
        with container:
            if not container.streams.video:
                raise ValueError(f"Expected a video at {self.path}, but it holds no pictures, only sound or data.")
            yield container, av.FFmpegError

    def _decode(self, container: Any, failure: type[Exception]) -> Iterator[tuple[int, Picture]]:
        shown: list[int] = []
        following, reason = 0, "the decoder gave no frame"
        for packet in _readable_packets(container, failure, self.skipped):
            if _is_shown(packet):
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
                index = _index_of(frame, shown, following)
                self._skip(range(following, index), reason)
                following = index + 1
                if frame.is_corrupt:
                    self._skip(range(index, following), "the decoder marks it as damaged")
                elif self._takes(index):
                    yield index, frame.to_ndarray(format="rgb24")
            if self.last is not None and following > self.last:
                return
        self._skip(range(following, len(shown)), reason)

    def _skip(self, frames: range, reason: str) -> None:
        self.skipped |= {f"frame {frame}": reason for frame in frames if self._takes(frame)}


def _is_shown(packet: Any) -> bool:
    return packet.pts is not None and not packet.is_discard


def _index_of(frame: Any, shown: list[int], following: int) -> int:
    """How many frames are shown before it; the one that follows where it has no time."""
    return following if frame.pts is None else max(following, bisect.bisect_left(shown, frame.pts))


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
