"""The scale of a comparison: outputs decoded into the task's units, and the one metric that stands for a distance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_robust.deployment.parity.distance import compare_decoded, compare_outputs
from lightning_robust.structures import rebuild

Decode = Callable[[Any], Mapping[str, Tensor]]
"""Turns what ``forward`` returns into named values in the task's own units."""
PLAIN_UNIT = "rel_l2"
"""The metric that stands for a distance where nothing is decoded."""


class Readout(NamedTuple):
    """Outputs on a scale.

    Args:
        outputs: The tensors that ``forward`` returns, flattened.
        values: What ``decode`` makes of them, by name; empty without one.
    """

    outputs: Sequence[Tensor]
    values: Mapping[str, Tensor]

    def distance(self, deployed: Readout) -> dict[str, float]:
        """Metrics of how far a deployed readout is from this one, plain and in the task's units."""
        return compare_outputs(self.outputs, deployed.outputs) | compare_decoded(self.values, deployed.values)

    @property
    def unit(self) -> str:
        """The metric that stands for a distance: the p99 of the first floating value, else ``"rel_l2"``."""
        floating = (name for name, value in self.values.items() if value.is_floating_point())
        return next((f"{name}_p99" for name in floating), PLAIN_UNIT)


class Scale:
    """Reads the outputs of one module, in the task's units where there is a ``decode``.

    Args:
        module: Called once, for the structure that ``decode`` takes; without a module nothing is decoded.
        args: Positional arguments of its ``forward``.
        decode: Turns what ``forward`` returns into named values; None for plain distances alone.

    Example:
        >>> scale = Scale(nn.Identity(), (torch.zeros(1),), lambda outputs: {"x_px": 10 * outputs})
        >>> exact, deployed = scale.read([torch.tensor([1.0, 3.0])]), scale.read([torch.tensor([1.0, 3.5])])
        >>> exact.unit, exact.distance(deployed)["x_px_p99"]
        ('x_px_p99', 5.0)
    """

    def __init__(
        self, module: nn.Module | None = None, args: tuple[Any, ...] = (), decode: Decode | None = None
    ) -> None:
        self._decode = None if module is None else decode
        self._template: Any = None
        if module is not None and decode is not None:
            with torch.no_grad():
                self._template = module(*args)

    def read(self, outputs: Sequence[Tensor]) -> Readout:
        """Decode flattened outputs, whichever runtime computed them.

        Raises:
            TypeError: If ``decode`` returns anything but a dict of tensors.
        """
        if self._decode is None:
            return Readout(outputs, {})
        values = self._decode(rebuild(self._template, iter(outputs)))
        if not isinstance(values, Mapping) or not all(isinstance(value, Tensor) for value in values.values()):
            raise TypeError(f"Expected `decode` to return a dict of tensors, but got {type(values).__name__}.")
        return Readout(outputs, dict(values))

    def distance(self, unit: str, reference: Sequence[Tensor], deployed: Sequence[Tensor]) -> float:
        """One metric of the distance between flattened outputs; they are decoded only if it needs that."""
        if unit == PLAIN_UNIT:
            return compare_outputs(reference, deployed)[unit]
        return self.read(reference).distance(self.read(deployed))[unit]


def unit_label(metric: str) -> str:
    """A metric's name as a reader would say it.

    Example:
        >>> unit_label("lateral_px_p99")
        'lateral px (99th percentile)'
    """
    words = {"p99": "(99th percentile)", "max": "(largest)", "mean": "(mean)"}
    stem, _, last = metric.rpartition("_")
    if last in words and stem:
        return f"{stem.replace('_', ' ')} {words[last]}"
    return {PLAIN_UNIT: "relative L2 distance"}.get(metric, metric.replace("_", " "))
