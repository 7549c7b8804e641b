"""The loss around weights: along random directions, along the line between two sets of weights, and on a plane.

`Li et al. 2018, Visualizing the Loss Landscape of Neural Nets <https://arxiv.org/abs/1712.09913>`_;
`Goodfellow et al. 2015 <https://arxiv.org/abs/1412.6544>`_ for the line;
`Garipov et al. 2018 <https://arxiv.org/abs/1802.10026>`_ for the plane through three sets of weights.
How the loss of a module depends on its weights is :func:`~lightning_robust.functional.state_loss.module_loss`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from lightning_robust.functional.averaging import State, interpolate, require_same
from lightning_robust.functional.state_loss import StateLoss, mean_loss, require_finite_weights
from lightning_robust.number_types import has_mean, real_parts, type_of_mean


def inner_product(first: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The sum of the products of all numbers of two states, in fp64.

    Example:
        >>> inner_product({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 4.0])})
        11.0
    """
    return sum(
        float((real_parts(tensor).double() * real_parts(other[name]).double()).sum()) for name, tensor in first.items()
    )


def filter_norms(state: Mapping[str, Tensor]) -> State:
    r"""The length of the filter that each weight belongs to, in the shape of the weights.

    A filter is an index of the first dimension, in which linear and convolutional layers have their outputs. Biases,
    the parameters of normalisation layers and all else of fewer than two dimensions get 0, and so do integers.

    Example:
        >>> filter_norms({"w": torch.tensor([[3.0, 4.0], [0.0, 1.0]]), "b": torch.ones(2)})
        {'w': tensor([[5., 5.],
                [1., 1.]]), 'b': tensor([0., 0.])}
    """
    return {
        name: (
            torch.linalg.vector_norm(tensor.detach(), dim=list(range(1, tensor.ndim)), keepdim=True).expand_as(tensor)
            if has_mean(tensor) and tensor.ndim > 1
            else torch.zeros_like(tensor)
        )
        for name, tensor in state.items()
    }


def random_direction(state: Mapping[str, Tensor], generator: torch.Generator | None = None) -> State:
    r"""A random direction whose filters are as long as those of the weights.

    .. math:: d_i \leftarrow \frac{d_i}{\|d_i\|} \|w_i\| \qquad d_i \sim \mathcal N(0, 1)

    for each filter :math:`i`; see :func:`filter_norms` for what is one. Rectified networks stay the same function when
    a layer grows and the next one shrinks by a factor: a direction of this kind grows and shrinks with them, so that
    the loss along it stays the same too, which is what makes networks comparable. Tensors of fewer than two dimensions
    stay as they are, as in the paper's figures.

    Args:
        state: The weights.
        generator: Source of randomness, on the CPU; torch's global one by default. The same one gives networks of one
            architecture the same directions, but for the lengths.

    Raises:
        ValueError: If no tensor has two dimensions or more, or the weights are not finite.

    Example:
        >>> direction = random_direction({"w": torch.tensor([[3.0, 4.0]]), "b": torch.ones(1)})
        >>> round(direction["w"].norm().item(), 4), direction["b"].item()
        (5.0, 0.0)
    """
    require_finite_weights(state)
    norms = filter_norms(state)
    direction = {}
    for name, tensor in norms.items():
        if has_mean(tensor) and tensor.ndim > 1:
            kind = state[name].dtype
            drawn = torch.randn(tensor.shape, generator=generator, dtype=type_of_mean(kind, torch.float32))
            drawn = drawn.to(tensor.device, kind)
            own = filter_norms({name: drawn})[name].clamp(min=torch.finfo(drawn.dtype).tiny)
            direction[name] = drawn / own * tensor
        else:
            direction[name] = tensor
    if not any(part.any() for part in direction.values()):
        raise ValueError(
            "Expected weights with filters, floating-point tensors of two dimensions or more that are not zero, but "
            f"there are none among {len(direction)} tensors. Give the state of a whole network."
        )
    return direction


def loss_along(
    loss: StateLoss, state: State, direction: State, distances: Sequence[float]
) -> Float64[Tensor, " distances"]:
    r""":math:`L(w + t\,d)` for some distances :math:`t`.

    Args:
        loss: Of a state; :func:`~lightning_robust.functional.state_loss.module_loss` makes it of a module.
        state: :math:`w`.
        direction: :math:`d`, as of :func:`random_direction`; integers of the weights stay as they are.
        distances: :math:`t`; 0 are the weights themselves.

    Returns:
        The losses; NaN or infinite where the network overflows. One evaluation of the loss each.

    Raises:
        ValueError: If the direction has other names or shapes, numbers are not finite, or there are no distances.

    Example:
        >>> loss_along(lambda s: s["w"].square().sum(), {"w": torch.zeros(2)}, {"w": torch.ones(2)}, [-1.0, 0.0, 2.0])
        tensor([2., 0., 8.], dtype=torch.float64)
    """
    plane = WeightPlane(state, direction, {name: torch.zeros_like(tensor) for name, tensor in direction.items()})
    return loss_on_plane(loss, plane, distances, [0.0])[0]


