"""The type and the normalisation that the deployed side feeds, where training feeds others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_robust.deployment.fingerprint.detectors import Evidence
from lightning_robust.deployment.fingerprint.levels import Units, find_units

_SIMILAR = 0.005  # of the deviation; bytes are the simpler answer
_STRENGTH = 10.0
_HALF = 128
_WHOLE = 0.2  # of a level by which half precision moves normalised pixels
_NORMALISATIONS: dict[str, tuple[float | tuple[float, ...], float | tuple[float, ...]]] = {
    "[0, 1]": (0.0, 1.0),
    "normalised with ImageNet's mean and std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "normalised with 0.5 as mean and std": (0.5, 0.5),
}


@dataclass(frozen=True)
class Dump:
    """How one side stores its pictures: ``values / scale + zero_point`` in a type, where the values have units.

    Args:
        units: Of the values.
        dtype: The type, e.g. ``"int8"``.
        scale: 1 where nothing is quantised.
        zero_point: 0 likewise.
    """

    units: Units
    dtype: str
    scale: float = 1.0
    zero_point: float = 0.0

    def to_levels(self, stored: Tensor) -> Tensor:
        """Levels in fp64 of what is stored, ``(N, C, H, W)``."""
        return self.units.to_levels(self.scale * (stored.double() - self.zero_point))

    @property
    def numbers(self) -> str:
        """Black and the step of a level, as arguments in code."""
        black, step = (_shortest(values) for values in (self.units.black, self.units.step))
        return f"black={black}, step={step}"


def _shortest(values: tuple[float, ...]) -> str:
    """One number where all channels have the same."""
    texts = [f"{value:.9g}" for value in values]
    return texts[0] if len({*texts}) == 1 else f"[{', '.join(texts)}]"


def dump_of(units: Units, stored: Tensor, formats: list[Evidence]) -> Dump:
    """How pictures are stored, given their units after :func:`undo_format`, and what that has undone.

    Args:
        units: Of the pictures after it.
        stored: The pictures before.
        formats: What it has undone.
    """
    if formats and formats[0].name == "gain_offset":
        units = _usual_units(stored) or units
    dtype = str(stored.dtype).removeprefix("torch.")
    parameters = formats[0].parameters if formats else {}
    if parameters.get("kind") == "minus 128":
        return Dump(units, dtype, zero_point=-float(_HALF))
    return Dump(units, dtype, float(parameters.get("scale", 1.0)), float(parameters.get("zero_point", 0.0)))


def undo_format(
    trained: Tensor,
    deployed: Tensor,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> tuple[Tensor, list[Evidence]]:
    """The deployed side's pictures as bytes or as training normalises them, and what was undone.

    Signed bytes are either bytes minus 128, or quantised with one scale and zero point for all channels, which follow
    from mean and deviation of both sides and so whatever the order of pixels and frames. A usual normalisation is told
    by levels from 0 to 255, which floating pictures have under it and not under training's.

    Args:
        trained: Training's pictures ``(N, C, H, W)``.
        deployed: The deployed side's, of any axes.
        mean: The mean that training's were normalised with, if known.
        std: The standard deviation, if known.

    Raises:
        TypeError: For integers of other types.

    Example:
        >>> x = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
        >>> undo_format(x, (x.int() - 128).to(torch.int8))[1][0].parameters
        {'kind': 'minus 128'}
    """
    here = find_units(trained, mean, std)
    if deployed.dtype == torch.int8:
        return _undo_signed(trained, deployed, here)
    if deployed.is_floating_point() and trained.is_floating_point():
        return _undo_normalisation(trained, deployed, here)
    if deployed.is_floating_point() or deployed.dtype == torch.uint8:
        normalised = trained.is_floating_point() and "normalised" in here.description
        as_bytes = normalised and deployed.dtype == torch.uint8
        return deployed, [Evidence("input_type", {"kind": "bytes"}, _STRENGTH)] if as_bytes else []
    raise TypeError(
        f"Expected deployed pictures as uint8, int8 or floating, but got {deployed.dtype}. Convert them first."
    )


def _undo_normalisation(trained: Tensor, deployed: Tensor, here: Units) -> tuple[Tensor, list[Evidence]]:
    there = _usual_units(deployed)
    same_axes = trained.shape[1] == deployed.shape[1]
    if here.guessed or there is None or not same_axes or _has_levels(deployed, here):
        return deployed, []
    gains = [other / step for other, step in zip(there.step, here.step, strict=True)]
    offsets = [(other - black) / step for other, black, step in zip(there.black, here.black, here.step, strict=True)]
    parameters: dict[str, float | str] = {"trained": here.description, "deployed": there.description}
    for name, values in (("gain", gains), ("offset", offsets)):
        parameters |= {f"{name}_{channel}": value for channel, value in zip("rgb", values, strict=False)}
    plain = here.from_levels(there.to_levels(deployed)).to(deployed.dtype)
    return plain, [Evidence("gain_offset", parameters, _STRENGTH)]


def _usual_units(images: Tensor) -> Units | None:
    """The first of the usual normalisations under which floating pictures have levels from 0 to 255."""
    for description, (mean, std) in _NORMALISATIONS.items():
        if isinstance(mean, float) or len(mean) == images.shape[1]:
            units = replace(find_units(images, mean, std), description=description)
            if _has_levels(images, units):
                return units
    return None


def _has_levels(images: Tensor, units: Units) -> bool:
    levels = units.to_levels(images)
    low, high = map(float, levels.aminmax())
    return low > -0.5 and high < 255.5 and float((levels - levels.round()).abs().max()) < _WHOLE


def _undo_signed(trained: Tensor, deployed: Tensor, here: Units) -> tuple[Tensor, list[Evidence]]:
    as_bytes = (deployed.short() + _HALF).to(torch.uint8)
    scale, black = _match_moments(trained, deployed)
    zero = round(-black / scale)
    real = scale * (deployed.double() - zero)
    levels = here.to_levels(trained)
    if _differ(levels, as_bytes) < _differ(trained, real) + _SIMILAR:
        return as_bytes, [Evidence("input_type", {"kind": "minus 128"}, _STRENGTH)]
    parameters: dict[str, float | str] = {"kind": "quantised", "scale": scale, "zero_point": float(zero)}
    plain = real.to(trained.dtype) if trained.is_floating_point() else real
    return plain, [Evidence("input_type", parameters, _STRENGTH)]


def _match_moments(trained: Tensor, deployed: Tensor) -> tuple[float, float]:
    """Gain and offset that bring one side to the other's mean and deviation."""
    wanted, given = trained.double(), deployed.double()
    gain = max(float(wanted.std()), 1e-9) / max(float(given.std()), 1e-9)
    return gain, float(wanted.mean()) - gain * float(given.mean())


def _differ(trained: Tensor, deployed: Tensor) -> float:
    """The mean difference of the channels' means and deviations, over the deviation."""
    axes = (0, 2, 3) if trained.shape[1] == deployed.shape[1] else (0, 1, 2, 3)
    wanted, given = trained.double(), deployed.double()
    apart = (wanted.mean(axes) - given.mean(axes)).abs() + (wanted.std(axes) - given.std(axes)).abs()
    return float(apart.mean() / wanted.std().clamp(min=1e-9))
