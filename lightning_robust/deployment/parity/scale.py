"""The scale of a comparison: outputs decoded into the task's units, and the one metric that stands for a distance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_robust.decoding.alignment import Decoded
from lightning_robust.deployment.parity.distance import compare_outputs
from lightning_robust.deployment.parity.readout import DECISIONS, PLAIN_UNIT, Readout, Values
from lightning_robust.extensions import extension_names, require_extension
from lightning_robust.structures import map_tensors, rebuild

Decode = Callable[[Any], Values]
"""Turns what ``forward`` returns into named values in the task's own units."""
Known = Callable[[Values, slice], Mapping[str, Tensor] | Tensor]
"""Decoded values of the reference, and the samples that they are of -> which of their points the model knows.

Bools, by name or for all values alike.
"""
Moved = Callable[[Values, Tensor], Values]
"""Decoded values and a motion of the picture, ``(3, 3)`` -> the same right answers in the moved picture."""
Truth = Callable[[slice], Values]
"""Samples -> the labels of decoded values, in the same form."""
CONFIDENCE = "confidence"
"""The decoded value that is no value of the task but the probability of the others, each point's or each sample's."""
_SURE = 0.5


def decoder_of(module: nn.Module, name: str | None) -> Any:
    """The method of a module that decodes its outputs, else the installed package's of that name, else None.

    Args:
        module: The module.
        name: Of the method, or of an entry point ``lightning_robust.decoders``: a function of what ``forward`` returns.

    Raises:
        ImportError: For an installed one that cannot be imported.
    """
    method = getattr(module, name, None) if name else None
    if method is None and name in extension_names("decoders"):
        return require_extension("decoders", str(name), callable, "a function")
    return method


@dataclass(frozen=True)
class Task:
    """What a task says of a model's outputs beside the numbers in them.

    Args:
        decode: Turns what ``forward`` returns into named values in the task's own units, tensors or boxes and masks of
            :mod:`lightning_robust.decoding`; None for plain distances.
        known: Which points of the reference the model knows; where it is None, ``decode``'s ``"confidence"`` says it.
        moved: What a right answer becomes when the picture moves: values by name (those that it leaves out stay), for
            a matrix ``(3, 3)`` from places ``(x, y, 1)`` in the network's input, in pixels and 0 in the centre of the
            first, to places in the moved picture.
        truth: The labels of samples as ``decode`` would give them, of some values or all, for the task's own metrics
            of both sides; None where samples have none.
    """

    decode: Decode | None = None
    known: Known | None = None
    moved: Moved | None = None
    truth: Truth | None = None


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
                self._template = self.module(*map_tensors(Tensor.clone, self.args))

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
        _require_tensors(values)
        others = dict(values)
        confidence = others.pop(CONFIDENCE, None)
        if isinstance(confidence, Decoded):
            raise TypeError(f"Expected {CONFIDENCE!r} to be a tensor, but got {type(confidence).__name__}.")
        if rows is not None:
            _require_all_pictures(others, rows.stop - rows.start)
        return Readout(outputs, others, self._known(others, confidence, rows))

    def _known(self, values: Values, confidence: Tensor | None, rows: slice | None) -> Mapping[str, Tensor]:
        if rows is not None and self.known is not None:
            return masks(self.known(values, rows), values)
        return {} if confidence is None else masks(confidence >= _SURE, values)

    def distance(
        self,
        unit: str,
        reference: Sequence[Tensor],
        deployed: Sequence[Tensor],
        start: int = 0,
        precision: str = "fp32",
    ) -> float:
        """One metric of the distance between flattened outputs; they are decoded only if it needs that.

        Args:
            unit: The metric.
            reference: Flattened outputs.
            deployed: Those of the deployed side.
            start: The first sample that they are of.
            precision: As for :func:`~.distance.compare_outputs`.

        Raises:
            ValueError: If no output is in floating point, and the metric is of plain outputs.
        """
        if unit in (PLAIN_UNIT, DECISIONS):  # single nodes seldom change a decision
            if not any(output.is_floating_point() for output in reference):
                raise ValueError(
                    "Expected an output in floating point to measure a distance of, but all are integers or bools. "
                    "Give the graph up to what they are chosen by, as before an ArgMax."
                )
            return compare_outputs(reference, deployed, precision)[unit]
        samples = next((len(output) for output in reference if output.ndim), 1)
        exact = self.read(reference, slice(start, start + samples))
        return exact.distance(self.read(deployed), precision)[unit]


def _require_tensors(values: object) -> None:
    """Refuse anything but a dict of tensors, boxes or masks, and name what it is."""
    what = f"got {type(values).__name__}"
    if isinstance(values, Mapping):
        others = [(name, each) for name, each in values.items() if not isinstance(each, Tensor | Decoded)]
        if not others:
            return
        what = f"got {type(others[0][1]).__name__} in {others[0][0]!r}"
    raise TypeError(f"Expected `decode` to return a dict of tensors, but {what}.")


def _require_all_pictures(values: Values, samples: int) -> None:
    """Refuse boxes and masks of other samples than were given, as a list with tensors for each picture leads to."""
    for name, value in values.items():
        if isinstance(value, Decoded) and value.shape[0] != samples:
            raise ValueError(
                f"Expected {name!r} of {samples} pictures, but got those of {value.shape[0]}. Let `forward` return "
                "tensors with a row for each picture, as torchvision_boxes(outputs, limit=100) makes them."
            )


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


def _fit(mask: Tensor, value: Tensor | Decoded, name: str) -> Tensor:
    if mask.shape != value.shape[: mask.ndim]:
        raise ValueError(
            f"Expected known points of {name!r} of shape {tuple(value.shape)}, or its first dimensions, but got "
            f"{tuple(mask.shape)}."
        )
    return mask.reshape(*mask.shape, *[1] * (len(value.shape) - mask.ndim)).expand(value.shape)


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
