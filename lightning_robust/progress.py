"""Progress of what takes more than two seconds outside of Lightning's loops; it is written to the standard error.

On a terminal it is a bar that goes away, in a log one line at the beginning and one at the end.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import IO, Any, Protocol, Self, TypeVar

Item = TypeVar("Item")
_DELAY = 2.0  # seconds before anything is shown
_TICK = 1.0  # seconds between two drawings within one step
_shown: list[Progress] = []  # the outermost one; those within it are silent
_hidden: list[None] = []


def track(iterable: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """Goes through an iterable and shows how far it is.

    Nothing is shown for what takes less than two seconds, on ranks other than 0, in background threads and workers,
    inside of another progress, and inside of :func:`hidden_progress`.

    Args:
        iterable: What to go through.
        what: Names the work, as ``"Rendering pictures"``.
        total: How many items there are; None asks the iterable.

    Example:
        >>> [2 * number for number in track([1, 2, 3], "Doubling")]
        [2, 4, 6]
    """
    if total is None and isinstance(iterable, Sized):
        with contextlib.suppress(Exception):  # loaders of an endless dataset have a length that raises
            total = len(iterable)
    with Progress(what, total) as progress:
        for item in iterable:
            yield item
            progress.advance()


@contextlib.contextmanager
def hidden_progress(hide: bool = True) -> Iterator[None]:
    """Shows no progress inside of the block.

    Args:
        hide: False changes nothing.

    Example:
        >>> with hidden_progress():
        ...     total = sum(track(range(4), "Adding"))
        >>> total
        6
    """
    marks = [None] if hide else []
    _hidden.extend(marks)
    try:
        yield
    finally:
        del _hidden[len(_hidden) - len(marks) :]


class Progress:
    """The progress of work whose steps are no items of an iterable; :func:`track` says when it is shown.

    Args:
        what: Names the work.
        total: How many steps there are; None if nobody knows. It grows with the steps that are done.

    Example:
        >>> with Progress("Cooking", total=2) as progress:
        ...     progress.advance(note="val/acc 0.689")
        ...     progress.advance()
    """

    def __init__(self, what: str, total: int | None = None) -> None:
        self.what, self.total = what, total
        self.done, self.note = 0, ""
        self._start = 0.0
        self._display: _Display | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        """Start the clock."""
        self._start = _now()
        if _is_silent():
            return self
        _shown.append(self)
        with contextlib.suppress(RuntimeError):  # no thread can start: it is drawn at each step all the same
            threading.Thread(target=self._tick, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the terminal as it was, or write the last line."""
        if self not in _shown:
            return
        self._ended.set()
        _shown.remove(self)
        with self._lock:
            if self._display is not None:
                self._display.close(self, finished=kind is None)

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count steps that are done.

        Args:
            steps: How many.
            note: The latest result in a few words.
        """
        self.done += steps
        self.total = self.total and max(self.total, self.done)
        self.note = note or self.note
        if self in _shown:
            self.draw()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return _now() - self._start

    @property
    def words(self) -> str:
        """How far it is, as :func:`words_left` says it."""
        return words_left(self.done, self.total, self.elapsed)

    def draw(self) -> None:
        """Show how far it is, two seconds after the start and later."""
        with self._lock:
            if self._ended.is_set() or self.elapsed < _DELAY:
                return
            if self._display is None:
                self._display = _display(self)
            else:
                self._display.update(self)

    def _tick(self) -> None:
        pause = _DELAY
        while not self._ended.wait(pause):
            self.draw()
            pause = _TICK


class _Display(Protocol):
    def update(self, progress: Progress) -> None: ...

    def close(self, progress: Progress, *, finished: bool) -> None: ...


class _Lines:
    """One line now and one at the end, for logs."""

    def __init__(self, progress: Progress, stream: IO[str]) -> None:
        self._stream = stream
        self._write(f"{progress.what}: {progress.words}")

    def update(self, progress: Progress) -> None:
        """A log is not drawn over."""

    def close(self, progress: Progress, *, finished: bool) -> None:
        note = f" ({progress.note})" if progress.note else ""
        how = "done in" if finished else "done when it stopped, after"
        steps = words_left(progress.done, progress.total)
        self._write(f"{progress.what}: {steps} {how} {duration(progress.elapsed)}{note}")

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a closed or full stream stops no work
            self._stream.write(f"{line}\n")
            self._stream.flush()


class _Bar:
    """A bar of tqdm, for terminals."""

    def __init__(self, progress: Progress, stream: IO[str]) -> None:
        from tqdm import tqdm

        self._bar: Any = tqdm(
            desc=progress.what,
            total=progress.total,
            leave=False,
            file=stream,
            dynamic_ncols=True,
            delay=1e-9,  # else it is drawn before it knows how far it is
            bar_format=None
            if progress.total is None
            else "{l_bar}{bar}| {n_fmt}/{total_fmt} [{remaining} left{postfix}]",
        )
        self._bar.start_t -= progress.elapsed
        self._bar.delay = 0
        self.update(progress)

    def update(self, progress: Progress) -> None:
        self._bar.n, self._bar.total = progress.done, progress.total
        self._bar.set_postfix_str(progress.note, refresh=False)
        with contextlib.suppress(OSError, ValueError):
            self._bar.refresh()

    def close(self, progress: Progress, *, finished: bool) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._bar.close()


class _Row:
    """A row below the live bars of rich, as the Trainer has them where rich is installed.

    Raises:
        LiveError: From versions of rich in which bars do not nest.
    """

    def __init__(self, progress: Progress) -> None:
        from rich import get_console
        from rich import progress as rich

        columns = "{task.description}", rich.BarColumn(), "{task.fields[words]}"
        self._rows = rich.Progress(*columns, console=get_console(), transient=True, auto_refresh=False)
        self._task = self._rows.add_task(progress.what, total=progress.total, words="")
        self._rows.start()
        self.update(progress)

    def update(self, progress: Progress) -> None:
        words = ", ".join(filter(None, (progress.words, progress.note)))
        self._rows.update(self._task, completed=progress.done, total=progress.total, refresh=True, words=words)

    def close(self, progress: Progress, *, finished: bool) -> None:
        self._rows.update(self._task, visible=False, refresh=True)
        self._rows.stop()


def duration(seconds: float) -> str:
    """A time in words.

    Example:
        >>> duration(40), duration(200), duration(3900)
        ('40 s', '3 min 20 s', '1 h 5 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def words_left(done: int, total: int | None, elapsed: float = 0.0) -> str:
    """How far work is, and how long the rest takes if its steps take as long as those before.

    Example:
        >>> words_left(3, 8, elapsed=24.0), words_left(0, 8, elapsed=1.0), words_left(3, None, elapsed=24.0)
        ('3 of 8, about 40 s left', '0 of 8', '3')
    """
    if total is None:
        return f"{done}"
    left = f", about {duration(elapsed / done * max(total - done, 0))} left" if done and elapsed else ""
    return f"{done} of {total}{left}"


def _display(progress: Progress) -> _Display:
    stream = sys.stderr
    proxied = getattr(stream, "rich_proxied_file", None)  # set while a live display of rich is on
    if not stream.isatty():
        return _Lines(progress, proxied or stream)
    if proxied is None:
        return _Bar(progress, stream)
    from rich.errors import LiveError

    try:
        return _Row(progress)
    except LiveError:
        return _Lines(progress, stream)


def _is_silent() -> bool:
    return (
        bool(_hidden or _shown)
        or sys.stderr is None
        or threading.current_thread() is not threading.main_thread()
        or multiprocessing.current_process().daemon
        or _rank() != 0
    )


def _rank() -> int:
    """The rank that Lightning knows of; where it is not imported there is one process."""
    lightning = sys.modules.get("lightning_utilities.core.rank_zero")
    return getattr(getattr(lightning, "rank_zero_only", None), "rank", None) or 0


def _now() -> float:
    return time.monotonic()
