"""How far weights moved, how linear a model is around its initial weights, and one gradient step on its inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_robust.functional.attacks import fgsm
from lightning_robust.functional.averaging import State

Model = Callable[[State], Tensor]
"""Outputs ``(batch, ...)`` on fixed inputs as a function of the weights."""


@dataclass(frozen=True)
class Linearization:
    """How far a model is from linear in its weights.

    Args:
        gap: 0 is linear; NaN if the outputs did not change.
        method: ``"jvp"`` is exact, ``"difference"`` a central difference.

    Example:
        >>> linear = linearization_gap(lambda state: 2 * state["w"], {"w": torch.zeros(1)}, {"w": torch.ones(1)})
        >>> linear
        Linearization(gap=0.0, method='jvp')
    """

    gap: float
    method: Literal["jvp", "difference"]


def relative_movement(start: Mapping[str, Tensor], now: Mapping[str, Tensor], names: Iterable[str]) -> float:
    r""":math:`\|W - W_0\|_2 / \|W_0\|_2` over some tensors; NaN if all were zero at the start.

    Example:
        >>> relative_movement({"w": torch.ones(4)}, {"w": torch.full((4,), 1.5)}, ["w"])
        0.5
    """
    names = list(names)
    length = _length(start[name] for name in names)
    return _length(now[name] - start[name] for name in names) / length if length > 0 else math.nan


def neuron_movement(start: Mapping[str, Tensor], now: Mapping[str, Tensor], names: Iterable[str]) -> float:
    r"""The largest movement of the weights of a neuron, in units of one over the square root of the width.

    .. math:: C_0 = \sqrt m \max_s \|w_s - w_{s,0}\|_2

    With it, `Wang et al. 2022 <https://arxiv.org/abs/2207.00411>`_ say how lazy the hidden layer of
    :math:`m^{-1/2} \sum_s a_s \max(w_s \cdot x, 0)` is; in other parametrisations it is a number to compare runs of one
    network by. A neuron is an index of the first dimension, as in linear and convolutional layers.

    Returns:
        The largest over all tensors of two dimensions or more; NaN if there are none.

    Example:
        >>> neuron_movement({"w": torch.zeros(4, 2)}, {"w": torch.tensor([[3.0, 4.0]] + [[1.0, 0.0]] * 3)}, ["w"])
        10.0
    """
    movements = [
        math.sqrt(len(now[name])) * (now[name] - start[name]).flatten(1).norm(dim=1).max().item()
        for name in names
        if now[name].ndim >= 2 and now[name].numel()
    ]
    return max(movements, default=math.nan)


def linearization_gap(model: Model, start: State, now: State) -> Linearization:
    r"""How far the outputs are from those of the model linearised at the start, relative to how far they moved.

    .. math:: \frac{\|f(W) - f(W_0) - J(W_0) (W - W_0)\|_2}{\|f(W) - f(W_0)\|_2}

    The product with the Jacobian is exact, by one pass of forward-mode differentiation. Where an operation has none
    (fused attention, custom autograd functions), it is :func:`central_difference`, for two plain passes.

    Args:
        model: Outputs as a function of the weights; it must not change them or anything else.
        start: Weights at the start.
        now: Present weights, of the same names and shapes.

    Example:
        >>> square = lambda state: state["w"].square()
        >>> linearization_gap(square, {"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])})
        Linearization(gap=0.5, method='jvp')
    """
    direction = {name: now[name] - start[name] for name in start}
    with torch.no_grad():
        first, slope, method = _slope(model, start, direction)
        moved = model(now) - first
        size = moved.norm().item()
        gap = (moved - slope).norm().item() / size if size > 0 else math.nan
    return Linearization(gap, method)


def central_difference(model: Model, start: State, direction: State, relative: float = 1e-4) -> Tensor:
    r"""Directional derivative by two plain passes, at :math:`W_0 \pm h d` with :math:`\|h d\| = 10^{-4} \|W_0\|`.

    The step is relative to the weights, not to the direction: on a long displacement a fixed share of it would leave
    the region where the model is linear. Zero if the direction or the weights are.

    Example:
        >>> cube = lambda state: state["w"] ** 3
        >>> central_difference(cube, {"w": torch.tensor([2.0])}, {"w": torch.tensor([1.0])}).round(decimals=1)
        tensor([12.])
    """
    length = _length(direction.values())
    step = relative * _length(start.values()) / length if length > 0 else 0.0
    ahead, behind = (
        model({name: start[name] + sign * step * direction[name] for name in start}) for sign in (1.0, -1.0)
    )
    return (ahead - behind) / (2 * step) if step > 0 else torch.zeros_like(ahead)


def tangent_kernel(model: Model, state: State, signs: Tensor) -> Tensor:
    r"""Gram matrix of the gradients of randomly projected outputs with respect to the weights.

    .. math:: K_{ij} = \nabla_W (v_i \cdot f(x_i)) \cdot \nabla_W (v_j \cdot f(x_j))

    For independent random signs its mean is the neural tangent kernel, traced over outputs, on the diagonal, and zero
    beside it for several outputs; take the same signs for the kernels that are compared.

    Args:
        model: Outputs ``(batch, ...)``.
        state: Weights.
        signs: :math:`v`, of the outputs' shape.

    Returns:
        ``(batch, batch)``. One backward pass through the batch for each sample; holds a gradient for each.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
        >>> tangent_kernel(lambda state: x @ state["w"], {"w": torch.zeros(2, 1)}, torch.ones(2, 1))  # x @ x.T
        tensor([[1., 1.],
                [1., 5.]])
    """
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in state.items()}
    with torch.enable_grad():
        projected = (model(leaves) * signs).flatten(1).sum(1)
        rows = [
            torch.autograd.grad(value, list(leaves.values()), retain_graph=True, materialize_grads=True)
            for value in projected
        ]
    features = torch.stack([torch.cat([gradient.flatten() for gradient in row]) for row in rows])
    return features @ features.T


def alignment(one: Tensor, other: Tensor) -> float:
    r""":math:`\langle K, K' \rangle / (\|K\| \|K'\|)`: 1 for kernels that differ by a factor only.

    Example:
        >>> round(alignment(torch.eye(2), torch.tensor([[1.0, 1.0], [1.0, 1.0]])), 3)
        0.707
    """
    return ((one * other).sum() / (one.norm() * other.norm())).item()


def single_step(loss_fn: Callable[..., Any], inputs: Tensor, beta: float | Tensor) -> Tensor:
    r"""One step of gradient ascent of the length that is enough for lazily trained networks in theory.

    .. math:: x' = x + \beta \frac{\|x\|_2}{\sqrt d} \frac{\nabla_x L(x)}{\|\nabla_x L(x)\|_2}

    with :math:`d` the number of values in a sample: a step of the size of one typical coordinate. `Wang et al. 2022
    <https://arxiv.org/abs/2207.00411>`_ (after `Bubeck et al. 2021 <https://arxiv.org/abs/2104.03863>`_) prove for
    two-layer networks of suitable width that it changes the sign of the output.

    Args:
        loss_fn: As in :func:`~lightning_robust.functional.attacks.pgd`.
        inputs: ``(batch, ...)``, as the network takes them.
        beta: One number.

    Example:
        >>> single_step(lambda x: x.sum(1), torch.tensor([[1.0, 1.0, 1.0, 1.0]]), 1.0)
        tensor([[1.5000, 1.5000, 1.5000, 1.5000]])
    """
    flat = inputs.detach().flatten(1).float()
    radius = beta * (flat.norm(dim=1) / math.sqrt(max(flat.shape[1], 1))).reshape(-1, *[1] * (inputs.ndim - 1))
    return fgsm(loss_fn, inputs, radius.to(inputs), norm="l2")


def changed_predictions(before: Tensor, after: Tensor, targets: Tensor) -> float:
    """Share of the rightly predicted samples whose prediction changed; NaN if none was right.

    Args:
        before: Logits ``(batch, classes)``.
        after: Logits of the same samples later.
        targets: Classes ``(batch,)``.

    Example:
        >>> changed_predictions(torch.eye(3), torch.eye(3)[[0, 0, 0]], torch.tensor([0, 1, 1]))
        0.5
    """
    right = before.argmax(1) == targets
    moved = after.argmax(1) != before.argmax(1)
    return (moved & right).sum().item() / right.sum().item() if right.any() else math.nan


def _slope(model: Model, start: State, direction: State) -> tuple[Tensor, Tensor, Literal["jvp", "difference"]]:
    """Outputs at the start, and their derivative along the direction."""
    try:
        first, slope = torch.func.jvp(model, (start,), (direction,))[:2]
        return first, slope, "jvp"
    except torch.OutOfMemoryError:
        raise  # the other way needs as much
    except RuntimeError:
        return model(start), central_difference(model, start, direction), "difference"


def _length(tensors: Iterable[Tensor]) -> float:
    return math.hypot(*(tensor.norm().item() for tensor in tensors))
