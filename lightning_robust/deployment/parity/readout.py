"""Outputs on a scale: decoded values, which of their points the model knows, and how far another readout is away."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_robust.decoding.alignment import Alignment, Decoded
from lightning_robust.deployment.parity.distance import (
    compare_decoded,
    compare_outputs,
    compare_points,
    deviation,
    named,
)

Values = Mapping[str, Tensor | Decoded]
"""Decoded values by name."""
PLAIN_UNIT = "rel_l2"
"""The metric that stands for a distance where nothing is decoded."""
DECISIONS = "flip_rate"
"""The one where outputs are decisions alone, integers or bools."""


class Points(NamedTuple):
    """The points of one decoded value on both sides of a comparison, flattened.

    Args:
        name: Of the value, with ``_known`` or ``_guessed`` for a part of them.
        reference: Values of the reference.
        deployed: Values of the deployed side.
        owners: The sample that each belongs to.
        samples: How many samples there are.
    """

    name: str
    reference: Tensor
    deployed: Tensor
    owners: Tensor
    samples: int

    @classmethod
    def of(cls, name: str, reference: Tensor, deployed: Tensor) -> Points:
        """All points of a value."""
        rows = len(reference) if reference.ndim else 1
        owners = torch.arange(rows).repeat_interleave(reference.numel() // max(rows, 1))
        return cls(name, reference.flatten().cpu(), deployed.flatten().cpu(), owners, rows)

    def part(self, name: str, chosen: Tensor) -> Points:
        """Some of the points, under the value's name and a further one."""
        return self.only(chosen)._replace(name=f"{self.name}_{name}")

    def only(self, chosen: Tensor) -> Points:
        """Some of the points."""
        reference, deployed, owners = self.reference[chosen], self.deployed[chosen], self.owners[chosen]
        return Points(self.name, reference, deployed, owners, self.samples)

    def largest(self) -> Tensor:
        """The largest deviation in each sample; infinite where a point is on one side alone, 0 without points."""
        alone = self.reference.isnan() != self.deployed.isnan()
        size = deviation(self.reference, self.deployed).abs().masked_fill(alone, math.inf)
        return torch.zeros(self.samples, dtype=size.dtype).scatter_reduce(0, self.owners, size, "amax")

    def metrics(self) -> dict[str, float]:
        """As :func:`~.distance.compare_points` has them; NaN where the reference has no value to compare."""
        found = compare_points(self.reference, self.deployed)
        if len(self.reference) and not bool(self.reference.isnan().all()):
            return found
        return found | {name: math.nan for name in found if name != "lost" or not len(self.reference)}


