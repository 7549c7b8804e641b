"""What differs between the pictures that training feeds and those dumped from the car.

Here inputs are checked and findings chosen; the estimates stand in `detectors.py` and what it imports, the words in
`causes.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_robust.deployment.fingerprint.detectors import (
    FILTERED,
    Finding,
    View,
    best_view,
    color_findings,
    compression_finding,
    geometry_findings,
    is_cut,
    noise_finding,
    residual,
    rounding_finding,
    views,
)
from lightning_robust.deployment.fingerprint.levels import Units, find_units
from lightning_robust.deployment.fingerprint.words import Cause, Fingerprint, describe

_EQUAL = 0.05  # levels; half precision of normalised pixels costs as much
_FLAT = 1.0  # levels of standard deviation
_RELATED = 0.5  # correlation
_SEARCHED = 0.2  # variance in levels squared above which traces of compression are looked for; rounding leaves 0.08
_CLEAR = 1.5  # evidence over what would just be enough
_OTHER_UNITS = 8.0
_PIXELS = 2**21
_SMALLEST = 16


def fingerprint(
    trained: Tensor | npt.NDArray[Any],
    deployed: Tensor | npt.NDArray[Any],
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> Fingerprint:
    """Name what the car's preprocessing does differently, from the same pictures out of training and out of the car.

    Pictures are registered, their colours fitted, and what is left is searched for filters, missing levels, traces of
    compression and noise. At most two causes are named. A few seconds for eight pictures of 144 x 256 on one core.

    Args:
        trained: Pictures ``(N, C, H, W)``, one or three channels (RGB), at least 16 x 16 pixels: bytes, or floating in
            [0, 1], [0, 255] or normalised.
        deployed: Those of the same content that the car fed, in the same shape.
        mean: What floating pictures in [0, 1] were normalised with; found by itself for usual values and where levels
            show.
        std: Likewise.

    Returns:
        The causes, most likely first. None where nothing differs, where the pictures are constant or of another
        content: `note` says which.

    Raises:
        ValueError: If shapes differ or are not those of pictures, or a value is not finite.
        TypeError: If the pictures are neither bytes nor floating.

    Example:
        >>> pictures = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> found = fingerprint(pictures, pictures.flip(1))
        >>> found.causes[0].name, found.causes[0].parameters
        ('channel_order', {'order': 'BGR'})
    """
    sides = _checked(trained, "trained"), _checked(deployed, "deployed")
    if sides[0].shape != sides[1].shape:
        raise ValueError(
            f"Expected deployed pictures of training's shape {tuple(sides[0].shape)}, but got "
            f"{tuple(sides[1].shape)}. Dump the network's input on both sides, for the same frames."
        )
    with torch.no_grad():
        (before, after), extra, note = _levels(sides, mean, std)
        distance = _rms(after - before)
        if min(_spread(before), _spread(after)) < _FLAT:
            return Fingerprint((), distance, distance, _join(note, "Cannot tell: the pictures are (nearly) constant."))
        if distance < _EQUAL and not extra:
            return Fingerprint((), distance, distance, _join(note, "No difference."))
        return _explained(before, after, extra, distance, note)


def _explained(before: Tensor, after: Tensor, extra: list[Finding], distance: float, note: str) -> Fingerprint:
    count = max(1, min(len(before), _PIXELS // (before.shape[2] * before.shape[3])))
    before, after = before[:count], after[:count]
    seen, correlation = views(before, after)
    if correlation < _RELATED:
        unlike = "Cannot tell: the pictures do not show the same content. Dump the same frames on both sides."
        return Fingerprint((), distance, distance, _join(note, unlike))
    view, gain = best_view(seen)
    findings, left = _findings(before, view, gain)
    causes = [describe(f.name, f.parameters, f.strength) for f in _chosen([*extra, *findings])]
    if not causes:
        note = _join(
            note, "They differ by what no known cause explains." if left > 0.35 else "No difference to speak of."
        )
    return Fingerprint(tuple(sorted(causes, key=_confidence, reverse=True)), distance, left, note)


def _findings(before: Tensor, view: View, gain: float) -> tuple[list[Finding], float]:
    """All causes that the evidence is enough for, the surest kinds first, and what they leave in levels."""
    compression: Finding | None = None
    if _left(view, 1.0) > _SEARCHED:
        found = compression_finding(before, view, gain)
        if found is not None:
            compression, compressed = found
            view, gain = best_view(views(compressed, view.deployed)[0])
    findings = list(color_findings(view.colors))
    rounding = rounding_finding(before, view)
    if rounding is not None:
        findings = [f for f in findings if f.name != "rounding" and not is_cut(f, rounding)] + [rounding]
    findings += geometry_findings(view, gain)
    noise = noise_finding(residual(view, gain), view, before.shape[1], even=compression is not None)
    findings += [finding for finding in (compression, noise) if finding is not None]
    return findings, _left(view, gain) ** 0.5


def _left(view: View, gain: float) -> float:
    """Mean squared difference that motion and colours leave, and a filter if there is one."""
    unfiltered = float((view.deployed - view.predicted)[..., view.mask].square().mean())
    return unfiltered * (view.filtered / view.plain if gain > FILTERED else 1.0)


def _chosen(findings: list[Finding]) -> list[Finding]:
    """At most two, one of each name; the barely evident ones last."""
    by_name: dict[str, Finding] = {}
    for finding in findings:
        by_name.setdefault(finding.name, finding)
    return sorted(by_name.values(), key=lambda finding: finding.strength < _CLEAR)[:2]


def _confidence(cause: Cause) -> float:
    return cause.confidence


def _checked(images: Tensor | npt.NDArray[Any], side: str) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(images)) if isinstance(images, np.ndarray) else images.detach().cpu()
    if tensor.ndim != 4 or 0 in tensor.shape:
        raise ValueError(
            f"Expected {side} pictures of shape (N, C, H, W), but got {tuple(tensor.shape)}. "
            + ("Add the batch dimension: images[None]." if tensor.ndim == 3 else "Dump the network's input.")
        )
    if tensor.shape[1] not in (1, 3):
        last = tensor.shape[3] in (1, 3, 4)
        hint = "Channels seem to come last: images.transpose(0, 3, 1, 2)." if last else "Leave other channels out."
        raise ValueError(f"Expected {side} pictures of 1 or 3 channels, but got {tuple(tensor.shape)}. {hint}")
    if min(tensor.shape[2:]) < _SMALLEST:
        raise ValueError(f"Expected {side} pictures of at least 16 x 16 pixels, but got {tuple(tensor.shape)}.")
    if not (tensor.is_floating_point() or tensor.dtype == torch.uint8):
        raise TypeError(f"Expected {side} pictures as uint8 or floating, but got {tensor.dtype}. Convert them first.")
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"Expected finite {side} pictures, but got NaN or infinity. Look where the dump is written.")
    return tensor


def _levels(
    sides: tuple[Tensor, Tensor], mean: float | Sequence[float] | None, std: float | Sequence[float] | None
) -> tuple[tuple[Tensor, Tensor], list[Finding], str]:
    """Both sides in levels, a finding where only one of them is normalised or divided by 255, and a note."""
    here = find_units(sides[0], mean, std)
    before = here.to_levels(sides[0])
    note = f"Training's pictures are {here.description}; its darkest value is taken for black." if here.guessed else ""
    if sides[0].is_floating_point() != sides[1].is_floating_point():
        there = find_units(sides[1])
        note = _join(
            note, f"Units differ: trained {here.description}, deployed {there.description}; compared as levels."
        )
        return (before, there.to_levels(sides[1])), [], note
    after = here.to_levels(sides[1])
    if 1 / _OTHER_UNITS < _spread(after) / max(_spread(before), 1e-9) < _OTHER_UNITS or _spread(before) < _FLAT:
        return (before, after), [], note
    there = find_units(sides[1])
    return (before, there.to_levels(sides[1])), [_other_units(here, there)], note


def _other_units(here: Units, there: Units) -> Finding:
    gain = there.step[0] / here.step[0]
    parameters: dict[str, float | str] = {"gain": gain, "offset": there.black[0] - here.black[0] * gain}
    parameters |= {"trained": here.description, "deployed": there.description}
    return Finding("gain_offset", parameters, max(gain, 1 / gain))


def _spread(levels: Tensor) -> float:
    """Mean standard deviation of a picture's channels."""
    return float(levels.flatten(2).std(2).mean())


def _rms(levels: Tensor) -> float:
    return float(levels.square().mean().sqrt())


def _join(*notes: str) -> str:
    return " ".join(note for note in notes if note)
