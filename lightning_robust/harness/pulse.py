"""A sign of life of each rank: one that waits for another in no collective would wait for a dead one for ever."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

import lightning.pytorch as pl

from lightning_robust.harness.compat import default_store

if TYPE_CHECKING:  # a torch without torch.distributed lacks it
    from lightning_robust.harness.compat import Store

BEAT = 2.0
"""Seconds from one sign of life to the next."""
SILENCE = 40.0
"""Seconds without one after which a rank is dead. A thread gives them, which only what holds Python's lock delays."""
_RESTING = "resting"


class Pulse:
    """Says in the store of the process group that this rank lives, until :meth:`stop`; nothing on a single process.

    Args:
        trainer: The Trainer, whose processes have found each other.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self._store = default_store() if trainer.world_size > 1 else None
        self._key, self._stopped = _key_of(trainer.global_rank), threading.Event()
        if self._store is not None:
            threading.Thread(target=self._beat, args=(self._store,), daemon=True).start()

    def stop(self) -> None:
        """Rest: silence means nothing from now on."""
        self._stopped.set()
        if self._store is not None:
            with contextlib.suppress(Exception):  # the store is gone with the process that had it
                self._store.set(self._key, _RESTING)
            self._store = None

    def _beat(self, store: Store) -> None:
        with contextlib.suppress(Exception):
            while not self._stopped.is_set():
                store.set(self._key, str(time.time()))
                self._stopped.wait(BEAT)


class Listener:
    """What a rank that waits has heard of the others.

    Args:
        trainer: The Trainer.
        store: The store in which they give signs of life.
    """

    def __init__(self, trainer: pl.Trainer, store: Store) -> None:
        self._store = store
        self._others = [rank for rank in range(trainer.world_size) if rank != trainer.global_rank]
        self._heard: dict[int, tuple[bytes, float]] = {}
        self._asked = time.monotonic()

    def dead(self) -> list[int]:
        """The ranks that have been silent for too long, and were not resting. Asks the store every few seconds."""
        now = time.monotonic()
        if now - self._asked < BEAT:
            return []
        self._asked = now
        for rank in self._others:
            if self._store.check([_key_of(rank)]):
                said = self._store.get(_key_of(rank))
                if said != self._heard.get(rank, (b"", 0.0))[0]:
                    self._heard[rank] = said, now
        return [
            rank for rank, (said, since) in self._heard.items() if said.decode() != _RESTING and now - since > SILENCE
        ]


def _key_of(rank: int) -> str:
    return f"lightning_robust/pulse of rank {rank}"
