"""Other values for one layer, how far it moved, and what of a metric is kept without it.

Tensors, names and numbers only; how a network is evaluated is not known here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_robust.functional.averaging import State
from lightning_robust.layers import Layer
from lightning_robust.statistics import Estimate, student

Verdict = Literal["ambient", "critical", "undecided", "unchanged"]


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


def _order(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
