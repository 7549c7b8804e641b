"""Which layers a network has, other values for one of them, how far it moved, and what of a metric it keeps.

Tensors, names and numbers only; how a network is evaluated is not known here.
"""

from __future__ import annotations

import copy
import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_robust.functional.averaging import State

Verdict = Literal["ambient", "critical", "undecided", "unchanged"]
# quantiles of Student's t at 97.5 % for 1 to 4 degrees of freedom, where the expansion is off by more than 0.003
_STUDENT = (12.706, 4.303, 3.182, 2.776)


@dataclass(frozen=True)
class Layer:
    """What is put back at once.

    Args:
        name: As in figures and tags.
        parameters: Names in the module's ``state_dict``; a tied tensor under its first name.
        buffers: Saved buffers likewise, such as the statistics of BatchNorm.
    """

    name: str
    parameters: tuple[str, ...]
    buffers: tuple[str, ...] = ()

    @property
    def tensors(self) -> tuple[str, ...]:
        """All names."""
        return self.parameters + self.buffers


def find_layers(module: nn.Module, groups: Sequence[str] | Mapping[str, str] | None = None) -> list[Layer]:
    r"""The layers of a network: modules with parameters of their own, or groups of them.

    A tensor that several modules share goes with each of them, and changes in all. BatchNorm is a layer with its
    affine parameters and its running statistics.

    Args:
        module: The network.
        groups: Regular expressions on module paths, each a group named by itself, or names with regular expressions.
            One that matches a path takes all that is inside it as well. None takes each module by itself.

    Raises:
        ValueError: If an expression is none or matches no module that has parameters; the message names near ones.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
        >>> [layer.name for layer in find_layers(net)]
        ['0', '2.0', '2.1']
        >>> find_layers(net, {"head": "2"})[0].buffers
        ('2.1.running_mean', '2.1.running_var', '2.1.num_batches_tracked')
    """
    own = _own_tensors(module)
    if groups is None:
        return _without_doubles([_joined(path or "(root)", [layer]) for path, layer in own.items()])
    named = groups.items() if isinstance(groups, Mapping) else [(pattern, pattern) for pattern in groups]
    return [_joined(name, _matching(own, pattern, type(module).__name__)) for name, pattern in named]


def whole(module: nn.Module) -> Layer:
    """All parameters and saved buffers as one layer."""
    return _joined("whole network", _own_tensors(module, only_with_parameters=False).values())


def permuted(initial: Mapping[str, Tensor], generator: torch.Generator) -> State:
    """Each tensor with its elements in random order: a fresh draw with exactly the marginal distribution of this one.

    Args:
        initial: Values at initialisation.
        generator: On the CPU.

    Example:
        >>> drawn = permuted({"w": torch.arange(4.0)}, torch.Generator().manual_seed(0))["w"]
        >>> drawn.sort().values
        tensor([0., 1., 2., 3.])
    """
    return {name: tensor.flatten()[_order(tensor, generator)].view_as(tensor) for name, tensor in initial.items()}


def reset(module: nn.Module, layer: Layer) -> State:
    """A fresh draw by ``reset_parameters`` of copies of the modules that make up a layer; torch's generator is used.

    Raises:
        ValueError: If one of them has no such method.
    """
    drawn: State = {}
    for path in dict.fromkeys(name.rpartition(".")[0] for name in layer.tensors):
        owner = module.get_submodule(path)
        require_reset(owner, path)
        twin = copy.deepcopy(owner).cpu()
        twin.reset_parameters()  # type: ignore[operator]
        tensors = dict([*twin.named_parameters(recurse=False), *twin.named_buffers(recurse=False)])
        prefix = f"{path}." if path else ""
        drawn |= {f"{prefix}{name}": tensor.detach() for name, tensor in tensors.items()}
    return {name: drawn[name] for name in layer.tensors}


def require_reset(owner: nn.Module, path: str) -> None:
    """Refuse modules that cannot draw their parameters anew.

    Raises:
        ValueError: Naming the other ways.
    """
    if not callable(getattr(owner, "reset_parameters", None)):
        raise ValueError(
            f"Expected {path or 'the module'!r} ({type(owner).__name__}) to have `reset_parameters`, to draw it anew, "
            "but it has none. Permute the initial values instead (randomise='permute'), give a `model_factory`, or "
            "leave it out of `layers`."
        )


