"""What a module remembers beside its weights: put aside while a step runs quietly, and put back afterwards."""

from __future__ import annotations

import copy
import io
import random
from collections import deque
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from datetime import date, time, timedelta, tzinfo
from enum import Enum
from functools import partial
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from lightning_robust.functional.weights import awaits_first_pass
from lightning_robust.harness.compat import (
    buffers_of,
    hooks_of,
    is_layer_of_torch,
    parts_of,
    states_of_metric,
    version_of,
)
from lightning_robust.harness.holders import CODE, Holder, holds_data
from lightning_robust.harness.watched_weights import WatchedWeights

_CONSTANTS = (
    *(int, float, complex, str, bytes, range, slice, np.generic, Enum, PurePath, date, time, timedelta, tzinfo),
    *(torch.dtype, torch.device, type(None), type(...), partial, *CODE),
)
_COPIED = (np.ndarray, torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
_MANY = 64
"""Longer sequences are gathered outputs: their tensors are not copied, but it is an error to change them in place."""


class ModuleMemory:
    """Lists, dicts, sets, numbers, tensors, buffers and metrics of a module and of the objects that it holds.

    Containers keep their identity: :meth:`restore` puts their former contents back into them. Objects of other classes
    are remembered if all that they hold is data; loggers, data sets and the like are left alone. So are the buffers of
    torch's own layers, which move in training mode only.

    Args:
        module: The module.

    Raises:
        MisconfigurationException: For an iterator or an open file among its attributes, which cannot be put back.

    Example:
        >>> layer = nn.Module()
        >>> layer.outputs, layer.count = [1], 0
        >>> memory = ModuleMemory(layer)
        >>> layer.outputs.append(2)
        >>> layer.count += 1
        >>> memory.restore()
        >>> layer.outputs, layer.count
        ([1], 0)
    """

    def __init__(self, module: nn.Module) -> None:
        self._known: dict[int, bool] = {}
        self._holders: list[Holder] = []
        self._changeable: list[tuple[Holder, Any]] = []
        """What a step may change in place: the holder and the key in it."""
        self._shared: list[tuple[str, Tensor, int]] = []
        """Tensors that are not copied, with their versions."""
        self._metrics: list[Metric | MetricCollection] = []
        self._hooks: list[tuple[dict[int, Any], dict[int, Any]]] = []
        """Of each module, and what was in them."""
        self._visit_module(module, type(module).__name__)

    def restore(self) -> None:
        """Put everything back."""
        for holder in self._holders:
            holder.refill(holder.contents)
        for hooks, before in self._hooks:
            if hooks != before:
                hooks.clear()
                hooks.update(before)

    def part(self) -> None:
        """Give the module copies of its tensors and generators to work on, and empty metrics, until :meth:`restore`.

        The states of metrics are not copied, however large.
        """
        copies: dict[int, Any] = {}
        altered: dict[int, tuple[Holder, dict[Any, Any]]] = {}
        for holder, key in self._changeable:
            value = holder.contents[key]
            if id(value) not in copies:
                copies[id(value)] = _copied(value)
            altered.setdefault(id(holder), (holder, dict(holder.contents)))[1][key] = copies[id(value)]
        for holder, contents in altered.values():
            holder.refill(contents)
        for metric in self._metrics:
            _empty(metric)

    def check(self) -> None:
        """Refuse changes that cannot be undone.

        Raises:
            RuntimeError: If a tensor in a tuple or in a long list was changed in place.
        """
        for path, tensor, version in self._shared:
            if version_of(tensor) != version:
                raise RuntimeError(
                    f"Expected {path} to stay as it is while the module runs quietly, but its step changes that tensor "
                    "in place, which cannot be undone. Keep it as a buffer or as an attribute of its own."
                )

    def _visit_module(self, module: nn.Module, path: str) -> None:
        if id(module) in self._known:
            return
        if isinstance(module, Metric | MetricCollection):
            self._metrics.append(module)
            self._visit_metric(module, path)
            return
        self._known[id(module)] = True
        self._hooks += [(hooks, dict(hooks)) for hooks in hooks_of(module)]
        if not is_layer_of_torch(module):
            self._visit_all(self._add(module, path))
            self._visit_all(self._add(buffers_of(module), path))
        self._add(parts_of(module), path)
        for name, part in module.named_children():
            self._visit_module(part, f"{path}.{name}")

    def _visit_metric(self, metric: nn.Module, path: str) -> None:
        """Its states are referred to only: :meth:`part` gives it others."""
        if id(metric) in self._known:
            return
        self._known[id(metric)] = True
        self._visit_all(self._add(metric, path), states_of_metric(metric))
        self._add(parts_of(metric), path)
        for name, part in metric.named_children():
            self._visit_metric(part, f"{path}.{name}")

    def _visit_all(self, holder: Holder, left_out: frozenset[str] = frozenset()) -> bool:
        """Remember what a holder holds; whether all of it can be remembered."""
        known = [self._visit(value, holder, key) for key, value in holder.contents.items() if key not in left_out]
        return all(known)

    def _visit(self, value: Any, holder: Holder, key: Any) -> bool:
        """Remember one value of a holder; whether it can be remembered."""
        if isinstance(value, _CONSTANTS):
            return True
        if isinstance(value, Tensor):
            self._visit_tensor(value, holder, key)
            return True
        if isinstance(value, _COPIED):
            if not holder.is_fixed:
                self._changeable.append((holder, key))
            return True
        path = holder.path_to(key)
        if isinstance(value, nn.Module):
            self._visit_module(value, path)
            return True
        if _only_goes_forward(value) and (holder.is_container or isinstance(holder.thing, nn.Module)):
            raise MisconfigurationException(
                f"Expected `{path}` to be something that can be put back after the module has run quietly, but got "
                f"{type(value).__name__}, which only goes forward. Keep it outside of the module, as in the data "
                "module or in a callback."
            )
        return self._visit_holder(value, path)

    def _visit_tensor(self, tensor: Tensor, holder: Holder, key: Any) -> None:
        many = isinstance(holder.thing, list | deque) and len(holder.contents) > _MANY
        if not (holder.is_fixed or many or tensor.requires_grad or isinstance(tensor, nn.Parameter)):
            self._changeable.append((holder, key))
        elif not tensor.is_inference():
            self._shared.append((holder.path_to(key), tensor, version_of(tensor)))

    def _visit_holder(self, value: Any, path: str) -> bool:
        if id(value) in self._known:
            return self._known[id(value)]
        if not holds_data(value):
            return False
        self._known[id(value)] = True
        marks = len(self._holders), len(self._changeable)
        holder = self._add(value, path)
        if not self._visit_all(holder) and not holder.is_container:
            # an object with a life of its own, which is left as it is
            for each in self._holders[marks[0] :]:
                self._known.pop(id(each.thing), None)
            del self._holders[marks[0] :], self._changeable[marks[1] :]
            self._known[id(value)] = False
        return self._known[id(value)]

    def _add(self, thing: Any, path: str) -> Holder:
        holder = Holder(thing, path)
        self._holders.append(holder)
        return holder


def require_reversible(module: nn.Module) -> None:
    """Refuse a module that keeps what a quiet run could not put back; techniques call it when a fit starts.

    Raises:
        MisconfigurationException: Naming the attribute.

    Example:
        >>> layer = nn.Module()
        >>> layer.stream = iter([1, 2])
        >>> require_reversible(layer)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        lightning.fabric.utilities.exceptions.MisconfigurationException: Expected `Module.stream` to be something ...
    """
    ModuleMemory(module)


def require_weights(module: nn.Module, technique: str) -> None:
    """Refuse lazy layers that no pass has built yet; techniques call it where they need the weights.

    Raises:
        MisconfigurationException: Naming the technique.
    """
    if awaits_first_pass(module):
        raise MisconfigurationException(
            f"{technique}: Expected a module with weights, but got lazy layers, which have none before their first "
            "pass. Run one batch through the module when it is built."
        )


@contextmanager
def untouched(module: nn.Module, period: Hashable = None, since: ModuleMemory | None = None) -> Iterator[None]:
    """Whatever a step changes inside the block, in the module and the data that it holds, is as before afterwards.

    Weights that a step moves by itself, as the teacher of a momentum encoder, are found by a comparison of all weights
    at the first block of each period, and put back.

    Args:
        module: The module.
        period: Where this is new, all weights are compared.
        since: The module begins with this memory, instead of what it remembers now.

    Raises:
        MisconfigurationException: For what cannot be put back.
        RuntimeError: For a change in place that cannot be undone.
    """
    present = ModuleMemory(module)
    if since is not None:
        since.restore()
    begin = present if since is None else ModuleMemory(module)
    begin.part()
    weights = WatchedWeights(module, period)
    try:
        yield
    finally:
        weights.restore()
        if begin is not present:
            begin.restore()
        present.restore()
    begin.check()


def _only_goes_forward(value: Any) -> bool:
    return isinstance(value, io.IOBase) or (hasattr(type(value), "__next__") and not hasattr(value, "__dict__"))


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return value.clone_state() if isinstance(value, torch.Generator) else copy.deepcopy(value)


def _empty(metric: Metric | MetricCollection) -> None:
    """Reset a metric, without emptying the very lists that it gathered in."""
    for part in metric.modules():
        for name in states_of_metric(part):
            if isinstance(getattr(part, name), list):
                setattr(part, name, [])
    metric.reset()
