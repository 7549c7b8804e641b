"""One training step of the host as terms of the objective see it, in which equal inputs are passed through once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_robust.harness.inputs import find_target, first_input
from lightning_robust.harness.quiet import muted
from lightning_robust.harness.replacement import replaced
from lightning_robust.harness.steps import loss_in
from lightning_robust.structures import Key, get_item, map_tensors, rebuild, replace_items, tensors_in

if TYPE_CHECKING:
    from lightning_robust.mixins.objective import ObjectiveMixin


def find_inputs(module: ObjectiveMixin, batch: Any) -> Key:
    """Where the inputs are in a batch of labelled samples.

    Raises:
        MisconfigurationException: If that cannot be inferred.
    """
    return first_input(module, batch, module.output_method) if module.input_key is None else module.input_key


def find_targets(module: ObjectiveMixin, batch: Any) -> Key:
    """Where the targets are.

    Raises:
        MisconfigurationException: If that cannot be inferred.
    """
    return find_target(batch, module.target_key)


class HostStep:
    """One training step of the host, with the outputs that its loss is computed from.

    These are the outputs of its method ``logits`` if it has one, else of ``forward``. That method keeps what it
    computes, and where it is called with the very same tensor for another loss, it returns what it kept: so several
    losses of the same inputs cost one pass. A host that passes its inputs twice in a step gets two passes.

    Args:
        module: The module.
        host: Its own training step.
        batch: The labelled part of the batch, which the host's loss is for; None if there is none.
        whole: The batch as the loader gives it.
        batch_idx: Index of the batch.

    Raises:
        TypeError: If there is no tensor at ``input_key``.
    """

    def __init__(
        self, module: ObjectiveMixin, host: Callable[[Any, int], Any], batch: Any, whole: Any, batch_idx: int
    ) -> None:
        self.module, self.batch, self.whole = module, batch, whole
        self.extras: list[Tensor] = []
        """Inputs that join the host's own in its forward pass."""
        self.passes = 1
        """How many passes these share, each with a part of the samples of all of them."""
        self.around: list[AbstractContextManager[Any]] = []
        """Entered around the host's own step."""
        self._host, self._batch_idx = host, batch_idx
        self._method = module.output_method
        self._passes: list[tuple[Tensor, Any]] = []
        self._used: set[int] = set()
        if batch is not None:
            self.inputs = tensor_inputs(self.module, self.batch)

    @property
    def targets(self) -> Any:
        """What the host's loss compares with."""
        return get_item(self.batch, find_targets(self.module, self.batch))

    def find_targets(self) -> tuple[Key, Any] | None:
        """Where the targets are, and what they are; None for a batch that has none under a known name."""
        try:
            key = find_targets(self.module, self.batch)
        except MisconfigurationException:
            return None
        return key, get_item(self.batch, key)

    def of(self, batch: Any) -> HostStep:
        """The step of another batch, with passes of its own."""
        return HostStep(self.module, self._host, batch, batch, self._batch_idx)

    def has_passed(self, inputs: Tensor) -> bool:
        """Whether this very tensor has gone through the host's method."""
        return any(seen is inputs for seen, _ in self._passes)

    def outputs_of(self, inputs: Tensor) -> Any:
        """What the host's method gives for inputs, kept or in a pass of their own."""
        kept = [outputs for seen, outputs in self._passes if seen is inputs]
        if kept:
            return kept[0]
        outputs = getattr(self.module, self._method)(inputs)
        self._passes.append((inputs, outputs))
        return outputs

    def forward_of(self, inputs: Tensor) -> Any:
        """What ``forward`` returns for inputs; it takes the kept outputs where it goes through the host's method."""
        if self._method == "forward":
            return self.outputs_of(inputs)
        with self._sharing():
            self._used.clear()
            return self.module(inputs)

    def run(self) -> Any:
        """The output of the host's training step on its own batch; None where there is no labelled sample."""
        if self.batch is None:
            return None
        with ExitStack() as stack:
            stack.enter_context(self._sharing())
            for context in self.around:
                stack.enter_context(context)
            return self._call(self.batch)

    def losses_of(self, inputs: Tensor, targets: Sequence[Any]) -> list[Tensor]:
        """The host's loss of other inputs with each of several targets; nothing is logged."""
        key = find_targets(self.module, self.batch)
        return self._losses(inputs, [{key: each} for each in targets])

    def loss_of(self, inputs: Tensor) -> Tensor:
        """The host's loss of other inputs with the batch's own targets; nothing is logged."""
        return self._losses(inputs, [{}])[0]

    def _losses(self, inputs: Tensor, targets: Sequence[dict[Key, Any]]) -> list[Tensor]:
        key = find_inputs(self.module, self.batch)
        batches = [replace_items(self.batch, {key: inputs, **each}) for each in targets]
        with self._sharing(), muted(self.module):
            return [loss_in(self._call(batch)) for batch in batches]

    def _call(self, batch: Any) -> Any:
        self._used.clear()
        return self._host(batch, self._batch_idx)

    @contextmanager
    def _sharing(self) -> Iterator[None]:
        """Inside the block, the host's method returns the outputs it kept for the very same tensor."""
        compute = getattr(self.module, self._method)

        def method(*args: Any, **kwargs: Any) -> Any:
            if len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
                return compute(*args, **kwargs)
            for place, (seen, outputs) in enumerate(self._passes):
                if args[0] is seen and place not in self._used:
                    self._used.add(place)
                    return outputs
            place = len(self._passes)
            self._used.add(place)
            self._passes += self._pass(compute, args[0])
            return self._passes[place][1]

        with replaced(self.module, **{self._method: method}):
            yield

    def _pass(self, compute: Callable[[Tensor], Any], inputs: Tensor) -> list[tuple[Tensor, Any]]:
        """Inputs with their outputs; in the host's own first pass those of the extra inputs too."""
        if not self.extras or self._passes or inputs is not self.inputs:
            return [(inputs, compute(inputs))]
        parts = [inputs, *self.extras]
        shares = list(zip(*(part.chunk(self.passes) for part in parts), strict=True))
        outputs = zip(*(_pass_together(compute, share) for share in shares), strict=True)
        return [(part, _join_outputs(each)) for part, each in zip(parts, outputs, strict=True)]


