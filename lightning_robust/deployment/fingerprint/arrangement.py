"""The search for what is arranged differently, before anything is registered: places, frames, channels.

Each arrangement is undone, so that the remaining search sees pictures as training has them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lightning_robust.deployment.fingerprint.channels import find_channels
from lightning_robust.deployment.fingerprint.detectors import Evidence
from lightning_robust.deployment.fingerprint.memory import (
    Arrangement,
    exchanged_size,
    likely_paddings,
    memory_orders,
    orientations,
    places_in,
    put_channels_last,
    strided,
)
from lightning_robust.deployment.fingerprint.motion import warp
from lightning_robust.deployment.fingerprint.registration import estimate_motion
from lightning_robust.deployment.fingerprint.sequence import Sequence, find_sequence
from lightning_robust.deployment.fingerprint.similarity import agreement, coarse, cross_correlations, small_grey

_PICTURES, _AMONG = 4, 16  # deployed pictures that are searched for an arrangement, among so many of training's
_BARELY = 0.002
_PROMISING = 1.5  # what is missing to a correlation of 1, over what is missing with the candidate
_CLEARLY = 3.0
_FLOOR = 0.03  # of what may be missing; blur and noise leave as much
_REGISTERED, _LEAST = 2.0, 0.006  # the same of registered pictures, of which less may be missing
_AGREE = 0.85
_MISREAD = 0.98  # coarse correlation below which memory may be misread
_SAME, _REGISTRABLE = 0.75, 0.9  # agreement of tiles and of registered pictures, of which other scenes have less
_SCENE = 0.6  # correlation from which pictures may show one scene at different times
_ALIKE = 0.25  # correlation of what changes from frame to frame
_WIDEST = 256  # values of padding
_UNLIKE, _DUMP = "these are not the same pictures", "Dump the same frames on both sides."


@dataclass(frozen=True)
class Arranged:
    """Both sides with pictures, places and channels brought together.

    Args:
        trained: Training's pictures ``(N, C, H, W)``.
        deployed: The deployed side's.
        evidence: What was undone.
        unlike: Why they are not the same pictures; empty where they are.
    """

    trained: Tensor
    deployed: Tensor
    evidence: tuple[Evidence, ...] = ()
    unlike: str = ""


def undo_arrangement(trained: Tensor, deployed: Tensor) -> Arranged:
    """Find and undo what the deployed side arranges differently.

    Args:
        trained: Training's pictures ``(N, C, H, W)``, in any unit.
        deployed: The deployed side's, as many, with as many values each.

    Example:
        >>> x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> undo_arrangement(x, x.flip(3)).evidence[0].parameters
        {'kind': 'left-right'}
    """
    placed = _undo_places(trained, deployed)
    if placed.unlike:
        return placed
    ordered = _undo_order(placed)
    if ordered.unlike:
        return ordered
    channels = find_channels(ordered.trained, ordered.deployed)
    if channels is None:
        return ordered
    evidence, arranged = channels
    return replace(ordered, trained=arranged, evidence=(*ordered.evidence, evidence))


def can_be_arranged(trained: torch.Size, deployed: torch.Size) -> bool:
    """Whether pictures of one shape can be those of another, turned, or with exchanged axes.

    Example:
        >>> can_be_arranged(torch.Size((2, 3, 16, 32)), torch.Size((2, 16, 32, 3)))
        True
    """
    if len(trained) != 4 or len(deployed) != 4:
        return False
    count, channels, height, width = trained
    axes = [(channels, height, width), (channels, width, height), (height, width, channels)]
    return deployed in [torch.Size((count, *shape)) for shape in axes]


@dataclass(frozen=True)
class _Attempt:
    """An arrangement, both sides after it is undone, and how well they agree."""

    arrangement: Arrangement
    trained: Tensor
    deployed: Tensor
    known: Tensor

    @cached_property
    def _table(self) -> Tensor:
        """Coarse correlations of the deployed pictures with training's, whichever the order of frames."""
        (before, _), (after, mask) = coarse(self.trained, self._all), coarse(self.deployed, self.known)
        return cross_correlations(after[:, mask], before[:, mask])

    @property
    def likeness(self) -> float:
        """The mean over deployed pictures of the best coarse correlation with one of training's."""
        return float(self._table.amax(1).mean())

    @property
    def negative(self) -> bool:
        """Whether dark and bright are exchanged, which is no arrangement."""
        return -float(self._table.amin(1).mean()) > max(_SAME, self.likeness)

    @cached_property
    def agreement(self) -> tuple[float, float]:
        """Of the registered pictures, whichever the order of frames, and of their tiles."""
        (before, _), (after, mask) = small_grey(self.trained, self._all), small_grey(self.deployed, self.known)
        matches = cross_correlations(after[:, mask], before[:, mask]).argmax(1)
        return agreement(before[matches], after, mask)

    @property
    def _all(self) -> Tensor:
        return torch.ones_like(self.known)

    def explains_more(self, correlation: float, tiles: float) -> float:
        """In multiples of the threshold, how much more than what agrees so far; 0 where it explains little itself."""
        own_correlation, own_tiles = self.agreement
        if own_tiles < max(_AGREE, tiles - _FLOOR):
            return 0.0
        of_tiles = (1 - tiles) / max(1 - own_tiles, _FLOOR) / _CLEARLY
        return max(of_tiles, (1 - correlation) / max(1 - own_correlation, _LEAST) / _REGISTERED)


