"""The activations of a network while it runs: where they are, looking at them, changing them.

What is computed from them stands in ``functional/datapath.py``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_robust.functional.weights import Weights
from lightning_robust.layers import find_layers
from lightning_robust.structures import map_tensors, rebuild, tensors_in

Visit = Callable[[int, Tensor], Tensor | None]
"""Takes the position of a point and its activations; what it returns stands in for them."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_CHANNELS_SECOND = (*_BATCH_NORMS, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_NORMS = (*_CHANNELS_SECOND, nn.LayerNorm)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding)


@dataclass(frozen=True)
class Point:
    """One place in the computation.

    Args:
        name: Path of the layer; with ``#2`` for its second call in a forward pass, and so on.
        path: Of the module whose output is meant: the layer's own, or the normalisation right behind it.
        call: Its how many-th call.
        dim: Which dimension counts channels.
        channels: How many there are.
        by_sample: Whether the first dimension counts the samples.
    """

    name: str
    path: str
    call: int
    dim: int
    channels: int
    by_sample: bool


def find_points(
    module: nn.Module, run: Callable[[], Any], samples: int, layers: list[str] | None = None
) -> list[Point]:
    r"""Where the layers of a network give their activations, in the order in which they do.

    A normalisation that takes the output of a layer as it is belongs to that layer: the activations are those behind
    it. Layers that ``run`` does not call are left out.

    Args:
        module: The network.
        run: One forward pass of it.
        samples: How many samples go through in it.
        layers: Regular expressions on module paths; None takes all modules with weights of two or more dimensions.

    Raises:
        ValueError: If an expression matches no module that has parameters (the message names near ones), or ``run``
            calls none.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)).eval()
        >>> [(p.name, p.path, p.channels) for p in find_points(net, lambda: net(torch.zeros(4, 3, 1, 1)), 4)]
        [('0', '1', 8), ('4', '4', 2)]
    """
    paths = _wanted(module, layers)
    found: list[Point] = []
    counts: dict[str, int] = {}
    last: list[Any] = [None]

    def note(path: str, part: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        counts[path] = call = counts.get(path, 0) + 1
        tensor = _main(output)
        if tensor is None:
            return
        behind = isinstance(part, _NORMS) and bool(found) and given and given[0] is last[0]
        if behind or path in paths:
            dim = _channel_dim(part, tensor)
            name = found.pop().name if behind else _named(path, call)
            found.append(Point(name, path, call, dim, tensor.shape[dim], len(tensor) == samples))
            last[0] = tensor

    with ExitStack() as stack:
        for path, part in module.named_modules():
            if path in paths or isinstance(part, _NORMS):
                handle = part.register_forward_hook(
                    lambda part, given, output, path=path: note(path, part, given, output)
                )
                stack.callback(handle.remove)
        run()
    if not found:
        raise ValueError(
            f"Expected `forward` of {type(module).__name__} to call layers, but it called none of {sorted(paths)[:8]}. "
            "Set `layers` to modules that it calls."
        )
    return found


@contextmanager
def visiting(module: nn.Module, points: Sequence[Point], visit: Visit) -> Iterator[None]:
    """Inside the block, which holds one forward pass, ``visit`` sees the activations at each point."""
    places = {(point.path, point.call): index for index, point in enumerate(points)}
    counts: dict[str, int] = {}

    def hook(path: str, output: Any) -> Any:
        counts[path] = counts.get(path, 0) + 1
        index, tensor = places.get((path, counts[path])), _main(output)
        new = None if index is None or tensor is None else visit(index, tensor)
        if new is None:
            return output
        return rebuild(output, iter([new if each is tensor else each for each in tensors_in(output)]))

    with ExitStack() as stack:
        for path in dict.fromkeys(point.path for point in points):
            part = module.get_submodule(path)
            handle = part.register_forward_hook(lambda _, __, output, path=path: hook(path, output))
            stack.callback(handle.remove)
        yield


def gated(module: nn.Module, points: Sequence[Point], gates: Sequence[Tensor]) -> Any:
    """Inside the block, which holds one forward pass, channels are multiplied by gates, ``(N, C)`` or ``(1, C)``."""

    def visit(index: int, tensor: Tensor) -> Tensor:
        shape = [1] * tensor.ndim
        shape[0], shape[points[index].dim] = gates[index].shape
        return tensor * gates[index].to(tensor.dtype).reshape(shape)

    return visiting(module, points, visit)


@contextmanager
def rounded(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside the block, weights and what modules without submodules take and give are rounded to another precision.

    Each is computed in the type that it has, from rounded values: sums are accumulated in fp32, as tensor cores do.
    What ``forward`` computes between modules is not rounded, buffers are not either.
    """

    def once(tensor: Tensor) -> Tensor:
        return tensor.to(dtype).to(tensor.dtype) if tensor.is_floating_point() else tensor

    names = [name for name, parameter in module.named_parameters() if parameter.is_floating_point()]
    with ExitStack() as stack:
        if names:
            weights = Weights(module, names)
            stack.enter_context(weights.exchanged([once(each.detach()) for each in weights.tensors()]))
        for part in [part for part in module.modules() if not any(part.children())]:
            for handle in (
                part.register_forward_pre_hook(lambda _, given: map_tensors(once, given)),
                part.register_forward_hook(lambda _, __, output: map_tensors(once, output)),
            ):
                stack.callback(handle.remove)
        yield


def eager() -> Any:
    """Inside the block, compiled modules run as they are written, so that hooks see them."""
    # where nothing was compiled, the compiler is not imported for that
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _wanted(module: nn.Module, layers: list[str] | None) -> set[str]:
    own = {path: list(part.parameters(recurse=False)) for path, part in module.named_modules()}
    if layers is None:
        return {path for path, parameters in own.items() if any(p.ndim > 1 for p in parameters)}
    find_layers(module, layers)
    inside = [re.compile(rf"(?:{pattern})(?:\..+)?") for pattern in layers]
    return {path for path, parameters in own.items() if parameters and any(p.fullmatch(path) for p in inside)}


def _named(path: str, call: int) -> str:
    name = path.replace("_orig_mod.", "") or "(root)"
    return name if call == 1 else f"{name}#{call}"


def _main(output: Any) -> Tensor | None:
    """The first tensor of activations in what a module returned."""
    return next((t for t in tensors_in(output) if t.is_floating_point() and t.ndim > 1), None)


def _channel_dim(part: nn.Module, tensor: Tensor) -> int:
    if isinstance(part, _CONVOLUTIONS + _CHANNELS_SECOND):
        return 1
    return 1 if tensor.ndim > 3 and not isinstance(part, _CHANNELS_LAST) else tensor.ndim - 1