def loss_between(
    loss: StateLoss, start: State, end: State, positions: Sequence[float]
) -> Float64[Tensor, " positions"]:
    r""":math:`L((1 - \alpha)\,w_0 + \alpha\,w_1)`: the loss along the line through two sets of weights.

    Args:
        loss: Of a state.
        start: :math:`w_0`, at 0, bit for bit.
        end: :math:`w_1`, at 1, bit for bit.
        positions: :math:`\alpha`; below 0 and above 1 the line goes on.

    Returns:
        The losses; NaN or infinite where the network overflows. One evaluation of the loss each.

    Raises:
        ValueError: If the two differ in names or shapes, numbers are not finite, or there are no positions.

    Example:
        >>> start, end = {"w": torch.tensor(-1.0)}, {"w": torch.tensor(1.0)}
        >>> loss_between(lambda state: state["w"].square(), start, end, [0.0, 0.5, 1.0, 2.0])
        tensor([1., 0., 1., 9.], dtype=torch.float64)
    """
    require_same(start, end, "the end of the line")
    require_finite_weights(start, "the start of the line")
    require_finite_weights(end, "the end of the line")
    _require_places("positions", positions)
    losses = [mean_loss(loss, interpolate(start, end, float(alpha))) for alpha in positions]
    return torch.tensor(losses, dtype=torch.float64)


@dataclass(frozen=True)
class WeightPlane:
    r"""The plane :math:`w + x\,d + y\,e` in the space of weights.

    Args:
        origin: :math:`w`.
        across: :math:`d`.
        up: :math:`e`, of the same names and shapes.

    Raises:
        ValueError: If names or shapes differ, or numbers are not finite.

    Example:
        >>> plane = WeightPlane({"w": torch.zeros(2)}, {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])})
        >>> plane.at(2.0, 3.0)
        {'w': tensor([2., 3.])}
    """

    origin: State
    across: State
    up: State

    def __post_init__(self) -> None:
        """Check names, shapes and numbers."""
        for direction, name in ((self.across, "the direction"), (self.up, "the second direction")):
            require_same(self.origin, direction, name)
            require_finite_weights(direction, name)
        require_finite_weights(self.origin, "the origin")

    @classmethod
    def through(cls, origin: State, second: State, third: State) -> WeightPlane:
        """The plane through three sets of weights, with two directions of length 1 at a right angle.

        ``second`` lies on the first axis, ``third`` above it. Lengths and angles are those of all that a state holds:
        give parameters alone, without running statistics.

        Raises:
            ValueError: If they differ in names or shapes, or lie on one line.
        """
        require_same(origin, second, "the second set of weights")
        require_same(origin, third, "the third set of weights")
        difference, further = _way_to(second, origin), _way_to(third, origin)
        across = _multiplied(difference, 1 / (inner_product(difference, difference) ** 0.5 or math.inf))
        along, whole = inner_product(further, across), inner_product(further, further) ** 0.5
        up = {name: tensor - along * across[name] for name, tensor in further.items()}
        height = inner_product(up, up) ** 0.5
        # what fp32 leaves of a vector less its own projection is rounding
        if not any(part.any() for part in across.values()) or height <= 1e-5 * whole:
            raise ValueError(
                "Expected three sets of weights that are not on one line, but two of them are equal or the third lies "
                "between them. Draw the loss along the line with `loss_between`."
            )
        return cls(origin, across, _multiplied(up, 1 / height))

    def at(self, x: float, y: float) -> State:
        """The weights at a place; integers are those of the origin."""
        return {
            name: tensor.detach() + x * self.across[name].detach() + y * self.up[name].detach()
            if has_mean(tensor)
            else tensor
            for name, tensor in self.origin.items()
        }

    def place(self, state: State) -> tuple[float, float]:
        """Where a set of weights stands on a plane of :meth:`through`: the foot of its perpendicular.

        Raises:
            ValueError: If names or shapes differ.
        """
        require_same(self.origin, state)
        difference = _way_to(state, self.origin)
        return inner_product(difference, self.across), inner_product(difference, self.up)


def loss_on_plane(
    loss: StateLoss, plane: WeightPlane, across: Sequence[float], up: Sequence[float]
) -> Float64[Tensor, "up across"]:
    """The loss at the places of a grid on a plane.

    Args:
        loss: Of a state.
        plane: The plane.
        across: Places along its first direction, the columns of the result.
        up: Places along its second direction, the rows.

    Returns:
        The losses; NaN or infinite where the network overflows. One evaluation of the loss each.

    Raises:
        ValueError: If places are not finite or there are none.

    Example:
        >>> plane = WeightPlane({"w": torch.zeros(2)}, {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])})
        >>> loss_on_plane(lambda s: s["w"] @ torch.tensor([1.0, 10.0]), plane, [0.0, 1.0], [0.0, 1.0, 2.0])
        tensor([[ 0.,  1.],
                [10., 11.],
                [20., 21.]], dtype=torch.float64)
    """
    _require_places("across", across)
    _require_places("up", up)
    losses = [[mean_loss(loss, plane.at(float(x), float(y))) for x in across] for y in up]
    return torch.tensor(losses, dtype=torch.float64)


def _require_places(argument: str, places: Sequence[float]) -> None:
    if not len(places) or not all(math.isfinite(place) for place in places):
        raise ValueError(f"Expected `{argument}` to be at least one finite number, but got {list(places)}.")


def _way_to(first: State, other: State) -> State:
    """Integers do not move."""
    return {
        name: tensor.detach() - other[name].detach() if has_mean(tensor) else torch.zeros_like(tensor)
        for name, tensor in first.items()
    }


def _multiplied(state: State, factor: float) -> State:
    return {name: factor * tensor if has_mean(tensor) else tensor for name, tensor in state.items()}
