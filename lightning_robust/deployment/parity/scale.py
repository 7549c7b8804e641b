"""The scale of a comparison: outputs decoded into the task's units, and the one metric that stands for a distance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_robust.deployment.parity.distance import (
    compare_decoded,
    compare_outputs,
    compare_points,
    named,
)
from lightning_robust.structures import rebuild

Values = Mapping[str, Tensor]
Decode = Callable[[Any], Values]
"""Turns what ``forward`` returns into named values in the task's own units."""
Known = Callable[[Values, slice], Mapping[str, Tensor] | Tensor]
"""Decoded values of the reference, and the samples that they are of -> which of their points the model knows.

Bools, by name or for all values alike.
"""
Moved = Callable[[Values, Tensor], Values]
"""Decoded values and a motion of the picture, ``(3, 3)`` -> the same right answers in the moved picture."""
PLAIN_UNIT = "rel_l2"
"""The metric that stands for a distance where nothing is decoded."""
CONFIDENCE = "confidence"
"""The decoded value that is no value of the task but the probability of the others, each point's or each sample's."""
_SURE = 0.5


@dataclass(frozen=True)
class Task:
    """What a task says of a model's outputs beside the numbers in them.

    Args:
        decode: Turns what ``forward`` returns into named values in the task's own units; None for plain distances.
        known: Which points of the reference the model knows; where it is None, ``decode``'s ``"confidence"`` says it.
        moved: What a right answer becomes when the picture moves: values by name (those that it leaves out stay), for
            a matrix ``(3, 3)`` from places ``(x, y, 1)`` in the network's input, in pixels and 0 in the centre of the
            first, to places in the moved picture.
    """

    decode: Decode | None = None
    known: Known | None = None
    moved: Moved | None = None


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

    def part(self, name: str, chosen: Tensor) -> Points:
        """Some of the points, under the value's name and a further one."""
        reference, deployed, owners = self.reference[chosen], self.deployed[chosen], self.owners[chosen]
        return Points(f"{self.name}_{name}", reference, deployed, owners, self.samples)


