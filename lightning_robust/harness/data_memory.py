"""Where data sets and samplers stand: put aside while a helper reads from them, and put back afterwards."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from lightning_robust.harness.holders import Holder

_CONTAINERS = (list, dict, set, deque)
_LONG = 1000
"""Longer containers are the data, not a position in it."""


@contextmanager
def unread(loaders: Any) -> Iterator[None]:
    """After the block, the data sets and samplers of loaders stand where they stood, as if nothing had been read.

    Args:
        loaders: A structure of loaders. Those with workers read from copies in other processes.

    Raises:
        MisconfigurationException: For a stream whose position is in an iterator, which only goes forward.
    """
    sources = [source for loader in each_loader(loaders) for source in _read_by(loader)]
    holders = [holder for source in sources for holder in _positions(source)]
    try:
        yield
    finally:
        for holder in holders:
            holder.refill(holder.contents)


def each_loader(loaders: Any) -> Iterator[Any]:
    """The loaders of a structure, in order.

    Example:
        >>> list(each_loader({"labelled": "first", "others": ["second", "third"]}))
        ['first', 'second', 'third']
    """
    if isinstance(loaders, CombinedLoader):
        loaders = loaders.flattened
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, list | tuple):
        for loader in loaders:
            yield from each_loader(loader)
    else:
        yield loaders


def _read_by(loader: Any) -> Iterator[Any]:
    """What a loader of this process reads from."""
    if isinstance(loader, DataLoader) and loader.num_workers == 0:
        yield from filter(_has_position, (loader.dataset, loader.sampler, loader.batch_sampler))


def _positions(source: Any, seen: set[int] | None = None) -> Iterator[Holder]:
    """The attributes of a data set or sampler, of those inside of it, and short containers among them; each once."""
    seen = set() if seen is None else seen
    if id(source) in seen:
        return
    seen.add(id(source))
    holder = Holder(source, type(source).__name__)
    yield holder
    for name, value in holder.contents.items():
        if isinstance(source, IterableDataset):
            _refuse_iterator(value, f"{holder.path}.{name}")
        if isinstance(value, _CONTAINERS) and len(value) <= _LONG:
            yield Holder(value, name)
        for inner in _sources_in(value):
            yield from _positions(inner, seen)


def _sources_in(value: Any) -> list[Any]:
    """The data sets and samplers that an attribute is, or holds in a short list."""
    parts = value if isinstance(value, list) and len(value) <= _LONG else [value]
    return [part for part in parts if isinstance(part, Dataset | Sampler)]


def _has_position(source: Any) -> bool:
    return hasattr(source, "__dict__")


def _refuse_iterator(value: Any, path: str) -> None:
    if hasattr(value, "__next__") and not hasattr(value, "__dict__"):
        raise MisconfigurationException(
            f"Expected a stream that can be read again, but `{path}` is a {type(value).__name__}: what is read of it "
            "beside training is lost to training. Open it in `__iter__`, or give the loader workers."
        )
