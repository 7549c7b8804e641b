"""Numbers of few bits: block floating point, as SWALP trains in, and weights by channel, as int8 engines do."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_robust.number_types import has_mean, real_parts

_LARGEST, _SMALLEST_STEP = 127, -126
"""Exponents of fp32: of the largest number, and of the smallest whose inverse is finite too."""


@torch.no_grad()
def quantize_block(
    tensor: Tensor,
    word_length: int,
    *,
    block_dim: int | None = None,
    rounding: Literal["stochastic", "nearest"] = "stochastic",
    generator: torch.Generator | None = None,
    out: Tensor | None = None,
) -> Tensor:
    r"""Round a tensor to block floating point: integers of ``word_length`` bits times one power of two a block.

    With :math:`E = \lfloor \log_2 \max |x| \rfloor` over a block and step :math:`s = 2^{E - (w - 2)}`:

    .. math:: Q(x) = s \cdot \operatorname{clamp}\!\left(\lfloor x / s + u \rfloor, -2^{w-1}, 2^{w-1} - 1\right)

    with :math:`u \sim U[0, 1)` for stochastic rounding, whose expectation is :math:`x` (but for the largest positive
    value of a block, which the clamp can only lower), and :math:`u = 1/2` for nearest (ties go up). :math:`E` is exact
    at powers of two (``frexp``; ``log2`` in fp32 is wrong at many of them).
    `SWALP, Yang et al. 2019 <https://arxiv.org/abs/1904.11943>`_. The dither has 24 bits.

    Args:
        tensor: Floating point or complex, any shape and device; of complex numbers both parts are rounded.
        word_length: Bits of an integer, sign included; 2 to 24.
        block_dim: Each index along this dimension has its own exponent; None gives the whole tensor one.
        rounding: How to round.
        generator: Source of the dither; torch's global one by default.
        out: Where to put the result; may be ``tensor`` itself.

    Returns:
        A tensor of the same type and shape whose values lie on the grid. Zeros stay zeros; blocks with a value that is
        not finite stay as they are, so that a divergence is not hidden.

    Raises:
        TypeError: For integers and bools.
        ValueError: For a word length out of range.

    Example:
        >>> quantize_block(torch.tensor([1.0, 0.3, -0.6]), 4, rounding="nearest")
        tensor([ 1.0000,  0.2500, -0.5000])
    """
    if not has_mean(tensor):
        raise TypeError(f"Expected a floating-point tensor, but got {tensor.dtype}. Integers need no quantising.")
    if not 2 <= word_length <= 24:
        raise ValueError(f"Expected `word_length` between 2 and 24 bits, but got {word_length}.")
    result = torch.empty_like(tensor) if out is None else out
    if tensor.numel():
        block_dim = None if block_dim is None else block_dim % tensor.ndim
        real_parts(result).copy_(_on_the_grid(real_parts(tensor), word_length, block_dim, rounding, generator))
    return result


def _on_the_grid(
    tensor: Tensor,
    word_length: int,
    block_dim: int | None,
    rounding: Literal["stochastic", "nearest"],
    generator: torch.Generator | None,
) -> Tensor:
    scale, inverse = _scales(tensor, word_length, block_dim)
    limit = 2.0 ** (word_length - 1)
    work = torch.mul(tensor, inverse) if tensor.dtype == scale.dtype else tensor.to(scale.dtype) * inverse
    if rounding == "stochastic":
        dither = torch.empty_like(work)
        work += dither.uniform_(generator=generator)
    else:
        work += 0.5
    work.floor_().clamp_(-limit, limit - 1).mul_(scale)
    finite = torch.isfinite(scale)
    return work if finite.all() else torch.where(finite, work, tensor.to(work.dtype))


@torch.no_grad()
def quantize_channels(tensor: Tensor, bits: int, *, dim: int = 0) -> Tensor:
    r"""Round weights to integers of ``bits`` bits times a scale of each channel, symmetric about 0.

    .. math:: Q(w) = s \cdot \operatorname{round}(w / s), \qquad s = \frac{\max |w|}{2^{b-1} - 1}

    over each index of ``dim``; ties go to the even integer. With 8 bits these are the weights of the int8 engines of
    this package. No scale is a power of two, unlike those of :func:`quantize_block`, and the largest weight is exact.

    Args:
        tensor: Floating point or complex, any shape and device; of complex numbers both parts are rounded.
        bits: Of an integer, sign included; 2 to 16.
        dim: The dimension of the channels: 0, the outputs, in linear and convolutional layers.

    Returns:
        A tensor of the same type and shape. Channels of zeros stay zeros; a channel with a value that is not finite
        becomes NaN.

    Raises:
        TypeError: For integers and bools.
        ValueError: For bits out of range, or a tensor without channels or without values.

    Example:
        >>> quantize_channels(torch.tensor([[7.0, 3.4], [0.0, 0.7]]), 4)
        tensor([[7.0000, 3.0000],
                [0.0000, 0.7000]])
    """
    if not has_mean(tensor):
        raise TypeError(f"Expected a floating-point tensor, but got {tensor.dtype}. Integers need no quantising.")
    if not 2 <= bits <= 16:
        raise ValueError(f"Expected `bits` between 2 and 16, but got {bits}.")
    if not tensor.ndim or not tensor.numel():
        raise ValueError(
            f"Expected weights with channels, but got a tensor of shape {tuple(tensor.shape)}. Leave it out."
        )
    parts = real_parts(tensor)
    dims = [other for other in range(parts.ndim) if other != dim % tensor.ndim]
    wide = parts.double()
    scale = (wide.abs().amax(dims, keepdim=True) if dims else wide.abs()) / (2 ** (bits - 1) - 1)
    rounded = torch.where(scale == 0, wide, (wide / scale).round() * scale).to(parts.dtype)
    return torch.view_as_complex(rounded) if tensor.is_complex() else rounded


def _scales(tensor: Tensor, word_length: int, block_dim: int | None) -> tuple[Tensor, Tensor]:
    """The step of each block and its inverse, both exact powers of two, shaped to broadcast."""
    dims = [dim for dim in range(tensor.ndim) if dim != block_dim]
    work = torch.promote_types(tensor.dtype, torch.float32)
    if dims:
        low, high = torch.amin(tensor, dims, keepdim=True), torch.amax(tensor, dims, keepdim=True)
        largest = torch.maximum(low.neg(), high).to(work)
    else:
        largest = tensor.abs().to(work)
    _, exponent = torch.frexp(largest)
    step = ((exponent - 1).clamp(max=_LARGEST) - (word_length - 2)).clamp(min=_SMALLEST_STEP).to(work)
    # makes the step of a block with a value that is not finite NaN
    poison = largest - largest
    return torch.exp2(step) + poison, torch.exp2(-step) + poison
