"""Which rectified units a network switches on, and which of them other weights switch the other way.

Every rectifier is seen, whether it is called as a module or as a function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

RECTIFIERS = {
    *(torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, functional.relu, functional.relu6),
    *(functional.leaky_relu, functional.prelu, functional.rrelu, functional.elu, functional.selu, functional.celu),
    *(functional.gelu, functional.silu, functional.mish, functional.softplus, functional.hardswish),
}
"""Functions whose output changes its regime where their input changes its sign."""
Signs = list[tuple[str, Tensor]]
"""For each rectifier in the order of calls, the layer before it and where its input is positive."""


def activation_signs(run: Callable[[], Any], layers: Mapping[str, nn.Module]) -> Signs:
    """Where the inputs of the rectifiers are positive while a network runs, one byte for each.

    Args:
        run: Runs the network once.
        layers: Modules by name; a rectifier belongs to the last one that ended before it. Rectifiers before the first
            are left out.

    Example:
        >>> net = nn.Sequential(nn.Linear(1, 2), nn.ReLU())
        >>> _ = net[0].weight.data.copy_(torch.tensor([[1.0], [-1.0]])), net[0].bias.data.zero_()
        >>> activation_signs(lambda: net(torch.ones(1, 1)), {"first": net[0]})
        [('first', tensor([[ True, False]]))]
    """
    watch = _Watch()
    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_hook(watch.passing(name)).remove)
        with torch.no_grad(), watch:
            run()
    return watch.signs


def changed_signs(before: Signs, after: Signs) -> dict[str, tuple[int, int]]:
    """For each layer, how many signs changed and how many there are.

    Raises:
        ValueError: If the network did not go through the same rectifiers in both runs.

    Example:
        >>> off, on = torch.tensor([False, False]), torch.tensor([False, True])
        >>> changed_signs([("a", off)], [("a", on)])
        {'a': (1, 2)}
    """
    if _course(before) != _course(after):
        raise ValueError(
            "Expected the network to go through the same activations with both sets of weights, but it took another "
            "course. Signs cannot be compared where control flow depends on values."
        )
    counts: dict[str, tuple[int, int]] = {}
    for (name, one), (_, other) in zip(before, after, strict=True):
        changed, total = counts.get(name, (0, 0))
        counts[name] = changed + int((one != other).sum()), total + one.numel()
    return counts


class _Watch(TorchFunctionMode):
    """Sees every torch function that is called inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.signs: Signs = []
        self._layer: str | None = None

    def passing(self, name: str) -> Callable[..., None]:
        """A forward hook that remembers the layer."""

        def hook(*_: Any) -> None:
            self._layer = name

        return hook

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in RECTIFIERS and self._layer is not None:
            inputs = args[0] if args else kwargs["input"]
            # before the call, which may be in place
            self.signs.append((self._layer, inputs > 0))
        return func(*args, **(kwargs or {}))


def _course(signs: Sequence[tuple[str, Tensor]]) -> list[tuple[str, torch.Size]]:
    return [(name, positive.shape) for name, positive in signs]
