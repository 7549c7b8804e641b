"""How a batch of pictures, or of other inputs, was normalised, and the way back to pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Images = Float[Tensor, "batch channel *place"]
# A fortieth of an 8-bit level: a thousand times what normalising in fp32 and back loses, far below a wrong mean or std.
_SLACK = 1e-4
# In half precision p, mean, p - mean, std and the quotient are each rounded by at most eps / 2 of the range: 2.5 eps.
_SLACK_IN_EPS = 4


@dataclass(frozen=True)
class PixelSpace:
    """The map ``x = (v - mean) / std`` from pixel values ``v`` in ``[low, high]`` to what the network takes.

    Outside this class pixels ``p = (v - low) / (high - low)`` are always in [0, 1], whatever units ``v`` is in, so that
    8/255 is eight levels also where training normalised values of 0 to 255. The arithmetic is in the type of the
    argument, also where that is half precision. Channels are the second dimension, whatever comes after it: features
    ``(N, D)``, signals ``(N, C, L)``, pictures ``(N, C, H, W)``, videos ``(N, C, T, H, W)``.

    Args:
        mean: One number, or one a channel, in units of pixel values.
        std: One number, or one a channel, in units of pixel values; positive.
        low: Smallest pixel value.
        high: Largest pixel value.

    Raises:
        ValueError: If ``std`` is not positive, a number is not finite, ``low`` is not below ``high``, or the lengths
            differ.

    Example:
        >>> PixelSpace(0.5, 0.25).to_pixels(torch.full((1, 1, 1, 1), 2.0)).item()
        1.0
        >>> PixelSpace(127.5, 127.5, high=255.0).to_pixels(torch.ones(1, 1, 1, 1)).item()
        1.0
    """

    mean: float | Sequence[float] = 0.0
    std: float | Sequence[float] = 1.0
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        """Refuse numbers that describe no normalisation."""
        mean, std = _as_tuple(self.mean), _as_tuple(self.std)
        if not mean or not all(map(math.isfinite, mean)):
            raise ValueError(f"Expected `mean` to be one finite number, or one a channel, but got {self.mean}.")
        if not std or not all(0 < value < math.inf for value in std):
            raise ValueError(f"Expected `std` to be positive, one number or one a channel, but got {self.std}.")
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"Expected `low` below `high`, but got {self.low} and {self.high}.")
        if len(mean) != len(std) and 1 not in (len(mean), len(std)):
            raise ValueError(f"Expected `mean` and `std` of one length, but got {len(mean)} and {len(std)}.")

    def to_pixels(self, inputs: Images) -> Images:
        """The pixels of network inputs, in [0, 1]: ``(inputs * std + mean - low) / (high - low)``."""
        mean, std = self._constants(inputs)
        # in place after the first: on a CPU new memory costs more than the arithmetic
        values = (inputs * std).add_(mean)
        return values if self._is_unit else values.sub_(self.low).div_(self.high - self.low)

    def from_pixels(self, pixels: Images) -> Images:
        """The network inputs of pixels in [0, 1]: ``(low + (high - low) * pixels - mean) / std``."""
        mean, std = self._constants(pixels)
        if self._is_unit:
            return (pixels - mean).div_(std)
        return (pixels * (self.high - self.low)).add_(self.low).sub_(mean).div_(std)

    def check(self, inputs: Images) -> None:
        """Refuse inputs that were not normalised as stated.

        Raises:
            ValueError: If a pixel is NaN or lies outside ``[low, high]`` by more than a ten-thousandth of the range, or
                four times the machine epsilon of the inputs' type if larger (one 8-bit level in fp16, eight in bf16).
            TypeError: If the inputs are not floating.
        """
        self._constants(inputs)
        if inputs.numel() == 0:
            return
        low, high = self._extremes(inputs.detach())
        slack = max(_SLACK, _SLACK_IN_EPS * torch.finfo(inputs.dtype).eps) * (self.high - self.low)
        if not (low >= self.low - slack and high <= self.high + slack):
            raise ValueError(
                f"Expected pixels in [{self.low:g}, {self.high:g}] after undoing mean={self.mean} and std={self.std}, "
                f"but got [{low:.4g}, {high:.4g}]. Set `mean` and `std` to what the inputs were normalised with."
            )

    @property
    def _is_unit(self) -> bool:
        """Whether values are in [0, 1] as pixels are, so that steps which change nothing are left out."""
        return self.low == 0 and self.high == 1

    def _extremes(self, inputs: Tensor) -> tuple[float, float]:
        """The smallest and largest pixel value, exactly; one wait for the inputs' device, which needs no fp64."""
        mean, std = _as_tuple(self.mean), _as_tuple(self.std)
        if len(mean) == len(std) == 1:
            ends = torch.stack(inputs.aminmax()).unsqueeze(1)
        else:
            others = [dim for dim in range(inputs.ndim) if dim != 1]
            ends = torch.stack([inputs.amin(others), inputs.amax(others)])
        constants = [torch.tensor(values, dtype=torch.float64) for values in (std, mean)]
        # stds are positive, so that the ends of the inputs become the ends of the values
        values = ends.cpu().double() * constants[0] + constants[1]
        return values[0].min().item(), values[1].max().item()

    def _constants(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation that broadcast to the images along their second dimension, in their type."""
        if not images.is_floating_point():
            raise TypeError(f"Expected floating-point images, but got {images.dtype}. Scale 8-bit ones with `/ 255`.")
        mean, std = (self._along_channels(name, images) for name in ("mean", "std"))
        return mean, std

    def _along_channels(self, name: str, images: Tensor) -> Tensor:
        values = _as_tuple(getattr(self, name))
        if len(values) == 1:
            return torch.tensor(values[0], dtype=images.dtype, device=images.device)
        channels = images.shape[1] if images.ndim > 1 else 1
        if len(values) != channels:
            raise ValueError(
                f"Expected `{name}` with 1 or {channels} values for {channels} channels, but got {len(values)}."
            )
        return torch.tensor(values, dtype=images.dtype, device=images.device).reshape(-1, *[1] * (images.ndim - 2))


def _as_tuple(values: float | Sequence[float]) -> tuple[float, ...]:
    if isinstance(values, int | float) or getattr(values, "ndim", 1) == 0:  # of NumPy and torch too
        return (float(values),)  # type: ignore[arg-type]
    return tuple(float(value) for value in values)