class Readout(NamedTuple):
    """Outputs on a scale.

    Args:
        outputs: The tensors that ``forward`` returns, flattened.
        values: What ``decode`` makes of them, by name; empty without one.
        known: Name of a value -> which of its points the model knows, bools of its shape.
    """

    outputs: Sequence[Tensor]
    values: Values
    known: Values = {}  # noqa: RUF012 - a NamedTuple's default, never changed

    def distance(self, deployed: Readout, precision: str = "fp32") -> dict[str, float]:
        """Metrics of how far a deployed readout is from this one, plain and in the task's units.

        Where this side knows some points and guesses others, the metrics of a value come three times: for all points,
        as ``<name>_known_...`` and as ``<name>_guessed_...``; NaN where there are no such points.
        """
        plain = compare_outputs(self.outputs, deployed.outputs, precision)
        return plain | compare_decoded(self.values, deployed.values) | self._parts(deployed)

    def knowing(self, known: Values) -> Readout:
        """The same readout, which knows these points."""
        return Readout(self.outputs, self.values, known)

    @property
    def unit(self) -> str:
        """The metric that stands for a distance.

        It is the p99 of the first floating value, of its known points if it has any; else ``"rel_l2"``.
        """
        name = next((name for name, value in self.values.items() if value.is_floating_point()), None)
        if name is None:
            return PLAIN_UNIT
        return f"{name}_known_p99" if name in self.known and bool(self.known[name].any()) else f"{name}_p99"

    def points(self, deployed: Readout) -> Iterator[Points]:
        """The points of each value: all, and, where they are told apart, those that this side knows and guesses."""
        for name, value in self.values.items():
            rows = len(value) if value.ndim else 1
            owners = torch.arange(rows).repeat_interleave(value.numel() // rows)
            whole = Points(name, value.flatten().cpu(), deployed.values[name].flatten().cpu(), owners, rows)
            yield whole
            if name in self.known:
                mask = self.known[name].flatten().cpu()
                yield whole.part("known", mask)
                yield whole.part("guessed", ~mask)

    def rows(self, window: slice) -> Readout:
        """Some of the samples."""
        outputs = [output[window] if output.ndim else output for output in self.outputs]
        values, known = (
            {name: value[window] if value.ndim else value for name, value in each.items()}
            for each in (self.values, self.known)
        )
        return Readout(outputs, values, known)

    def _parts(self, deployed: Readout) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for points in self.points(deployed):
            if points.name not in self.values:
                found = compare_points(points.reference, points.deployed)
                metrics |= named(points.name, found if len(points.reference) else dict.fromkeys(found, math.nan))
        return metrics


@dataclass
class Scale:
    """Reads the outputs of one module, in the task's units where there is a ``decode``.

    Args:
        module: Called once, for the structure that ``decode`` takes; without a module nothing is decoded.
        args: Positional arguments of its ``forward``.
        decode: Turns what ``forward`` returns into named values; None for plain distances alone.
        known: Which points of the reference the model knows.

    Example:
        >>> scale = Scale(nn.Identity(), (torch.zeros(1),), lambda outputs: {"x_px": 10 * outputs})
        >>> exact, deployed = scale.read([torch.tensor([1.0, 3.0])]), scale.read([torch.tensor([1.0, 3.5])])
        >>> exact.unit, exact.distance(deployed)["x_px_p99"]
        ('x_px_p99', 5.0)
    """

    module: nn.Module | None = None
    args: tuple[Any, ...] = ()
    decode: Decode | None = None
    known: Known | None = None
    _template: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Run the module once, if anything is decoded."""
        if self.module is not None and self.decode is not None:
            with torch.no_grad():
                self._template = self.module(*self.args)

    def read(self, outputs: Sequence[Tensor], rows: slice | None = None) -> Readout:
        """Decode flattened outputs, whichever runtime computed them.

        Args:
            outputs: The flattened outputs.
            rows: For a reference, whose points are told apart: the samples that the outputs are of.

        Raises:
            TypeError: If ``decode`` returns anything but a dict of tensors.
            ValueError: If known points, or its ``"confidence"``, do not fit the values.
        """
        if self.decode is None or self.module is None:
            return Readout(outputs, {})
        values = self.decode(rebuild(self._template, iter(outputs)))
        if not isinstance(values, Mapping) or not all(isinstance(value, Tensor) for value in values.values()):
            raise TypeError(f"Expected `decode` to return a dict of tensors, but got {type(values).__name__}.")
        others = dict(values)
        confidence = others.pop(CONFIDENCE, None)
        return Readout(outputs, others, self._known(others, confidence, rows))

    def _known(self, values: Values, confidence: Tensor | None, rows: slice | None) -> Values:
        if rows is not None and self.known is not None:
            return masks(self.known(values, rows), values)
        return {} if confidence is None else masks(confidence >= _SURE, values)

    def distance(self, unit: str, reference: Sequence[Tensor], deployed: Sequence[Tensor], start: int = 0) -> float:
        """One metric of the distance between flattened outputs; they are decoded only if it needs that.

        Args:
            unit: The metric.
            reference: Flattened outputs.
            deployed: Those of the deployed side.
            start: The first sample that they are of.

        Raises:
            ValueError: If no output is in floating point, and the metric is of plain outputs.
        """
        if unit == PLAIN_UNIT:
            if not any(output.is_floating_point() for output in reference):
                raise ValueError(
                    "Expected an output in floating point to measure a distance of, but all are integers or bools. "
                    "Give the graph up to what they are chosen by, as before an ArgMax."
                )
            return compare_outputs(reference, deployed)[unit]
        rows = slice(start, start + len(reference[0]) if reference[0].ndim else 1)
        return self.read(reference, rows).distance(self.read(deployed))[unit]


def masks(known: Mapping[str, Tensor] | Tensor, values: Values) -> dict[str, Tensor]:
    """Which points are known, for each value, from bools by name or for all values alike.

    Args:
        known: Bools that have a value's shape, or its first dimensions.
        values: Decoded values.

    Raises:
        ValueError: If bools are for no value, or have another shape.

    Example:
        >>> masks(torch.tensor([True, False]), {"x_px": torch.zeros(2, 3)})["x_px"].sum(1)
        tensor([3, 0])
    """
    by_name = known if isinstance(known, Mapping) else dict.fromkeys(values, known)
    if unknown := sorted(by_name.keys() - values.keys()):
        raise ValueError(f"Expected known points of the decoded values {sorted(values)}, but got some of {unknown}.")
    return {name: _fit(mask.bool(), values[name], name) for name, mask in by_name.items()}


def _fit(mask: Tensor, value: Tensor, name: str) -> Tensor:
    if mask.shape != value.shape[: mask.ndim]:
        raise ValueError(
            f"Expected known points of {name!r} of shape {tuple(value.shape)}, or its first dimensions, but got "
            f"{tuple(mask.shape)}."
        )
    return mask.reshape(*mask.shape, *[1] * (value.ndim - mask.ndim)).expand(value.shape)


def mean_of(unit: str) -> str:
    """The metric in which perturbations are counted: the mean of the values that a unit is the p99 of.

    What perturbed pixels do is heavy-tailed, a line that jumps to another among many that hardly move: between two runs
    of one training the p99 differs twofold where the mean differs by a third.

    Example:
        >>> mean_of("x_px_known_p99"), mean_of("rel_l2")
        ('x_px_known_mean', 'rel_l2')
    """
    return f"{unit.removesuffix('_p99')}_mean" if unit.endswith("_p99") else unit


def unit_label(metric: str) -> str:
    """A metric's name as a reader would say it.

    Example:
        >>> unit_label("lateral_px_p99"), unit_label("lateral_px_known_p99")
        ('lateral px (99th percentile)', 'lateral px where known (99th percentile)')
    """
    words = {"p99": "(99th percentile)", "max": "(largest)", "mean": "(mean)"}
    stem, _, last = metric.rpartition("_")
    stem = stem.replace("_known", " where known").replace("_guessed", " where guessed")
    if last in words and stem:
        return f"{stem.replace('_', ' ')} {words[last]}"
    return {PLAIN_UNIT: "relative L2 distance"}.get(metric, metric.replace("_", " "))
