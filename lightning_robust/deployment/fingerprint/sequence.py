"""The order of frames: which of training's pictures each of the deployed side's shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import starmap

import torch
from torch import Tensor

from lightning_robust.deployment.fingerprint.similarity import cross_correlations

_VARIED = 0.02  # deviation between frames over the deviation within them; below, noise decides
_ALIKE = 0.6  # correlation of what changes from frame to frame
_CLEARLY = 2.0
_FLOOR = 0.02


@dataclass(frozen=True)
class Sequence:
    """Which of training's pictures the deployed side's show.

    Args:
        sources: For each deployed picture, the number of training's; ``-1`` where none of them is it.
        parameters: The cause's; empty where every picture is in its place.
        strength: The evidence in multiples of its threshold.
        alike: The mean correlation of what changes from frame to frame, of pictures that belong together; None where
            nothing changes, or there is but one.
    """

    sources: tuple[int, ...]
    parameters: dict[str, float | str]
    strength: float = 0.0
    alike: float | None = None


def find_sequence(trained: Tensor, deployed: Tensor) -> Sequence:
    """Match the pictures of both sides by what changes from one to the next.

    The mean over all pictures is taken away first: it is what a standing camera, a gamma or a crop has in common.

    Args:
        trained: Small grey pictures as vectors ``(N, P)``.
        deployed: Those of the other side.
    """
    count = len(trained)
    still = Sequence(tuple(range(count)), {})
    if count < 2 or min(_variation(trained), _variation(deployed)) < _VARIED:
        return still
    rough = cross_correlations(deployed, trained).argmax(1)
    tables = [_correlate_changes(trained, deployed, which) for which in (torch.arange(count), rough)]
    table = max(tables, key=lambda table: float(table.amax(1).mean()))
    own, best = table.diagonal(), table.max(1)
    moved = (1 - own) / (1 - best.values).clamp(min=_FLOOR)
    clear = (moved > _CLEARLY) & (best.values > _ALIKE)
    stays = (own > _ALIKE) & (moved <= 1)
    sources = torch.where(clear, best.indices, torch.where(stays, torch.arange(count), -1)).tolist()
    if not bool(clear.any()) or sources.count(-1) > count // 3:
        return Sequence(still.sources, {}, alike=float(own.mean()))
    alike = float(best.values[clear | stays].mean())
    return Sequence(tuple(sources), _describe_order(sources), float(moved[clear].median()) / _CLEARLY, alike)


def _correlate_changes(trained: Tensor, deployed: Tensor, which: Tensor) -> Tensor:
    """Correlations ``(N, N)`` of what each deployed picture has beside the mean with what training's have.

    Args:
        trained: Vectors ``(N, P)``.
        deployed: Those of the other side.
        which: Training's pictures that the deployed side is thought to show, whose mean is taken.
    """
    return cross_correlations(deployed - deployed.mean(0), trained - trained[which].mean(0))


def _variation(pictures: Tensor) -> float:
    within = (pictures - pictures.mean(1, keepdim=True)).square().mean().sqrt()
    return float((pictures - pictures.mean(0)).square().mean().sqrt() / within.clamp(min=1e-9))


def _describe_order(sources: list[int]) -> dict[str, float | str]:
    """The cause's parameters, for an order that is not training's."""
    told = {"order": " ".join("?" if source < 0 else str(source) for source in sources)}
    for kind, by, expected in _usual_orders(sources):
        if all(starmap(_may_be, zip(sources, expected, strict=True))):
            return {"kind": kind, "by": float(by), **told}
    moved = [at for at, source in enumerate(sources) if source not in (-1, at)]
    return {"kind": _name_moves(sources, moved), "frames": " and ".join(map(str, moved)), **told}


def _may_be(source: int, expected: int) -> bool:
    return source in (-1, expected) or expected == -1


def _name_moves(sources: list[int], moved: list[int]) -> str:
    """What happened to a few frames."""
    if len(moved) == 2 and [sources[at] for at in moved] == moved[::-1]:
        return "exchanged"
    return "held" if all(sources[at] == at - 1 for at in moved) else "other"


def _rotations(count: int) -> Iterator[tuple[str, int, list[int]]]:
    """Late by any number of pictures, which more than half of them is early by the rest."""
    for by in range(1, count):
        order = [(at - by) % count for at in range(count)]
        yield ("rotated", by, order) if 2 * by <= count else ("rotated back", count - by, order)


def _usual_orders(sources: list[int]) -> Iterator[tuple[str, int, list[int]]]:
    """Kind, by how many, and the source of each picture; -1 where it lies outside the sequence."""
    count = len(sources)
    yield "reversed", 0, list(range(count))[::-1]
    if len({*sources} - {-1}) < count - sources.count(-1):  # some picture comes twice
        yield "doubled", 2, [at // 2 for at in range(count)]
    if -1 not in sources:
        yield from _rotations(count)
    most = max(1, (count - 1) // 2)
    for by in sorted(set(range(-most, most + 1)) - {0}, key=abs):
        within = [at - by if 0 <= at - by < count else -1 for at in range(count)]
        yield ("late" if by > 0 else "early"), abs(by), within
