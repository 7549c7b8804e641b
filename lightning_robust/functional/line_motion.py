"""How lines move from frame to frame, and how they bend along themselves."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def swings(columns: Float[Tensor, frames * points]) -> Float[Tensor, frames - 2 * points]:
    r"""Movement from frame to frame less its trend.

    Of two consecutive movements :math:`m_t = x_t - x_{t-1}` and :math:`m_{t+1}` the trend is their mean; what is left
    of either is, up to the sign,

    .. math:: s_t = (m_{t+1} - m_t) / 2 = (x_{t+1} - 2 x_t + x_{t-1}) / 2.

    A line that moves evenly has swing 0, one that jumps between :math:`-a` and :math:`a` has :math:`2a`, its movement;
    white noise of standard deviation :math:`\sigma` has a mean absolute swing of :math:`0.98 \sigma`. It sees what
    changes within a few frames: of a slow sway of amplitude :math:`a` over :math:`P` frames,
    :math:`2 a \sin^2(\pi / P)` is left.

    Args:
        columns: Positions, NaN where there is no line or no frame.

    Returns:
        Signed, one for each three consecutive frames, NaN where one of them is.

    Example:
        >>> import torch
        >>> swings(torch.tensor([1.0, 2.0, 3.0, 2.0])).tolist()
        [0.0, -1.0]
    """
    return (columns[2:] - 2 * columns[1:-1] + columns[:-2]) / 2


def bends(columns: Float[Tensor, "*lines rows"]) -> Float[Tensor, "*lines rows-2"]:
    """Second differences along the rows: 0 for a straight line, whatever its place and tilt.

    Args:
        columns: Positions at evenly spaced rows, NaN where there is no line.

    Returns:
        Signed, one for each three neighbouring rows, NaN where one of them is.

    Example:
        >>> import torch
        >>> bends(torch.tensor([0.0, 1.0, 2.0, 5.0])).tolist()
        [0.0, 2.0]
    """
    return columns[..., 2:] - 2 * columns[..., 1:-1] + columns[..., :-2]
