"""The samples of a pass, taken in windows that grow until the numbers stand still."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from torch import Tensor

from lightning_robust.rows import join_rows

_FIRST = 16
_MOST_BYTES = 2**26  # of the outputs of one runtime that are held


def windows(samples: int, bytes_each: int = 0) -> Iterator[slice]:
    """Neighbouring windows of samples: sixteen, sixteen more, then as many again as there were so far.

    Args:
        samples: How many there are.
        bytes_each: What the outputs of one sample take; no window after the first goes beyond 64 MB of them.

    Example:
        >>> [(window.start, window.stop) for window in windows(100)]
        [(0, 16), (16, 32), (32, 64), (64, 100)]
    """
    samples = min(samples, max(_FIRST, _MOST_BYTES // max(bytes_each, 1)))
    start, stop = 0, min(_FIRST, samples)
    while start < samples:
        yield slice(start, stop)
        start, stop = stop, min(2 * stop, samples)


class Outputs:
    """The outputs of one runtime on the first samples, computed window by window when they are asked for.

    Args:
        run: From a window to the flattened outputs on it.

    Example:
        >>> import torch
        >>> outputs = Outputs(lambda window: [torch.arange(window.start, window.stop)])
        >>> outputs.up_to(slice(0, 2)), outputs.up_to(slice(2, 3)), outputs.up_to(slice(0, 2))
        ([tensor([0, 1])], [tensor([0, 1, 2])], [tensor([0, 1])])
    """

    def __init__(self, run: Callable[[slice], Sequence[Tensor]]) -> None:
        self._run = run
        self.samples = 0
        self._parts: dict[int, list[Tensor]] = {}  # by the end of their window

    def up_to(self, window: slice) -> list[Tensor]:
        """All outputs up to the end of a window that begins where the last one ended, or that was run before."""
        if window.stop > self.samples:
            self._parts[window.stop] = list(self._run(slice(self.samples, window.stop)))
            self.samples = window.stop
        stops = [stop for stop in self._parts if stop <= window.stop]
        sizes = [stop - start for start, stop in pairwise((0, *stops))]
        return join_rows([self._parts[stop] for stop in stops], sizes)
