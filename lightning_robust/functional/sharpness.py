"""How much the loss curves at some weights: the largest eigenvalue of its Hessian, by power iteration."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_robust.functional.averaging import State, require_same
from lightning_robust.functional.landscape import inner_product
from lightning_robust.functional.state_loss import StateLoss, batch_losses, require_finite_weights
from lightning_robust.number_types import has_mean, real_parts, type_of_mean

_Operator = Callable[[State], State]


@dataclass(frozen=True)
class Curvature:
    """The largest eigenvalue of a Hessian.

    Example:
        >>> Curvature(eigenvalue=2.0, residual=0.01, products=7, direction={}).eigenvalue
        2.0
    """

    eigenvalue: float
    """As far as it was found: never above the true one, but for rounding."""
    residual: float
    """Some eigenvalue lies no further from it than this."""
    products: int
    """Hessian-vector products that it took."""
    direction: State
    """The eigenvector, of length 1."""


def hessian_product(loss: StateLoss, state: State, direction: State) -> State:
    r"""The Hessian times a vector, by two backward passes: :math:`\nabla_w \big(\nabla_w L(w) \cdot v\big)`.

    Of complex weights the real and the imaginary parts are the variables.

    Args:
        loss: Of a state, differentiable twice; the graph of one batch at a time is in memory.
        state: :math:`w`.
        direction: :math:`v`, of the same names and shapes.

    Returns:
        A tensor for each tensor of the state that is no integer, of its type.

    Raises:
        ValueError: If names or shapes differ, there is no batch, or the loss has no derivative by any weight.

    Example:
        >>> hessian_product(lambda s: (s["w"] ** 3).sum(), {"w": torch.tensor([1.0, 2.0])}, {"w": torch.ones(2)})
        {'w': tensor([ 6., 12.])}
    """
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in _weights_in(state).items()}
    require_same(leaves, _weights_in(direction), "the direction")
    weights, vector = list(leaves.values()), [direction[name].detach().to(leaf) for name, leaf in leaves.items()]
    total, count = [torch.zeros_like(tensor) for tensor in vector], 0
    # the fused kernels of attention have no second derivative
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        for losses in batch_losses(loss, {**state, **leaves}):
            count += losses.numel()
            for part, summand in zip(total, _product(losses.sum(), weights, vector), strict=True):
                part += summand
    return {name: part / count for name, part in zip(leaves, total, strict=True)}


def _product(loss: Tensor, weights: list[Tensor], vector: list[Tensor]) -> tuple[Tensor, ...]:
    if not loss.requires_grad:
        raise ValueError(
            "Expected a loss with a derivative by the weights, but autograd knows none. Compute it from the tensors "
            "of the state it is given, without `detach`, `item` or `torch.no_grad`."
        )
    slopes = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
    along = sum((real_parts(slope) * real_parts(part)).sum() for slope, part in zip(slopes, vector, strict=True))
    if not isinstance(along, Tensor) or not along.requires_grad:
        return tuple(torch.zeros_like(tensor) for tensor in weights)  # linear in the weights
    return torch.autograd.grad(along, weights, materialize_grads=True)


def largest_curvature(
    loss: StateLoss,
    state: State,
    *,
    steps: int = 100,
    tolerance: float = 0.02,
    scales: State | None = None,
    generator: torch.Generator | None = None,
) -> Curvature:
    r"""The largest eigenvalue of the Hessian of the loss, by power iteration.

    .. math:: v \leftarrow \frac{H v}{\|H v\|}, \qquad \lambda = v \cdot H v

    until the residual :math:`\|H v - \lambda v\|` is at most ``tolerance`` times :math:`|\lambda|`. Where the
    eigenvalue of the largest magnitude is negative, a second iteration with :math:`H - \lambda I` finds the largest
    one.

    The eigenvalue itself is not the same for two rectified networks that are the same function, one layer as many times
    larger as the next one is smaller (`Dinh et al. 2017 <https://arxiv.org/abs/1703.04933>`_). That of
    :math:`S H S` with ``scales=filter_norms(state)`` is: curvature for steps that are a share of each filter, as for
    :func:`~lightning_robust.functional.landscape.random_direction` (as in adaptive sharpness, `Kwon et al. 2021
    <https://arxiv.org/abs/2102.11600>`_).

    Args:
        loss: Of a state, differentiable twice.
        state: The weights; give parameters alone. Integers are no weights.
        steps: Products at most, for each of the two iterations.
        tolerance: When to stop, relative to the eigenvalue.
        scales: :math:`S`, a diagonal: a factor for each weight.
        generator: Source of the start, on the CPU; torch's global one by default.

    Returns:
        The eigenvalue and how exact it is. One product is about two passes forward and two backward over the data.

    Raises:
        ValueError: For arguments out of range; if names or shapes differ, weights or second derivatives are not finite,
            or there is no batch.

    Example:
        >>> curvature = largest_curvature(lambda s: s["w"] @ (torch.tensor([1.0, 3.0]) * s["w"]), {"w": torch.ones(2)})
        >>> round(curvature.eigenvalue, 2)
        6.0
    """
    if steps < 1 or not tolerance > 0:
        raise ValueError(f"Expected steps of at least 1 and a positive tolerance, but got {steps} and {tolerance}.")
    require_finite_weights(state)
    weights = _weights_in(state)
    factors = weights if scales is None else _weights_in(scales)
    require_same(weights, factors, "the scales")
    require_finite_weights(factors, "the scales")
    start = {
        name: torch.randn(tensor.shape, generator=generator, dtype=type_of_mean(tensor.dtype, torch.float32)).to(tensor)
        for name, tensor in weights.items()
    }
    if scales is None:
        product = partial(hessian_product, loss, state)
    else:
        start = _stretched(start, {name: (factor != 0).to(factor) for name, factor in factors.items()})
        product = partial(_scaled_product, loss, state, factors)
    found = _dominant(product, start, steps, tolerance, 0.0)
    if found.eigenvalue < 0:
        first = found
        found = _dominant(product, start, steps, tolerance, first.eigenvalue)
        found = replace(found, products=first.products + found.products)
    return found


def _dominant(product: _Operator, start: State, steps: int, tolerance: float, shift: float) -> Curvature:
    """The eigenvalue that is furthest from ``shift``."""
    vector, eigenvalue, residual, number = _normed(start), 0.0, 0.0, 0
    for number in range(1, steps + 1):
        turned = product(vector)
        eigenvalue = inner_product(vector, turned)
        if not math.isfinite(eigenvalue):
            raise ValueError(
                "Expected finite second derivatives, but the product with the Hessian is not. Take fp32, smaller "
                "batches, or a loss that is finite at these weights."
            )
        rest = _less(turned, eigenvalue, vector)
        residual = inner_product(rest, rest) ** 0.5
        if residual <= tolerance * abs(eigenvalue - shift) or number == steps:
            break
        vector = _normed(_less(turned, shift, vector))
    return Curvature(eigenvalue, residual, number, vector)


def _scaled_product(loss: StateLoss, state: State, scales: State, vector: State) -> State:
    return _stretched(hessian_product(loss, state, _stretched(vector, scales)), scales)


def _weights_in(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if has_mean(tensor)}


def _stretched(state: State, factors: State) -> State:
    return {name: tensor * factors[name].detach() for name, tensor in state.items()}


def _less(state: State, factor: float, other: State) -> State:
    return {name: tensor - factor * other[name] for name, tensor in state.items()}


def _normed(state: State) -> State:
    length = inner_product(state, state) ** 0.5
    return {name: tensor / (length or 1.0) for name, tensor in state.items()}
