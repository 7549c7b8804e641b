"""The layers of a module: which tensors belong to each, by module path or by a group of paths."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from lightning_robust.suggest import nearest


@dataclass(frozen=True)
class Layer:
    """A group of tensors that is treated as one.

    Args:
        name: As in figures and tags.
        parameters: Names in the module's ``state_dict``; a tied tensor under its first name.
        buffers: Names of saved buffers, such as the statistics of BatchNorm.
    """

    name: str
    parameters: tuple[str, ...]
    buffers: tuple[str, ...] = ()

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of parameters and buffers."""
        return self.parameters + self.buffers


def is_layer_norm(module: nn.Module) -> bool:
    """Whether a module normalises over several dimensions, and has a scale of their shape that is no layer's weight.

    Example:
        >>> is_layer_norm(nn.LayerNorm([3, 8, 8])), is_layer_norm(nn.Linear(2, 2))
        (True, False)
    """
    return hasattr(module, "normalized_shape")


def find_layers(module: nn.Module, groups: Sequence[str] | Mapping[str, str] | None = None) -> list[Layer]:
    r"""The layers of a network: modules with parameters of their own, or groups of them.

    A tensor that several modules share goes with each of them, and changes in all. BatchNorm is a layer with its
    affine parameters and its running statistics.

    Args:
        module: The network.
        groups: Regular expressions on module paths, each a group named by itself, or names with regular expressions.
            One that matches a path takes all that is inside it as well. None takes each module by itself.

    Raises:
        ValueError: If there is no expression, or one is invalid or matches no module with parameters; the message names
            near ones.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
        >>> [layer.name for layer in find_layers(net)]
        ['0', '2.0', '2.1']
        >>> find_layers(net, {"head": "2"})[0].buffers
        ('2.1.running_mean', '2.1.running_var', '2.1.num_batches_tracked')
    """
    modules = _modules_with_tensors(module)
    if groups is None:
        first: dict[tuple[str, ...], Layer] = {}
        for path, layer in modules.items():
            # ties can make several modules the same layer
            first.setdefault(layer.tensors, _join(path or "(root)", [layer]))
        return list(first.values())
    if not groups:
        raise ValueError(f"Expected names of layers or None for all of them, but got {groups!r}.")
    named = groups.items() if isinstance(groups, Mapping) else [(pattern, pattern) for pattern in groups]
    return [_join(name, _match(modules, pattern, type(module).__name__)) for name, pattern in named]


def match_modules(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Paths of the modules with parameters that regular expressions match, and of those inside of them.

    Args:
        module: The network.
        patterns: Regular expressions on module paths.

    Raises:
        ValueError: If an expression is invalid or matches nothing; the message names near paths.

    Example:
        >>> match_modules(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))), ["1"])
        ['1.0']
    """
    modules = _modules_with_tensors(module)
    return [layer.name for pattern in patterns for layer in _match(modules, pattern, type(module).__name__)]


def whole(module: nn.Module) -> Layer:
    """All parameters and saved buffers as one layer.

    Example:
        >>> whole(nn.Linear(2, 2))
        Layer(name='whole network', parameters=('weight', 'bias'), buffers=())
    """
    return _join("whole network", _modules_with_tensors(module, only_with_parameters=False).values())


def _modules_with_tensors(module: nn.Module, *, only_with_parameters: bool = True) -> dict[str, Layer]:
    """By path, the parameters and saved buffers that a module holds itself."""
    first = {id(t): name for name, t in [*module.named_buffers(), *module.named_parameters()]}
    saved = set(module.state_dict())
    layers = {}
    for path, part in module.named_modules():
        prefix = f"{path}." if path else ""
        parameters, buffers = (
            tuple(first[id(tensor)] for name, tensor in each if f"{prefix}{name}" in saved)
            for each in (part.named_parameters(recurse=False), part.named_buffers(recurse=False))
        )
        if parameters or (buffers and not only_with_parameters):
            layers[path] = Layer(path, parameters, buffers)
    return layers


def _join(name: str, layers: Iterable[Layer]) -> Layer:
    layers = list(layers)
    parameters = dict.fromkeys(each for layer in layers for each in layer.parameters)
    buffers = dict.fromkeys(each for layer in layers for each in layer.buffers)
    return Layer(name, tuple(parameters), tuple(buffers))


def _match(modules: Mapping[str, Layer], pattern: str, network: str) -> list[Layer]:
    try:
        inside = re.compile(rf"(?:{pattern})(?:\..+)?")
    except re.error as error:
        raise ValueError(f"Expected regular expressions as `layers`, but got {pattern!r}: {error}.") from error
    matches = [layer for path, layer in modules.items() if inside.fullmatch(path)]
    if not matches:
        paths = {path.rsplit(".", cut)[0] for path in modules for cut in range(path.count(".") + 1)} - {""}
        near = nearest(pattern, sorted(paths)) or sorted(paths)[:8]
        raise ValueError(
            f"Expected `layers` to match modules of {network} that have parameters, but {pattern!r} matches none. "
            f"Near ones are {', '.join(map(repr, near))}."
        )
    return matches