def _undo_places(trained: Tensor, deployed: Tensor) -> Arranged:
    """Flips, turns, orders of memory and strides."""
    few = trained[:_AMONG]
    theirs = deployed[torch.linspace(0, len(few) - 1, min(_PICTURES, len(few))).round().long()]
    as_it_is = next(iter(_try_all([Arrangement(places_in(few.shape[1:]))], few, theirs)), None)
    if as_it_is is not None and as_it_is.negative:
        return Arranged(trained, deployed)
    likeness = -1.0 if as_it_is is None else as_it_is.likeness
    best = _most_alike(_try_all(_possible(few, theirs, likeness), few, theirs), likeness)
    if not best and likeness > _MISREAD:
        return Arranged(trained, deployed)
    agreement = (0.0, 0.0) if as_it_is is None else as_it_is.agreement
    strengths = [trial.explains_more(*agreement) for trial in best]
    strength = max(strengths, default=0.0)
    if strength > 1:
        return _undone(best[strengths.index(strength)].arrangement, strength, trained, deployed)
    return Arranged(trained, deployed, unlike=_say_unlike([agreement, *(trial.agreement for trial in best)]))


def _most_alike(trials: list[_Attempt], likeness: float) -> list[_Attempt]:
    """The two most alike of those that promise more than pictures as they are."""
    promising = [t for t in trials if (1 - likeness) / max(1 - t.likeness, _BARELY) > _PROMISING]
    return sorted(promising, key=lambda trial: trial.likeness, reverse=True)[:2]


def _say_unlike(agreements: list[tuple[float, float]]) -> str:
    """Why these are not the same pictures; empty where the first agree."""
    correlation, tiles = agreements[0]
    if correlation > _REGISTRABLE or tiles > _SAME:
        return ""
    best = max(max(a) for a in agreements)
    content = "they may be other frames of one scene" if best > _SCENE else "they do not show the same content"
    told = f"({best:.2f} is their correlation, however they are turned or read from memory)"
    return f"{_UNLIKE}: {content} {told}. {_DUMP}"


def _try_all(arrangements: Iterable[Arrangement], trained: Tensor, deployed: Tensor) -> list[_Attempt]:
    fitting = (a for a in arrangements if a.sources.shape == deployed.shape[1:])
    return [_Attempt(a, trained, *a.undo(deployed, trained.shape[1:])) for a in fitting]


def _possible(trained: Tensor, deployed: Tensor, likeness: float) -> Iterator[Arrangement]:
    """Arrangements that may be the deployed side's, given how alike pictures are as they are, or -1."""
    shape = trained.shape[1:]
    yield from orientations(shape)
    if trained.shape[1:] != deployed.shape[1:]:
        yield from (exchanged_size(shape), put_channels_last(shape))
    elif likeness < _MISREAD:
        yield from memory_orders(shape)
        for interleaved in (False, True):
            limit = min(_WIDEST, shape[2] * (shape[0] if interleaved else 1) // 2)
            found = likely_paddings(trained, deployed, interleaved=interleaved, limit=limit)
            yield from (strided(shape, padding, interleaved=interleaved) for padding in found)


def _undone(arrangement: Arrangement, strength: float, trained: Tensor, deployed: Tensor) -> Arranged:
    """Both sides in training's arrangement, without rows that are not known."""
    evidence = (Evidence(arrangement.name, dict(arrangement.parameters), strength),)
    undone, known = arrangement.undo(deployed, trained.shape[1:])
    rows = int(known.all(2).all(0).long().cumprod(0).sum())
    if rows >= known.shape[1] // 2:
        return Arranged(trained[:, :, :rows], undone[:, :, :rows], evidence)
    shown = arrangement.sources >= 0
    rows = int(shown.all(2).all(0).long().cumprod(0).sum())
    return Arranged(arrangement.apply(trained)[:, :, :rows], deployed[:, :, :rows], evidence)


def _undo_order(placed: Arranged) -> Arranged:
    """Frames late, reversed or exchanged."""
    known = torch.ones(placed.trained.shape[1:], dtype=torch.bool)
    (before, _), (after, _) = small_grey(placed.trained, known), small_grey(placed.deployed, known)
    found = _find_registered(before, after)
    if found.alike is not None and abs(found.alike) < _ALIKE and len(before) > 2:
        told = f"{_UNLIKE}: what changes from one to the next correlates by {found.alike:.2f}. {_DUMP}"
        return replace(placed, unlike=told)
    if not found.parameters:
        return placed
    at = [i for i, source in enumerate(found.sources) if source >= 0]
    which = [found.sources[i] for i in at]
    evidence = (*placed.evidence, Evidence("frame_sequence", found.parameters, found.strength))
    return Arranged(placed.trained[which], placed.deployed[at], evidence)


def _find_registered(before: Tensor, after: Tensor) -> Sequence:
    """The order of small grey pictures; a motion of all pictures is preferred where it explains as much."""
    plain = find_sequence(before.flatten(1), after.flatten(1))
    if plain.alike is None or (not plain.parameters and abs(plain.alike) > _AGREE):
        return plain
    motion, _ = estimate_motion(before.mean(0, keepdim=True), after.mean(0, keepdim=True))
    mask = motion.inside(*before.shape[1:])
    moved = find_sequence(warp(before, motion)[:, mask], after[:, mask])
    if moved.alike is None:
        return plain
    missing = [1 - (found.alike or 0.0) for found in (plain, moved)]
    return plain if plain.parameters and missing[1] > 2 * max(missing[0], 0.01) else moved
