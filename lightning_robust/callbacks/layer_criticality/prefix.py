"""Evaluate a network of which one layer was changed without computing again what comes before that layer.

What is changed and what is measured is the caller's business.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_robust.callbacks.layer_criticality.call_trace import (
    Place,
    Plan,
    Trace,
    Tracer,
    Uses,
    plan_for,
    version_of,
)
from lightning_robust.functional.weights import is_compiled
from lightning_robust.harness.trainers import replaced
from lightning_robust.structures import map_tensors, tensors_in


@dataclass
class _Known:
    output: Any
    size: int
    mutated: bool
    versions: list[tuple[Tensor, int]]

    @property
    def intact(self) -> bool:
        return self.mutated or all(version_of(tensor) == version for tensor, version in self.versions)


class PrefixCache:
    """Remembers, batch by batch, what parts of a network return before a changed layer is first used.

    First a pass is traced: which parts are called in which order, and when each tensor is first used, wherever that is
    (``F.linear(x, self.embedding.weight)`` counts). Then, for one layer after the other, passes run inside
    :meth:`replaying`: the first computes everything that is not known yet and remembers it, further ones begin at the
    layer. Nothing that depends on the layer is ever remembered, so results are equal to the last bit.

    Parts that do more than return something are computed every time: those with hooks, those that set attributes of
    themselves, and those that hold one of these. What is later changed in place is copied. Where tracing shows that a
    batch draws random numbers, or where parts are compiled, nothing is remembered (:attr:`off`).

    Args:
        module: The network, in evaluation mode during the passes and without gradients.
        tensors: Its tensors by name.
        limit: Bytes that may be held; batches that do not fit are computed in full. While a batch is traced all its
            activations are held, and while one is evaluated what it adds may exceed the limit by one call's output.
        leave_out: Kinds of parts that must run, such as metrics.
    """

    def __init__(
        self, module: nn.Module, tensors: Mapping[str, Tensor], *, limit: int, leave_out: tuple[type, ...] = ()
    ) -> None:
        self._parts = _parts(module, leave_out)
        self._names = {id(tensor): name for name, tensor in tensors.items()}
        self._floating = {name for name, tensor in tensors.items() if tensor.is_floating_point()}
        self._limit = limit
        self.off = limit <= 0 or is_compiled(module) or any(isinstance(p, torch.jit.ScriptModule) for p in self._parts)
        """Whether every pass is computed in full."""
        self.used = 0
        """Bytes held."""
        self._traces: dict[Hashable, Trace] = {}
        self._interned: dict[Trace, Trace] = {}
        self._plans: dict[tuple[int, frozenset[str]], Plan] = {}
        self._stores: dict[Hashable, dict[Place, _Known]] = {}
        self._tracer: Tracer | None = None
        self._tracing = False
        self._changed: frozenset[str] = frozenset()
        self._counts: list[int] = []
        self._key: Hashable = None
        self._trace: Trace | None = None
        self._plan: Plan | None = None

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """Watch the pass over the data that runs inside the block."""
        if self.off:
            yield
            return
        self.clear()
        self._traces, self._tracing = {}, True
        with self._wrapped(self._traced_call), Uses(self._use):
            try:
                yield
                self._end_batch()
            finally:
                self._tracer, self._tracing = None, False

    @contextmanager
    def replaying(self, changed: Collection[str]) -> Iterator[None]:
        """Passes inside the block begin where one of these tensors is first used; any of them may have changed."""
        if self.off:
            yield
            return
        self._changed = frozenset(changed)
        with self._wrapped(self._replayed_call):
            try:
                yield
            finally:
                self._end_batch()

    def enter(self, key: Hashable) -> None:
        """A batch begins; the same key means the same batch in every pass."""
        self._end_batch()
        if self.off:
            return
        self._key, self._counts = key, [0] * len(self._parts)
        if self._tracing:
            self._tracer = Tracer([_has_hooks(part) for part in self._parts])
        elif key in self._traces:
            self._trace = self._traces[key]
            self._plan = self._planned(self._trace)

    def first_use(self, name: str) -> int | None:
        """When a tensor is first used in the first batch, counted in calls; None if it is not."""
        trace = next(iter(self._traces.values()), None)
        return None if trace is None else dict(trace.first_use).get(name)

    def clear(self) -> None:
        """Forget all values; traces stay."""
        self._stores, self.used = {}, 0

    @contextmanager
    def _wrapped(self, call: Callable[..., Any]) -> Iterator[None]:
        with ExitStack() as stack:
            for index, part in enumerate(self._parts):
                run = functools.partial(call, index, part.forward)
                stack.enter_context(replaced(part, "forward", functools.wraps(part.forward)(run)))
            yield

    def _end_batch(self) -> None:
        if self._tracer is not None:
            trace = self._tracer.finish()
            self._traces[self._key] = self._interned.setdefault(trace, trace)
            self.off = self.off or self._tracer.drew_random_numbers
        elif self._plan is not None:
            self._prune(self._stores.get(self._key, {}), self._plan.needed)
        self._tracer = self._trace = self._plan = None

    def _prune(self, store: dict[Place, _Known], needed: set[Place]) -> None:
        """Drop what later layers have no use for, and what was changed in place against expectation."""
        for place in [place for place, known in store.items() if place not in needed or not known.intact]:
            self.used -= store.pop(place).size

    def _use(self, tensor: Tensor) -> None:
        if self._tracer is not None and id(tensor) in self._names:
            self._tracer.use(self._names[id(tensor)])

    def _traced_call(self, index: int, forward: Callable[..., Any], *args: Any, **settings: Any) -> Any:
        if self._tracer is None:
            return forward(*args, **settings)
        place = (index, self._counts[index])
        self._counts[index] += 1
        return self._tracer.call(place, self._parts[index], lambda: forward(*args, **settings))

    def _replayed_call(self, index: int, forward: Callable[..., Any], *args: Any, **settings: Any) -> Any:
        if self._trace is None or self._plan is None:
            return forward(*args, **settings)
        place = (index, self._counts[index])
        store = self._stores.setdefault(self._key, {})
        position = self._plan.before.get(place)
        if position is not None:
            if place in store:
                self._pass_over(position)
                known = store[place]
                return map_tensors(torch.clone if known.mutated else _same, known.output)
            if any(sibling in store for sibling in self._plan.later.get(place, ())):
                self._pass_over(position)
                return args[0]
        self._counts[index] += 1
        output = forward(*args, **settings)
        if position is not None and place in self._plan.needed:
            self._remember(store, place, output, mutated=self._trace.calls[position].mutated)
        return output

    def _pass_over(self, position: int) -> None:
        """Count the calls that do not happen."""
        if self._trace is not None:
            for call in self._trace.calls[position : self._trace.calls[position].after]:
                self._counts[call.place[0]] += 1

    def _remember(self, store: dict[Place, _Known], place: Place, output: Any, *, mutated: bool) -> None:
        tensors = tensors_in(output)
        size = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
        if self.used + size <= self._limit:
            kept = map_tensors(torch.clone if mutated else _same, output)
            store[place] = _Known(kept, size, mutated, [(tensor, version_of(tensor)) for tensor in tensors])
            self.used += size

    def _planned(self, trace: Trace) -> Plan:
        key = (id(trace), self._changed)
        if key not in self._plans:
            self._plans[key] = plan_for(trace, self._changed & self._floating, [_is_sequential(p) for p in self._parts])
        return self._plans[key]


def _parts(module: nn.Module, leave_out: tuple[type, ...]) -> list[nn.Module]:
    """The module and all inside it, each once, but for kinds that are left out with all that they hold."""
    found = [module]
    for part in found:  # grows as it goes
        found += [each for each in part.children() if not isinstance(each, leave_out) and each not in found]
    return found


def _is_sequential(part: nn.Module) -> bool:
    return type(part).forward is nn.Sequential.forward


def _has_hooks(part: nn.Module) -> bool:
    return bool(part._forward_hooks or part._forward_pre_hooks)


def _same(tensor: Tensor) -> Tensor:
    return tensor