class Readout(NamedTuple):
    """Outputs on a scale.

    Args:
        outputs: The tensors that ``forward`` returns, flattened.
        values: What ``decode`` makes of them, by name; empty without one.
        known: Name of a value -> which of its points the model knows, bools of its shape.
        truth: Labels of values, as ``decode`` would give them; of a reference.
    """

    outputs: Sequence[Tensor]
    values: Values
    known: Mapping[str, Tensor] = {}
    truth: Mapping[str, Tensor | Decoded] = {}

    def distance(self, deployed: Readout, precision: str = "fp32") -> dict[str, float]:
        """Metrics of how far a deployed readout is from this one, plain and in the task's units.

        Where this side knows some points and guesses others, the metrics of a value come three times: for all points,
        as ``<name>_known_...`` and as ``<name>_guessed_...``; NaN where there are no such points. Outputs of another
        number of boxes have no plain metrics.

        Raises:
            ValueError: If the outputs, or decoded values, are not of one shape.
        """
        plain = compare_outputs(self.outputs, deployed.outputs, precision) if self.has_shape_of(deployed) else {}
        aligned = self.aligned(deployed)
        metrics = plain | compare_decoded(_plain_values(self.values), _plain_values(deployed.values))
        for points in self.points(deployed, aligned):
            metrics |= {} if points.name in self.values else named(points.name, points.metrics())
        for name, alignment in aligned.items():
            metrics |= named(name, alignment.metrics())
        return metrics

    def knowing(self, reference: Readout) -> Readout:
        """The same readout, which knows the points that the reference knows."""
        return Readout(self.outputs, self.values, reference.known_in(self.values))

    def known_in(self, values: Values) -> dict[str, Tensor]:
        """Which points of other values are those that this readout knows."""
        return {name: _carried(self.values[name], mask, values[name]) for name, mask in self.known.items()}

    def has_shape_of(self, deployed: Readout) -> bool:
        """Whether outputs can be compared as they are.

        Where a value knows how to align itself, outputs may be of another number of boxes; elsewhere, and where it has
        nothing to align, another shape is a mistake that the comparison names.
        """
        both = (*self.values.values(), *deployed.values.values())
        if not any(isinstance(value, Decoded) and not value.empty for value in both):
            return True
        return [each.shape for each in self.outputs] == [each.shape for each in deployed.outputs]

    @property
    def unit(self) -> str:
        """The metric that stands for a distance.

        It is the p99 of the first floating value that has a point at all, of its known ones if it has any; else
        ``"rel_l2"``, as of a detector that does not find a box yet, or ``"flip_rate"`` of decisions alone.
        """
        name = next((name for name, value in self.values.items() if _is_measurable(value)), None)
        if name is None:
            return PLAIN_UNIT if any(output.is_floating_point() for output in self.outputs) else DECISIONS
        known = "_known" if name in self.known and bool(self.known[name].any()) else ""
        value = self.values[name]
        part = f"_{value.unit}" if isinstance(value, Decoded) else ""
        return f"{name}{part}{known}_p99"

    def aligned(self, deployed: Readout) -> dict[str, Alignment]:
        """The comparison of each value that knows itself how it is compared."""
        values = {name: value for name, value in self.values.items() if isinstance(value, Decoded)}
        return {name: value.compare(_of_kind(value, deployed.values.get(name), name)) for name, value in values.items()}

    def points(self, deployed: Readout, aligned: Mapping[str, Alignment] | None = None) -> Iterator[Points]:
        """The points of each value: all, and, where they are told apart, those that this side knows and guesses.

        Args:
            deployed: The other side.
            aligned: What :meth:`aligned` gave, if it is there already.
        """
        aligned = self.aligned(deployed) if aligned is None else aligned
        for name, value in self.values.items():
            if isinstance(value, Tensor):
                yield from _known_apart(Points.of(name, value, _tensor(deployed.values[name])), self.known.get(name))
            else:
                yield from _aligned_points(name, aligned[name], self.known.get(name))


def _aligned_points(name: str, aligned: Alignment, known: Tensor | None) -> Iterator[Points]:
    """The points of the parts of a value; a place where neither side has one is none."""
    for part, (reference, deployed) in aligned.parts.items():
        whole = Points.of(f"{name}_{part}", reference, deployed)
        there = ~(whole.reference.isnan() & whole.deployed.isnan())
        mask = None if known is None else _known_places(known.cpu(), reference).flatten()[there]
        yield from _known_apart(whole.only(there), mask)


def _known_apart(whole: Points, known: Tensor | None) -> Iterator[Points]:
    yield whole
    if known is not None:
        mask = known.flatten().cpu()
        yield whole.part("known", mask)
        yield whole.part("guessed", ~mask)


def _known_places(known: Tensor, points: Tensor) -> Tensor:
    """Bools ``(N, K)`` for points ``(N, K or more, ...)``, of which the reference has none beyond K."""
    wide = torch.zeros(points.shape[:2], dtype=torch.bool)
    wide[:, : known.shape[1]] = known
    return wide.reshape(*wide.shape, *[1] * (points.ndim - 2)).expand(points.shape)


def _carried(reference: Tensor | Decoded, known: Tensor, value: Tensor | Decoded) -> Tensor:
    if isinstance(reference, Decoded):
        return reference.carry(known, _of_kind(reference, value, "the value"))
    return known


def _of_kind(value: Decoded, other: object, name: str) -> Decoded:
    if not isinstance(other, type(value)):
        raise ValueError(f"Expected {name!r} to be decoded as {type(value).__name__}, but got {type(other).__name__}.")
    return other


def _tensor(value: Tensor | Decoded) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError(f"Expected a tensor, as on the other side, but got {type(value).__name__}.")
    return value


def _plain_values(values: Values) -> dict[str, Tensor]:
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _is_measurable(value: Tensor | Decoded) -> bool:
    if isinstance(value, Decoded):
        return not value.empty
    return value.is_floating_point() and not bool(value.isnan().all())
