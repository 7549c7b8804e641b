"""What one rank cannot do, no rank does: agreement on success before the next collective, and one warning for all."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar, cast

import lightning.pytorch as pl

from lightning_robust.harness import pulse
from lightning_robust.harness.closing import warn
from lightning_robust.harness.compat import default_store
from lightning_robust.harness.pulse import Listener

T = TypeVar("T")
Default = TypeVar("Default")
_LONGEST_PAUSE = 1.0  # seconds between two questions of a rank that waits for another


class RankError(RuntimeError):
    """Work that failed on one rank or more; raised on every rank, and the message says on which and why."""


def agreed(trainer: pl.Trainer, work: Callable[[], T], what: str) -> T:
    """Do something on every rank; where it fails on one of them, it fails on all.

    Without it, the rank that fails leaves while the others wait in their next collective for ever. One reduction, and
    nothing at all on a single process, where the error passes through unchanged. A rank that is done sooner does not
    wait in a collective, which would give up after a time limit.

    Args:
        trainer: The Trainer.
        work: What may fail. No collective happens in it, except inside of an ``agreed`` of its own.
        what: Names the work in the error, as ``"Reading the ingredients"``.

    Returns:
        What ``work`` returned on this rank.

    Raises:
        RankError: On every rank, if some fail or they fail differently.
        Exception: The own error of each rank, if all fail alike.
    """
    if trainer.world_size == 1:
        return work()
    error: Exception | None = None
    with _meeting(trainer):
        try:
            result = work()
        except RankError:
            raise  # every rank raises it
        except Exception as caught:
            error = caught
    if trainer.strategy.reduce_boolean_decision(error is None, all=True):
        return result
    reasons = [trainer.strategy.broadcast(describe_error(error), rank) for rank in range(trainer.world_size)]
    if error is not None and len(set(reasons)) == 1:
        raise error
    failures = [f"rank {rank}: {reason}" for rank, reason in enumerate(reasons) if reason]
    raise RankError(f"{what} failed on {len(failures)} of {len(reasons)} ranks. {'; '.join(failures)}") from error


def on_rank_zero(trainer: pl.Trainer, work: Callable[[], T], what: str) -> T:
    """Do something on rank 0 alone and give its result, or its failure, to every rank, however long it takes.

    Args:
        trainer: The Trainer.
        work: What may fail. No collective happens in it; its result can be pickled.
        what: Names the work in the error.

    Returns:
        What ``work`` returned on rank 0.

    Raises:
        RankError: On every rank of several, if it fails.
        Exception: The error itself on a single process.
    """
    if trainer.world_size == 1:
        return work()
    result: Any = None
    error: Exception | None = None
    with _meeting(trainer):
        if trainer.is_global_zero:
            try:
                result = work()
            except Exception as caught:
                error = caught
    shared, reason = trainer.strategy.broadcast((result, describe_error(error)), 0)
    if reason:
        raise RankError(f"{what} failed. Rank 0: {reason}") from error
    return cast("T", shared)


@contextlib.contextmanager
def _meeting(trainer: pl.Trainer) -> Iterator[None]:
    """Work before a collective; at its end every rank waits until all are there.

    It asks the store by which the ranks once found each other. A collective would be ended by its time limit, ten
    minutes with NCCL, and the training with it.

    Raises:
        RankError: If a rank was interrupted, or has died, and does not come.
    """
    store = default_store()
    if store is None:
        yield
        return
    key = f"lightning_robust/meeting {store.add(f'lightning_robust/meetings of rank {trainer.global_rank}', 1)}"
    try:
        yield
    except Exception:
        raise  # every rank raises it
    except BaseException as error:
        store.set(f"{key} ends", f"Rank {trainer.global_rank} was interrupted ({type(error).__name__}).")
        raise
    if store.add(key, 1) == trainer.world_size:
        store.set(f"{key} ends", "")
    start, listener = time.monotonic(), Listener(trainer, store)
    while not store.check([f"{key} ends"]):
        if dead := listener.dead():
            raise RankError(
                f"Rank {', '.join(map(str, dead))} has given no sign of life for {pulse.SILENCE:.0f} s while rank "
                f"{trainer.global_rank} waited for it: its process was killed, as for want of memory, or it hangs."
            )
        time.sleep(min(max(0.1 * (time.monotonic() - start), 0.001), _LONGEST_PAUSE))
    if reason := store.get(f"{key} ends").decode():
        raise RankError(reason)


def describe_error(error: Exception | None) -> str:
    """An error as messages quote it, ``"ValueError: why"``; empty for None."""
    if error is None:
        return ""
    told = str(error) if isinstance(error, RankError) else f"{type(error).__name__}: {error}"
    return " ".join([told, *getattr(error, "__notes__", ())])


class Postponed:
    """Work in the middle of a loop, where ranks cannot agree on its success: an error waits until :meth:`check`.

    Example:
        >>> kept = Postponed()
        >>> kept.attempt(lambda: 1 / 0)
        >>> kept.check()
        Traceback (most recent call last):
        ZeroDivisionError: division by zero
    """

    def __init__(self) -> None:
        self._error: Exception | None = None

    def attempt(self, work: Callable[[], object]) -> None:
        """Do something, unless an earlier attempt failed."""
        if self._error is None:
            try:
                work()
            except Exception as error:
                self._error = error.with_traceback(None)  # which holds what the work was done with

    def check(self) -> None:
        """Raise the error of the first attempt that failed; call it under a guard."""
        if self._error is not None:
            raise self._error


class Guard:
    """Lets a diagnostic fail without ending the training: one warning, or an error, on every rank alike.

    Args:
        technique: Begins each warning, as ``"DatapathCallback"``.
        on_failure: ``"warn"`` and go on, or ``"raise"`` the error.

    Raises:
        ValueError: For another ``on_failure``.

    Example:
        >>> guard = Guard("DatapathCallback")
        >>> trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True)
        >>> guard.attempt(trainer, lambda: 1 / 2, "nothing was measured")
        0.5
    """

    def __init__(self, technique: str, on_failure: Literal["warn", "raise"] = "warn") -> None:
        if on_failure not in ("warn", "raise"):
            raise ValueError(f"Expected `on_failure` to be 'warn' or 'raise', but got {on_failure!r}.")
        self._technique, self._on_failure = technique, on_failure
        self._warned: set[str] = set()

    def attempt(
        self,
        trainer: pl.Trainer,
        work: Callable[[], T],
        consequence: str,
        default: Default = None,  # type: ignore[assignment]
        *,
        once: bool = False,
    ) -> T | Default:
        """Do something on every rank as :func:`agreed` does; a failure on one rank becomes one warning.

        Args:
            trainer: The Trainer.
            work: What may fail, with collectives only inside of ``agreed``.
            consequence: What the failure means for the user, as ``"the weights stay as trained"``.
            default: Returned on every rank if it fails on one.
            once: Repeat no warning of this consequence.

        Returns:
            What ``work`` returned on this rank, or the default.

        Raises:
            Exception: What ``agreed`` raises, if ``on_failure`` is ``"raise"``.
        """
        try:
            return agreed(trainer, work, "It")
        except Exception as error:
            self.fail(trainer, error, consequence, once=once)
            return default

    def fail(self, trainer: pl.Trainer, error: Exception, consequence: str, *, once: bool = False) -> None:
        """Warn of an error that every rank has, or raise it."""
        if self._on_failure == "raise":
            raise RankError(f"{self._technique}: {consequence}. {error}") if isinstance(error, RankError) else error
        self.warn(f"{consequence}. {describe_error(error)}", key=consequence if once else None)

    def warn(self, message: str, category: type[Warning] = UserWarning, *, key: str | None = None) -> None:
        """Warn on rank 0, now and at the end of the fit, once for each key until :meth:`reset`."""
        if key is not None and key in self._warned:
            return
        if key is not None:
            self._warned.add(key)
        warn(f"{self._technique}: {message}", category)

    def reset(self) -> None:
        """Forget which warnings were given, as a second fit does."""
        self._warned.clear()
