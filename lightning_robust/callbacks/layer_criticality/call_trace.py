"""What a forward pass does, written down: which parts are called in which order, and when each tensor is first used.

What the record is good for is ``prefix.py``'s business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_robust.structures import tensors_in

Place = tuple[int, int]
"""A call of a part of the network: which part, and its how many-th call for a batch."""


@dataclass(frozen=True)
class Call:
    """What the trace of a batch knows of a call."""

    place: Place
    parent: int | None
    end: int
    """When, counted in calls and first uses of tensors."""
    after: int
    """Position of the first call that is not inside this one."""
    replayable: bool
    """Whether all that it does is to return something."""
    mutated: bool
    """Whether what it returned is changed in place later on."""
    hooked: bool
    """Whether the part itself has hooks."""


@dataclass(frozen=True)
class Trace:
    """All calls for one batch, in order, and the first use of each tensor, in the same clock."""

    calls: tuple[Call, ...]
    first_use: tuple[tuple[str, int], ...]


@dataclass
class Plan:
    """For a changed layer, which calls come before it, and what to do about them."""

    before: dict[Place, int] = field(default_factory=dict)
    """Calls that are over when the layer is first used, with their position in the trace."""
    needed: set[Place] = field(default_factory=set)
    later: dict[Place, list[Place]] = field(default_factory=dict)
    """The children that follow one in a Sequential; where one of them is known, nothing uses what comes before."""


class Uses(TorchFunctionMode):
    """Tells of every tensor that a torch function takes."""

    def __init__(self, tell: Callable[[Tensor], None]) -> None:
        super().__init__()
        self._tell = tell

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """As torch calls it."""
        for tensor in tensors_in([args, kwargs or {}]):
            self._tell(tensor)
        return func(*args, **(kwargs or {}))


class Tracer:
    """Writes down the calls for one batch."""

    def __init__(self, hooked: list[bool]) -> None:
        self._hooked = hooked
        self._clock = 0
        self._open: list[int] = []
        self._calls: list[dict[str, Any]] = []
        self._outputs: list[list[tuple[Tensor, int]]] = []
        self._first_use: dict[str, int] = {}
        self.drew_random_numbers = False

    def use(self, name: str) -> None:
        """A tensor is used."""
        self._first_use.setdefault(name, self._tick())

    def call(self, place: Place, part: nn.Module, run: Callable[[], Any]) -> Any:
        """Run a part and write down what it does."""
        position = len(self._calls)
        parent = self._open[-1] if self._open else None
        self._calls.append({"place": place, "parent": parent, "hooked": self._hooked[place[0]]})
        self._outputs.append([])
        self._open.append(position)
        before, random = dict(vars(part)), _random_state() if parent is None else []
        output = run()
        self._open.pop()
        if parent is None and not all(map(torch.equal, random, _random_state())):
            self.drew_random_numbers = True
        now = vars(part)
        unchanged = before.keys() == now.keys() and all(now[name] is value for name, value in before.items())
        self._calls[position] |= {"end": self._tick(), "after": len(self._calls)}
        inside = self._calls[position + 1 :]
        calm = all(call["replayable"] and not call["hooked"] for call in inside)
        self._calls[position]["replayable"] = unchanged and calm
        self._outputs[position] = [(tensor, version_of(tensor)) for tensor in tensors_in(output)]
        return output

    def finish(self) -> Trace:
        """The record of the batch, which has ended."""
        calls = []
        for call, outputs in zip(self._calls, self._outputs, strict=True):
            mutated = any(tensor.is_inference() or version_of(tensor) != version for tensor, version in outputs)
            calls.append(Call(**call, mutated=mutated))
        return Trace(tuple(calls), tuple(sorted(self._first_use.items())))

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


def plan_for(trace: Trace, changed: frozenset[str], sequential: list[bool]) -> Plan:
    """What is over before any of the changed tensors is used; nothing, if one of them is never seen in use."""
    uses, plan = dict(trace.first_use), Plan()
    if not changed or changed - uses.keys():
        return plan
    cut = min(uses[name] for name in changed)
    over = {position: call for position, call in enumerate(trace.calls) if call.end < cut}
    plan.before = {call.place: position for position, call in over.items()}
    children: dict[int, list[Call]] = {}
    for call in over.values():
        # a call inside one that is passed over does not happen
        if call.replayable and not (call.parent in over and over[call.parent].replayable):
            plan.needed.add(call.place)
        if call.parent is not None and sequential[trace.calls[call.parent].place[0]]:
            children.setdefault(call.parent, []).append(call)
    for calls in children.values():
        if all(call.replayable and not call.hooked for call in calls):
            places = [call.place for call in calls]
            plan.later |= {place: places[index + 1 :] for index, place in enumerate(places)}
            plan.needed -= set(places[:-1])
    return plan


def version_of(tensor: Tensor) -> int:
    """How often it was changed in place; those of inference mode do not know."""
    return 0 if tensor.is_inference() else int(tensor._version)


def _random_state() -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else states  # type: ignore[no-untyped-call]
