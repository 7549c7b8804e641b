"""How far the predictions for clean and for perturbed pictures are apart, whatever the task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lightning_robust.deployment.parity.scale import CONFIDENCE, masks
from lightning_robust.functional.stability import absolute_distance, scaled_distance, spread_of, symmetric_divergence
from lightning_robust.mixins.host_step import HostStep
from lightning_robust.mixins.preprocessing.groups import Group
from lightning_robust.structures import flatten

if TYPE_CHECKING:
    from lightning_robust.mixins.preprocessing.mixin import PreprocessingMixin

Distance = Literal["auto", "values"]
Values = Mapping[str, Tensor]
Compare = Callable[[Tensor, Tensor], Tensor]
_SURE = 0.5


class Consistency:
    """D: the divergence of logits, else the distance of values.

    Outputs are logits if the module has a method ``logits``, or if its output is one tensor and its targets are
    classes. Values are what ``dense`` or ``decode`` gives, else the outputs. Where the picture moves, they are compared
    with those that ``moved(values, matrix)`` gives; an output of one vector a picture stays.

    Args:
        module: The module with its settings.
    """

    def __init__(self, module: PreprocessingMixin) -> None:
        self._module = module

    def distance(self, step: HostStep, perturbed: Tensor, groups: Sequence[Group]) -> Tensor:
        """The distance of each sample that has one, ``(N,)`` or fewer.

        Args:
            step: Whose inputs are the clean ones.
            perturbed: The same pictures perturbed.
            groups: Their groups.
        """
        clean, other = step.outputs_of(step.inputs), step.outputs_of(perturbed)
        still, moving = _told_apart(groups, _is_row(clean))
        found: list[Tensor] = []
        if self._are_logits(clean, step):
            each = symmetric_divergence(clean, other, self._module.preprocessing_class_dim)
            found, still = [each[group.rows] for group in still], []
        if not self.moves_values:
            moving = []
        if still or moving:
            found += self._of_values(step, perturbed, still, moving)
        return torch.cat(found) if found else perturbed.new_zeros(0)

    @property
    def moves_values(self) -> bool:
        """Whether the module says what becomes of its values when the picture moves."""
        return callable(getattr(self._module, "moved", None))

    def _are_logits(self, outputs: Any, step: HostStep) -> bool:
        if self._module.preprocessing_distance == "values" or not isinstance(outputs, Tensor) or outputs.ndim < 2:
            return False
        targets = step.find_targets()
        return self._module.output_method == "logits" or (targets is not None and _are_classes(targets[1], outputs))

    def _of_values(
        self, step: HostStep, perturbed: Tensor, still: Sequence[Group], moving: Sequence[Group]
    ) -> list[Tensor]:
        (read, decoded), (other_read, _) = (self._read(step.forward_of(inputs)) for inputs in (step.inputs, perturbed))
        clean, other = _floating(read, self._known(read, step.batch) if decoded else {}), _floating(other_read, {})
        if not clean:
            return []
        compare = {name: self._comparison(value) for name, value in clean.items()}
        found = []
        for group in [*still, *(moving if decoded else [])]:
            part: Values = {name: value[group.rows] for name, value in clean.items()}
            expected = self._moved(part, group.drawn.motion) if group in moving else part
            gaps = [compare[name](value, other[name][group.rows]) for name, value in expected.items()]
            found.append(torch.stack(gaps).mean(0))
        return found

    def _comparison(self, clean: Tensor) -> Compare:
        """The distance of two values of a kind, in their unit."""
        unit = self._module.preprocessing_unit
        if unit is not None:
            return lambda one, other: absolute_distance(one, other, unit)
        spread = spread_of(clean)
        return lambda one, other: scaled_distance(one, other, spread)

    def _moved(self, values: Values, motion: Any) -> Values:
        """Where the clean values should be in the moved picture."""
        move: Callable[[Values, Any], Values] = getattr(self._module, "moved")  # noqa: B009 - not every module has it
        return {**values, **{name: value for name, value in move(values, motion).items() if name in values}}

    def _read(self, outputs: Any) -> tuple[dict[str, Tensor], bool]:
        """Values by name, and whether the module can say which of them are known and how they move.

        It cannot of what ``dense`` gives, nor of plain outputs where ``decode`` gives boxes or masks of classes, which
        have no place of their own to be compared at.
        """
        dense, decode = (getattr(self._module, name, None) for name in ("dense", "decode"))
        if callable(dense):
            return dict(dense(outputs)), False
        values = decode(outputs) if callable(decode) else flatten(outputs)
        if all(isinstance(value, Tensor) for value in values.values()):
            return dict(values), True
        return flatten(outputs), False

    def _known(self, values: Values, batch: Any) -> Values:
        """The points that the clean prediction knows, as a parity pass tells them; empty where nothing is said."""
        confidence = values.get(CONFIDENCE)
        values = {name: value for name, value in values.items() if name != CONFIDENCE}
        judge = getattr(self._module, "known", None)
        if callable(judge):
            still = {name: value.detach() for name, value in values.items()}
            return masks(judge(still, batch), still)
        return {} if confidence is None else masks(confidence >= _SURE, values)


def _floating(values: Values, known: Values) -> Values:
    """Values in floating point with a row for each sample, NaN at points that are not known."""
    return {
        name: value.masked_fill(~known[name], torch.nan) if name in known else value
        for name, value in values.items()
        if value.is_floating_point() and value.ndim and name != CONFIDENCE
    }


def _told_apart(groups: Sequence[Group], stays: bool) -> tuple[list[Group], list[Group]]:
    """The groups whose answers stay, and those whose answers move with the picture."""
    still = [group for group in groups if stays or group.drawn.motion is None]
    return still, [group for group in groups if not (stays or group.drawn.motion is None)]


def _is_row(outputs: Any) -> bool:
    """Whether an output is one vector a picture, which says nothing about places."""
    return isinstance(outputs, Tensor) and outputs.ndim == 2


def _are_classes(targets: Any, outputs: Tensor) -> bool:
    """Whether targets are integers, one for each place of the logits ``(N, K, ...)``."""
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.is_complex():
        return False
    return targets.shape == outputs.shape[:1] + outputs.shape[2:]
