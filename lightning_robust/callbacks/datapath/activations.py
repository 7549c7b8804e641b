"""The activations of a network while it runs: where they are, looking at them, changing them."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_robust.functional.weights import Weights
from lightning_robust.harness.compat import compiler_is_loaded, without_compiled_prefix
from lightning_robust.layers import match_modules
from lightning_robust.structures import map_tensors, rebuild, tensors_in

Visit = Callable[[int, Tensor], Tensor | None]
"""Takes the position of a point and its activations; what it returns takes their place."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_CHANNELS_SECOND = (*_BATCH_NORMS, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_NORMS = (*_CHANNELS_SECOND, nn.LayerNorm)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding)


@dataclass(frozen=True)
class ActivationPoint:
    """One place in the computation.

    Args:
        name: Path of the layer; with ``#2`` for its second call in a forward pass, and so on.
        path: Path of the module that gives the activations: the layer, or the normalisation right behind it.
        call: The number of the call in a forward pass, from 1.
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
) -> list[ActivationPoint]:
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
    paths = _layer_paths(module, layers)
    finder = _PointFinder(paths, samples)
    with ExitStack() as stack:
        for path, part in module.named_modules():
            if path in paths or isinstance(part, _NORMS):
                stack.callback(part.register_forward_hook(functools.partial(finder.note, path)).remove)
        run()
    if not finder.points:
        raise ValueError(
            f"Expected `forward` of {type(module).__name__} to call layers, but it called none of {sorted(paths)[:8]}. "
            "Set `layers` to modules that it calls."
        )
    return finder.points


class _PointFinder:
    """Notes where the layers at some paths give their activations."""

    def __init__(self, paths: set[str], samples: int) -> None:
        self.points: list[ActivationPoint] = []
        self._paths, self._samples = paths, samples
        self._calls: Counter[str] = Counter()
        self._last: Tensor | None = None
        self._version = 0

    def note(self, path: str, part: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """A forward hook, once its path is bound."""
        self._calls[path] += 1
        tensor = _activations_in(output)
        if tensor is None:
            return
        name = self._name(path, part, inputs)
        if name is not None:
            dim = _channel_dim(part, tensor)
            by_sample = len(tensor) == self._samples
            point = ActivationPoint(name, path, self._calls[path], dim, tensor.shape[dim], by_sample)
            self.points.append(point)
            self._last, self._version = tensor, tensor._version

    def _name(self, path: str, part: nn.Module, inputs: tuple[Any, ...]) -> str | None:
        """The layer's own name; that of the layer before for a normalisation of its output; None for other modules."""
        behind = inputs and inputs[0] is self._last and self._last._version == self._version  # nothing in place between
        if isinstance(part, _NORMS) and self.points and behind:
            return self.points.pop().name
        return _name_call(path, self._calls[path]) if path in self._paths else None


@contextmanager
def visiting(module: nn.Module, points: Sequence[ActivationPoint], visit: Visit) -> Iterator[None]:
    """Inside the block, which holds one forward pass, ``visit`` sees the activations at each point."""
    places = {(point.path, point.call): index for index, point in enumerate(points)}
    calls: Counter[str] = Counter()

    def hook(path: str, _: nn.Module, __: Any, output: Any) -> Any:
        calls[path] += 1
        index, tensor = places.get((path, calls[path])), _activations_in(output)
        new = None if index is None or tensor is None else visit(index, tensor)
        if new is None:
            return output
        return rebuild(output, iter([new if each is tensor else each for each in tensors_in(output)]))

    with ExitStack() as stack:
        for path in dict.fromkeys(point.path for point in points):
            part = module.get_submodule(path)
            stack.callback(part.register_forward_hook(functools.partial(hook, path)).remove)
        yield


def gated(module: nn.Module, points: Sequence[ActivationPoint], gates: Sequence[Tensor]) -> Any:
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
    return torch.compiler.set_stance("force_eager") if compiler_is_loaded() else nullcontext()


def _layer_paths(module: nn.Module, layers: list[str] | None) -> set[str]:
    if layers is not None:
        return set(match_modules(module, layers))
    return {
        path
        for path, part in module.named_modules()
        if any(parameter.ndim > 1 for parameter in part.parameters(recurse=False))
    }


def _name_call(path: str, call: int) -> str:
    name = without_compiled_prefix(path) or "(root)"
    return name if call == 1 else f"{name}#{call}"


def _activations_in(output: Any) -> Tensor | None:
    """The first tensor of activations in what a module returned."""
    return next((t for t in tensors_in(output) if t.is_floating_point() and t.ndim > 1), None)


def _channel_dim(part: nn.Module, tensor: Tensor) -> int:
    if isinstance(part, _CONVOLUTIONS + _CHANNELS_SECOND):
        return 1
    return 1 if tensor.ndim > 3 and not isinstance(part, _CHANNELS_LAST) else tensor.ndim - 1