def tensor_inputs(module: ObjectiveMixin, batch: Any) -> Tensor:
    """The inputs of a batch.

    Raises:
        TypeError: If they are no tensor.
    """
    key = find_inputs(module, batch)
    inputs = get_item(batch, key)
    if not isinstance(inputs, Tensor):
        raise TypeError(
            f"Expected a tensor at input_key={key!r}, but got {type(inputs).__name__}. Set `input_key` to the pictures "
            "of a batch."
        )
    return inputs


def _pass_together(compute: Callable[[Tensor], Any], parts: Sequence[Tensor]) -> list[Any]:
    """The outputs for several inputs, computed in one pass."""
    whole, found, start = compute(torch.cat(list(parts))), [], 0
    for part in parts:
        rows = slice(start, start := start + len(part))
        found.append(map_tensors(itemgetter(rows), whole))
    return found


def _join_outputs(parts: Sequence[Any]) -> Any:
    """The outputs for all samples out of those for some."""
    if len(parts) == 1:
        return parts[0]
    return rebuild(parts[0], iter([torch.cat(rows) for rows in zip(*map(tensors_in, parts), strict=True)]))


def require_inputs_alone(module: nn.Module, method: str, remedy: str) -> None:
    """Refuse a method that needs more than the inputs of a batch, or takes none by position.

    Args:
        module: The host.
        method: Name of its method.
        remedy: The method to define instead, as ``"logits(inputs)"``.

    Raises:
        MisconfigurationException: Naming the parameters that it has.

    Example:
        >>> require_inputs_alone(nn.Identity(), "forward", "logits(inputs)")
    """
    signature = inspect.signature(getattr(module, method))
    try:
        signature.bind(None)
    except TypeError as error:
        raise MisconfigurationException(
            f"Expected {type(module).__name__}.{method} to take the inputs of a batch alone, but it is "
            f"{method}{signature}. Define a method `{remedy}`."
        ) from error
