"""The search for what differs between the pictures that training feeds and those dumped on the deployed side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_robust.deployment.fingerprint.arrangement import can_be_arranged, undo_arrangement
from lightning_robust.deployment.fingerprint.causes import RELATED, Findings, find_causes
from lightning_robust.deployment.fingerprint.detectors import Evidence, is_slight_gain
from lightning_robust.deployment.fingerprint.formats import undo_format
from lightning_robust.deployment.fingerprint.levels import FLAT, Units, spread, units_of_both
from lightning_robust.deployment.fingerprint.words import UNEXPLAINED, Cause, Fingerprint, describe_cause, weigh_causes

_EQUAL = 0.05  # levels; half precision of normalised pixels costs as much
_PIXELS = 2**19
_SMALLEST = 28  # below, no block of 8 pixels is left beside those at the edges


def fingerprint(
    trained: Tensor | npt.NDArray[Any],
    deployed: Tensor | npt.NDArray[Any],
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> Fingerprint:
    """Name what the deployed side's preprocessing does differently, from the same pictures of both sides.

    Pictures are registered and their colours fitted; the residual is searched for filters, missing levels, traces of
    compression and noise. At most three causes are named. Of many or large pictures as many are searched as have half a
    million pixels, evenly chosen, with the one that differs most among them. It takes a few seconds for eight pictures
    of 144 x 256 on one core.

    Args:
        trained: Training's pictures ``(N, C, H, W)``, one or three channels (RGB), at least 28 x 28 pixels: bytes, or
            floating in [0, 1], [0, 255] or normalised.
        deployed: The deployed side's pictures of the same content, in the same shape.
        mean: The mean that floating pictures in [0, 1] were normalised with. Usual values are recognised, and so are
            values from which the levels can be read.
        std: The standard deviation, with the same defaults.

    Returns:
        The causes, most likely first; none where nothing differs, or where the pictures are constant or show different
        content, in which case `note` says so.

    Raises:
        ValueError: If shapes differ or are not those of pictures, or a value is not finite.
        TypeError: If the pictures are neither bytes nor floating.

    Example:
        >>> pictures = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> cause = fingerprint(pictures, pictures.flip(1)).causes[0]
        >>> cause.name, cause.parameters
        ('channel_order', {'order': 'BGR'})
    """
    sides = _check_both(trained, deployed)
    with torch.no_grad():
        plain, formats = undo_format(*sides, mean, std)
        sides = sides[0], plain
        arranged = undo_arrangement(*sides)
        (before, after), units, note = _bring_to_levels((arranged.trained, arranged.deployed), mean, std)
        units = [*formats, *arranged.evidence, *units]
        distance = _distance_as_dumped(sides, mean, std) if arranged.evidence else _rms(after - before)
        if min(spread(before), spread(after)) < FLAT:
            return _cannot_tell(distance, note, "the pictures are (nearly) constant.")
        if arranged.unlike:
            return _cannot_tell(distance, note, arranged.unlike)
        if distance < _EQUAL and not units:
            return Fingerprint((), distance, distance, _join_notes(note, "No difference."))
        return _name_causes(before, after, units, distance, note)


def _name_causes(before: Tensor, after: Tensor, units: list[Evidence], distance: float, note: str) -> Fingerprint:
    chosen = _pictures_to_search(before, after)
    alike = _rms(after - before) < _EQUAL  # what was undone is all that differs
    found = Findings((), 1.0) if alike else find_causes(before[chosen], after[chosen])
    if found.correlation < RELATED:
        unlike = "are each other's negatives" if found.correlation < -RELATED else "do not show the same content"
        reason = f"the pictures {unlike} (correlation {found.correlation:.2f}). Dump the same frames on both sides."
        return _cannot_tell(distance, note, reason)
    named_before = any(e.parameters.get("kind") == "quantised" for e in units)
    own = (e for e in found.evidence if not (named_before and is_slight_gain(e)))
    evidence = {e.name: e for e in [*own, *units]}  # units are the clearer of two gains
    named = [describe_cause(e.name, e.parameters, e.strength) for e in evidence.values()]
    causes = weigh_causes(named, distance, found.unexplained)
    return Fingerprint(causes, distance, found.unexplained, _join_notes(note, _remark(causes, found)))


def _pictures_to_search(before: Tensor, after: Tensor) -> Tensor:
    """Numbers of the pictures to search: evenly spread, and the one that differs most."""
    count = max(1, min(len(before), _PIXELS // (before.shape[2] * before.shape[3])))
    numbers = torch.linspace(0, len(before) - 1, count).round().long()
    farthest = (after - before).square().mean((1, 2, 3)).argmax()
    if farthest not in numbers:
        numbers[(numbers - farthest).abs().argmin()] = farthest
    return numbers


def _remark(causes: Sequence[Cause], found: Findings) -> str:
    """What is to be said beside the causes: that there is none, and what the rest depends on."""
    unexplained = found.unexplained > UNEXPLAINED
    none = "They differ by what no known cause explains." if unexplained else "No difference to speak of."
    doubt = f"What is left depends on {found.doubt}." if found.doubt else ""
    return _join_notes("" if causes else none, doubt)


def _cannot_tell(distance: float, note: str, reason: str) -> Fingerprint:
    return Fingerprint((), distance, distance, _join_notes(note, f"Cannot tell: {reason}"), conclusive=False)


def _distance_as_dumped(
    sides: tuple[Tensor, Tensor], mean: float | Sequence[float] | None, std: float | Sequence[float] | None
) -> float:
    """In levels, value by value as they lie in memory where the shapes differ."""
    trained, deployed = sides
    (before, after), _, _ = _bring_to_levels((trained, deployed.reshape(trained.shape)), mean, std)
    return _rms(after - before)


def _check_both(trained: Tensor | npt.NDArray[Any], deployed: Tensor | npt.NDArray[Any]) -> tuple[Tensor, Tensor]:
    before, after = (_as_tensor(side) for side in (trained, deployed))
    _check_pictures(before, "trained")
    if not can_be_arranged(before.shape, after.shape):
        _check_shape(after, "deployed")
        if before.shape[1:] == after.shape[1:]:
            raise ValueError(
                f"Expected as many deployed pictures as training's {len(before)}, but got {len(after)}. Dump the same "
                "frames on both sides."
            )
        raise ValueError(
            f"Expected deployed pictures of training's shape {tuple(before.shape)}, but got {tuple(after.shape)}. "
            "Dump the network's input on both sides, for the same frames."
        )
    _check_levels(after, "deployed")
    return before, after


def _as_tensor(images: Tensor | npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)) if isinstance(images, np.ndarray) else images.detach().cpu()


def _check_pictures(tensor: Tensor, side: str) -> None:
    if not (tensor.is_floating_point() or tensor.dtype == torch.uint8):
        raise TypeError(f"Expected {side} pictures as uint8 or floating, but got {tensor.dtype}. Convert them first.")
    _check_shape(tensor, side)
    _check_levels(tensor, side)


def _check_levels(tensor: Tensor, side: str) -> None:
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"Expected finite {side} pictures, but got NaN or infinity. Look where the dump is written.")


def _check_shape(tensor: Tensor, side: str) -> None:
    shape = tuple(tensor.shape)
    if tensor.ndim != 4 or 0 in shape:
        hint = "Add the batch dimension: images[None]." if tensor.ndim == 3 else "Dump the network's input."
        raise ValueError(f"Expected {side} pictures of shape (N, C, H, W), but got {shape}. {hint}")
    if shape[1] not in (1, 3):
        last = shape[3] in (1, 3, 4)
        hint = "Channels seem to come last: images.transpose(0, 3, 1, 2)." if last else "Leave other channels out."
        raise ValueError(f"Expected {side} pictures of 1 or 3 channels, but got {shape}. {hint}")
    if min(shape[2:]) < _SMALLEST:
        raise ValueError(f"Expected {side} pictures of at least {_SMALLEST} x {_SMALLEST} pixels, but got {shape}.")


def _bring_to_levels(
    sides: tuple[Tensor, Tensor], mean: float | Sequence[float] | None, std: float | Sequence[float] | None
) -> tuple[tuple[Tensor, Tensor], list[Evidence], str]:
    """Both sides in levels, evidence where only one of them is normalised or divided by 255, and a note."""
    trained, deployed = sides
    here, there = units_of_both(trained, deployed, mean, std)
    levels = here.to_levels(trained), there.to_levels(deployed)
    note = _note_on_black("Training's", here)
    if trained.is_floating_point() != deployed.is_floating_point():
        units = f"Units differ: trained {here.description}, deployed {there.description}; compared as levels."
        return levels, [], _join_notes(note, units)
    if there == here:
        return levels, [], note
    return levels, [_units_evidence(here, there)], _join_notes(note, _note_on_black("The deployed side's", there))


def _note_on_black(whose: str, units: Units) -> str:
    return f"{whose} pictures are {units.description}; its darkest value is taken for black." if units.guessed else ""


def _units_evidence(here: Units, there: Units) -> Evidence:
    gain, offset = there.step[0] / here.step[0], (there.black[0] - here.black[0]) / here.step[0]
    parameters: dict[str, float | str] = {"gain": gain, "offset": offset}
    parameters |= {"trained": here.description, "deployed": there.description}
    return Evidence("gain_offset", parameters, max(gain, 1 / gain))


def _rms(levels: Tensor) -> float:
    return float(levels.square().mean().sqrt())


def _join_notes(*notes: str) -> str:
    return " ".join(note for note in notes if note)
