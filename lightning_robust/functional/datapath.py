"""How a perturbation grows through the activations of a network, layer by layer, and which channels carry it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_robust.functional.gates import covering


def channel_energy(activation: Tensor, dim: int) -> Tensor:
    """The sum of squares of each channel, over samples and positions.

    Args:
        activation: Any shape.
        dim: Which dimension counts the channels.

    Returns:
        ``(C,)``, fp64, on the CPU.

    Example:
        >>> channel_energy(torch.tensor([[3.0, 1.0], [4.0, 1.0]]), 1).tolist()
        [25.0, 2.0]
    """
    return activation.detach().float().movedim(dim, 0).flatten(1).square().sum(1).cpu().double()


@dataclass(frozen=True)
class LayerDivergence:
    r"""How far a layer's activations moved, in total and channel by channel.

    .. math:: D = \frac{\|A(x') - A(x)\|}{\|A(x)\|}

    with norms over samples, channels and positions.

    Args:
        name: Name of the layer.
        clean: :func:`channel_energy` of :math:`A(x)`.
        moved: :func:`channel_energy` of :math:`A(x') - A(x)`.
        noise: The same as ``moved`` under noise of the same norm; None where there is no such control.

    Example:
        >>> layer = LayerDivergence("conv", torch.tensor([4.0, 12.0]), torch.tensor([3.0, 1.0]))
        >>> layer.relative, layer.carriers(0.7), layer.levels.tolist()
        (0.5, [0], [0.6123724579811096, 0.3535533845424652])
    """

    name: str
    clean: Tensor
    moved: Tensor
    noise: Tensor | None = None

    @property
    def relative(self) -> float:
        """:math:`D`; infinite where values overflowed or nothing was there before."""
        return _relative(self.moved, self.clean)

    @property
    def control(self) -> float | None:
        """:math:`D` under noise of the same norm."""
        return None if self.noise is None else _relative(self.noise, self.clean)

    @property
    def levels(self) -> Tensor:
        """Each channel's difference relative to the layer's root mean square over channels, ``(C,)``."""
        return (self.moved / self.clean.mean().clamp(min=1e-300)).sqrt()

    def carriers(self, share: float) -> list[int]:
        """The fewest channels that hold this share of the squared difference, the largest first."""
        return _largest(self.moved, share)


def lasting(flags: Iterable[bool]) -> int | None:
    """The first place from which on all flags are true; None if the last is not.

    Example:
        >>> lasting([True, False, True, True]), lasting([True, False])
        (2, None)
    """
    known = list(flags)
    tail = next((i for i, flag in enumerate(reversed(known)) if not flag), len(known))
    return len(known) - tail if tail else None


def parting_point(
    divergence: Sequence[float], control: Sequence[float] | None, factor: float = 1.5, start: float | None = None
) -> int | None:
    """Where along depth clean and perturbed computation part.

    That is the first layer from which on, to the last, the divergence is at least ``factor`` times what noise of the
    same norm brings about, and at least ``factor`` times what it was in the inputs: from there on the network makes
    this perturbation larger, and no other. Either alone says less: a robust network lets noise die out, so that the
    small rest of an attack is still many times the noise.

    Args:
        divergence: Of each layer in the order of the computation.
        control: Divergence of each layer under noise; None asks for the second condition alone.
        factor: Above 1.
        start: Divergence of the inputs; None takes that of the first layer.

    Example:
        >>> parting_point([0.21, 0.38, 0.42, 0.64, 0.79], [0.20, 0.35, 0.32, 0.43, 0.27], 1.5, 0.2)
        4
        >>> parting_point([0.20, 0.22, 0.20], [0.16, 0.09, 0.04], 1.5, 0.2) is None
        True
    """
    start = divergence[0] if start is None else start
    baseline = [start] * len(divergence) if control is None else [max(each, start) for each in control]
    return lasting(0 < d >= factor * b for d, b in zip(divergence, baseline, strict=True))


def same_norm_noise(clean: Tensor, perturbed: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Inputs moved by random signs, each sample as far in the 2-norm as the perturbation moved it.

    Nothing is clipped: a few values may leave the range of pixels.

    Args:
        clean: ``(N, ...)``, floating point.
        perturbed: Of the same shape.
        generator: On the CPU.

    Example:
        >>> noisy = same_norm_noise(torch.zeros(1, 4), torch.tensor([[2.0, 0.0, 0.0, 0.0]]))
        >>> noisy.abs()
        tensor([[1., 1., 1., 1.]])
    """
    size = (perturbed.float() - clean.float()).flatten(1).square().mean(1).sqrt()
    signs = torch.randint(2, clean.shape, generator=generator).to(size) * 2 - 1
    return (clean.float() + signs * size.reshape(-1, *[1] * (clean.ndim - 1))).to(clean.dtype)


def _relative(moved: Tensor, clean: Tensor) -> float:
    above, below = moved.sum().item(), clean.sum().item()
    if above == 0:
        return 0.0
    value = math.sqrt(above / below) if below > 0 else math.inf
    return value if math.isfinite(value) else math.inf


def _largest(energy: Tensor, share: float) -> list[int]:
    energy = energy.double().nan_to_num(nan=1e300, posinf=1e300)
    chosen = covering(energy[None], share)[0]
    order = energy.argsort(descending=True)
    return [int(index) for index in order if chosen[index]]
