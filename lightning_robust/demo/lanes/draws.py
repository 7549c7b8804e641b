"""Random numbers that depend on the number of a picture alone, never on the batch it is drawn in."""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB


def mix(values: Tensor) -> Tensor:
    """Splitmix64 finaliser: spreads neighbouring 64-bit integers over the whole range.

    Args:
        values: Integers, int64, any shape. Products wrap around, as they should.
    """
    values = (values ^ _shift_right(values, 30)) * _FIRST
    values = (values ^ _shift_right(values, 27)) * _SECOND
    return values ^ _shift_right(values, 31)


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """Logical shift, which brings in zeros."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


class Draws:
    """A stream of uniform numbers for each picture, by counter: the k-th call gives every picture its k-th number.

    Everything is computed in float64, so that the last-bit differences between vectorised and scalar code vanish when
    a derived value is rounded to float32.

    Args:
        indices: Numbers of the pictures, int64, (N,).
        seed: Another seed gives another set of pictures.

    Example:
        >>> import torch
        >>> one, three = Draws(torch.tensor([7]), seed=0), Draws(torch.tensor([3, 7, 9]), seed=0)
        >>> bool(one.uniform()[0] == three.uniform()[1])
        True
    """

    def __init__(self, indices: Tensor, seed: int) -> None:
        self._key = mix(mix(indices.to(torch.int64) + _GOLDEN) + mix(torch.tensor(seed, dtype=torch.int64)))
        self._count = 0

    def integers(self) -> Tensor:
        """The next 63-bit integer of each picture, (N,)."""
        self._count += 1
        return _shift_right(mix(self._key + torch.tensor(self._count) * _GOLDEN), 1)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Evenly between `low` and `high`, float64, (N,)."""
        return low + (high - low) * (self.integers() >> 10).double() / float(1 << 53)

    def centred(self, scale: float, power: float = 1.0) -> Tensor:
        """Symmetric about zero, at most `scale`; a `power` above 1 makes small values more frequent, (N,)."""
        value = self.uniform(-1.0, 1.0)
        return scale * value.sign() * value.abs() ** power

    def chance(self, probability: float) -> Tensor:
        """One with the given probability, else zero, float64, (N,)."""
        return (self.uniform() < probability).double()

    def colour(self, low: tuple[float, float, float], high: tuple[float, float, float]) -> Tensor:
        """A colour on the straight line between two, and a little beside it, (N, 3)."""
        along = self.uniform()
        channels = [a + (b - a) * along + self.centred(0.03) for a, b in zip(low, high, strict=True)]
        return torch.stack(channels, 1).clamp(0.0, 1.0)
