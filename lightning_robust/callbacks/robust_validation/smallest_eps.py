"""The evaluator in the task's units: the smallest eps that moves a decoded value by a given amount."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_robust.callbacks.robust_validation.batch_evaluator import AskedBatch, BatchEvaluator, Reduce
from lightning_robust.decoding.alignment import Decoded
from lightning_robust.deployment.parity.readout import Readout
from lightning_robust.functional.norm_ball import per_sample
from lightning_robust.functional.smallest_radius import smallest_radius
from lightning_robust.functional.stability import scaled_distance, spread_of
from lightning_robust.functional.worst_case import worst_loss
from lightning_robust.structures import tensors_in

_HALF = 0.5
Displaced = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""``displaced(pixels, rows)``: what an attack climbs for some samples, and which of them are moved far enough."""


@dataclass
class SmallestEpsEvaluator(BatchEvaluator):
    """Halves the radius, for each sample on its own, until it just moves a decoded value far enough.

    Args:
        moves: Name of a decoded value -> by how much one of its points has to move, in its unit.
        steps: Of APGD at each radius.
        halvings: How often the interval of the radius is halved.

    Raises:
        ValueError: For arguments out of range.
    """

    judges_metrics: ClassVar[bool] = False
    ranks_samples: ClassVar[bool] = True

    moves: dict[str, float]
    steps: int = 20
    halvings: int = 6
    counts: dict[str, Tensor] = field(default_factory=dict, init=False, compare=False, repr=False)
    """Value -> how many samples need so many 2 ** -halvings of the radius; the last entry: those that need more."""

    def check(self, prefix: str) -> None:
        """Refuse arguments out of range."""
        if self.steps < 1 or self.halvings < 0:
            raise ValueError(
                f"Expected `{prefix}steps` of at least 1 and `{prefix}halvings` of at least 0, but got {self.steps} "
                f"and {self.halvings}."
            )
        if not self.moves or not all(math.isfinite(by) and by > 0 for by in self.moves.values()):
            raise ValueError(
                f"Expected `{prefix}moves` as names of decoded values with amounts above 0, such as "
                f"{{'lateral_px': 20}}, but got {self.moves}."
            )

    def require_rank(self, asked: AskedBatch) -> None:
        """Refuse a module without the decoded values that have to move."""
        with torch.no_grad():
            clean = self._values(asked, asked.view.pixels)
        for name in self.moves:
            _home(name, clean)

    def begin(self) -> None:
        """Forget an earlier validation."""
        # a rank without batches adds to the counts of others too
        self.counts = {name: torch.zeros(2**self.halvings + 2, dtype=torch.int64) for name in self.moves}

    def perturb(self, asked: AskedBatch) -> Tensor:
        """The pixels at the smallest radius, of the last of the values; what is not moved ends at the largest."""
        ends = asked.view.pixels
        with torch.no_grad():
            outputs = asked.outputs(asked.view.pixels)
        clean = self._decoded(asked, outputs)
        plain = [each for each in tensors_in(outputs) if each.is_floating_point()]
        for name, by in self.moves.items():
            home = _home(name, clean)
            there = _has_points(name, clean, home)
            displaced = self._displacement(asked, name, by, clean, plain)
            ends, needed = self._search(asked, displaced, there)
            steps = torch.where(needed.isinf(), 2.0**self.halvings + 1, needed * 2**self.halvings)
            counts = steps.round().long().bincount(minlength=2**self.halvings + 2).cpu()
            self.counts[name] = self.counts[name] + counts
        return ends

    def scalars(self, metrics: Mapping[str, float], eps: float, reduce: Reduce) -> dict[str, float]:
        """By tag: the smallest eps that moves half of the samples, at most ``eps``; the share that ``eps`` moves."""
        found: dict[str, float] = {}
        for name, by in self.moves.items():
            counts = reduce(self.counts[name]).double()
            self.counts[name] = counts
            if counts.sum() == 0:
                continue
            reached = counts.cumsum(0) / counts.sum()
            needed = min(int((reached < _HALF).sum()), 2**self.halvings)
            found[f"adversarial/{name}_{by:g}_eps"] = eps * needed / 2**self.halvings
            found[f"adversarial/{name}_{by:g}_share@{eps:g}"] = reached[-2].item()
        return found

    def doubts(self) -> dict[str, str]:
        """Where there is nothing that could move."""
        empty = [name for name, counts in self.counts.items() if counts.sum() == 0]
        return {"no points": f"no sample has a {', '.join(empty)} that could move"} if empty else {}

    def _search(self, asked: AskedBatch, displaced: Displaced, there: Tensor) -> tuple[Tensor, Tensor]:
        """Where each sample ends, and the share of the radius that those with points need."""
        pixels = asked.view.pixels
        ends, movable = pixels.clone(), torch.nonzero(there.to(pixels.device)).flatten()

        def solves(places: Tensor, shares: Tensor) -> Tensor:
            rows, first = movable[places], bool((shares == 1).all())
            settings: dict[str, Any] = {"norm": asked.norm, "bounds": asked.bounds, "generator": asked.generator}
            settings |= {"steps": self.steps, "restarts": 1, "queries": 0, "record": asked.record}
            found = worst_loss(
                lambda part, inner: displaced(part, rows[inner]),
                pixels[rows],
                asked.radius * per_sample(shares, pixels),
                # what a larger radius moved is a good place to start from
                start=None if first else ends[rows],
                drop_solved=True,
                **settings,
            )
            ends[rows] = torch.where(per_sample(found.solved | first, pixels), found.inputs, ends[rows])
            return found.solved

        if len(movable) == 0:
            return ends, torch.zeros(0)
        return ends, smallest_radius(solves, torch.ones(len(movable), device=pixels.device), halvings=self.halvings)

    def _displacement(
        self, asked: AskedBatch, name: str, by: float, clean: Mapping[str, Any], plain: list[Tensor]
    ) -> Displaced:
        """A tensor's largest change, by its gradient; boxes and masks by the distance of the plain outputs."""
        home = _home(name, clean)

        def of_tensor(pixels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            value, reference = self._values(asked, pixels, rows)[home], clean[home][rows]
            here = ~reference.isnan()
            lost = (here & value.isnan()).flatten(1).any(1)
            gaps = torch.where(here & ~value.isnan(), value - reference.nan_to_num(), 0.0).abs().flatten(1).amax(1)
            return gaps, lost | (gaps.detach() >= by)

        def of_decoded(pixels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            outputs = asked.outputs(pixels, rows)
            parts = [each for each in tensors_in(outputs) if each.is_floating_point()]
            expected = [each[rows] for each in plain]
            pairs = zip(expected, parts, strict=True)
            distance = torch.stack([scaled_distance(one, other, spread_of(one)) for one, other in pairs]).sum(0)
            with torch.no_grad():
                value = self._decoded(asked, outputs)[home]
                moved = _moved_by(name, home, clean[home][rows], value).to(pixels.device)
            return distance, moved >= by

        return of_tensor if isinstance(clean[home], Tensor) else of_decoded

    def _values(self, asked: AskedBatch, pixels: Tensor, rows: Tensor | None = None) -> Mapping[str, Any]:
        return self._decoded(asked, asked.outputs(pixels, rows))

    def _decoded(self, asked: AskedBatch, outputs: Any) -> Mapping[str, Any]:
        decode = getattr(asked.module, "decode", None)
        if not callable(decode):
            raise ValueError(
                f"Expected {type(asked.module).__name__} to have a method `decode(outputs)` that gives named values in "
                "the task's units, for evaluator='smallest_eps', but it has none. Define it, as for deployment parity."
            )
        values: Mapping[str, Any] = decode(outputs)
        return values


def _home(name: str, values: Mapping[str, Any]) -> str:
    """The decoded value that holds a named one: itself, or the boxes or masks whose part it is.

    Raises:
        ValueError: If there is none.
    """
    names: list[str] = []
    for home, value in values.items():
        if isinstance(value, Decoded):
            parts = [f"{home}_{part}" for part in value.compare(value).parts]
        else:
            parts = [home] if value.is_floating_point() else []
        if name in parts:
            return home
        names += parts
    raise ValueError(f"Expected `moves` of decoded values, which are {names}, but got {name!r}.")


def _has_points(name: str, values: Mapping[str, Any], home: str) -> Tensor:
    """Which samples have a point that could move."""
    value = values[home]
    if isinstance(value, Tensor):
        return ~value.isnan().flatten(1).all(1)
    points = next(each for each in Readout([], {home: value}).points(Readout([], {home: value})) if each.name == name)
    return points.owners[~points.reference.isnan()].bincount(minlength=points.samples) > 0


def _moved_by(name: str, home: str, reference: Decoded, value: Decoded) -> Tensor:
    """How far the points of each sample are moved at most; infinite for one that is lost or new."""
    sides = Readout([], {home: reference}), Readout([], {home: value})
    return next(each for each in sides[0].points(sides[1]) if each.name == name).largest()