def distance(initial: Mapping[str, Tensor], state: Mapping[str, Tensor], names: Iterable[str]) -> tuple[float, float]:
    r"""How far tensors moved: :math:`\|\theta - \theta_0\|_2 / \sqrt n` and :math:`\|\theta - \theta_0\|_\infty`.

    Example:
        >>> distance({"w": torch.zeros(2)}, {"w": torch.tensor([1.0, -7.0])}, ["w"])
        (5.0, 7.0)
    """
    moved = [state[name].double() - initial[name].double() for name in names]
    count = sum(each.numel() for each in moved)
    squares = sum(each.square().sum().item() for each in moved)
    return math.sqrt(squares / max(count, 1)), max(
        (each.abs().max().item() for each in moved if each.numel()), default=0.0
    )


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; NaN where that is not known."""

    value: float
    low: float = math.nan
    high: float = math.nan


def kept(cell: Sequence[float], trained: Sequence[float], initial: Sequence[float]) -> Estimate:
    r"""How much of what training gained in a metric is kept: 1 is all, 0 as much as the untrained network has.

    .. math:: \frac{m - m_0}{m_T - m_0}

    It is the same for metrics that grow and that shrink. The interval is that of a ratio of sums over batches (the
    linearised, or delta, method, with Student's t): batches are what was sampled, and the same ones for all three.

    Args:
        cell: What each batch adds to the metric, with the layer put back.
        trained: Likewise as trained.
        initial: Likewise for the network at initialisation.

    Example:
        >>> kept([0.5, 0.5, 0.75, 0.75], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5])
        Estimate(value=0.5, low=0.5, high=0.5)
    """
    gained = [end - start for end, start in zip(trained, initial, strict=True)]
    left = [now - start for now, start in zip(cell, initial, strict=True)]
    gain, count = math.fsum(gained), len(gained)
    if gain == 0:
        return Estimate(math.nan)
    value = math.fsum(left) / gain
    if count < 2:
        return Estimate(value)
    residuals = math.fsum((part - value * whole) ** 2 for part, whole in zip(left, gained, strict=True))
    half = student(count - 1) * math.sqrt(count / (count - 1) * residuals) / abs(gain)
    return Estimate(value, value - half, value + half)


def over_draws(values: Sequence[float]) -> Estimate:
    """Mean of independent draws with its interval.

    Example:
        >>> over_draws([1.0, 3.0])
        Estimate(value=2.0, low=-10.706, high=14.706)
    """
    mean, count = math.fsum(values) / len(values), len(values)
    if count < 2:
        return Estimate(mean)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = student(count - 1) * spread / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half)


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t (Abramowitz and Stegun 26.7.5 beyond 4 degrees of freedom).

    Example:
        >>> round(student(9), 2), round(student(1000), 2)
        (2.26, 1.96)
    """
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z, n = 1.959964, freedom
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3


def judge(share: Estimate, threshold: float) -> Verdict:
    """Ambient if the whole interval of what is kept is at least the threshold, critical if it is below, else undecided.

    Where no interval is known the value decides.

    Example:
        >>> judge(Estimate(0.99, 0.97, 1.01), 0.9), judge(Estimate(0.3), 0.9), judge(Estimate(0.9, 0.8, 1.0), 0.9)
        ('ambient', 'critical', 'undecided')
    """
    low, high = (share.value if math.isnan(end) else end for end in (share.low, share.high))
    if low >= threshold:
        return "ambient"
    return "critical" if high < threshold else "undecided"


def _own_tensors(module: nn.Module, *, only_with_parameters: bool = True) -> dict[str, Layer]:
    """By module path, what belongs to that module itself."""
    first = {id(t): name for name, t in [*module.named_buffers(), *module.named_parameters()]}
    saved = set(module.state_dict())
    found = {}
    for path, part in module.named_modules():
        prefix = f"{path}." if path else ""
        parameters, buffers = (
            tuple(first[id(tensor)] for name, tensor in each if f"{prefix}{name}" in saved)
            for each in (part.named_parameters(recurse=False), part.named_buffers(recurse=False))
        )
        if parameters or (buffers and not only_with_parameters):
            found[path] = Layer(path, parameters, buffers)
    return found


def _joined(name: str, layers: Iterable[Layer]) -> Layer:
    layers = list(layers)
    parameters = dict.fromkeys(each for layer in layers for each in layer.parameters)
    buffers = dict.fromkeys(each for layer in layers for each in layer.buffers)
    return Layer(name, tuple(parameters), tuple(buffers))


def _without_doubles(layers: list[Layer]) -> list[Layer]:
    """Layers that are one and the same by their ties, once."""
    first: dict[tuple[str, ...], Layer] = {}
    for layer in layers:
        first.setdefault(layer.tensors, layer)
    return list(first.values())


def _matching(own: Mapping[str, Layer], pattern: str, network: str) -> list[Layer]:
    try:
        inside = re.compile(rf"(?:{pattern})(?:\..+)?")
    except re.error as error:
        raise ValueError(f"Expected regular expressions as `layers`, but got {pattern!r}: {error}.") from error
    found = [layer for path, layer in own.items() if inside.fullmatch(path)]
    if not found:
        paths = {path.rsplit(".", cut)[0] for path in own for cut in range(path.count(".") + 1)} - {""}
        near = difflib.get_close_matches(pattern, sorted(paths), 3, 0.4) or sorted(paths)[:8]
        raise ValueError(
            f"Expected `layers` to match modules of {network} that have parameters, but {pattern!r} matches none. "
            f"Near ones are {', '.join(map(repr, near))}."
        )
    return found


def _order(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
