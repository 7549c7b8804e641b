"""What PreprocessingMixin adds to a step: drawn perturbations, their loss, and the consistency of both predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lightning_robust.deployment.pixels.catalogue import Perturbation
from lightning_robust.deployment.pixels.draws import draw
from lightning_robust.deployment.pixels.layout import ARRANGEMENTS, layout_of, read_layout
from lightning_robust.functional.pixels import PixelSpace
from lightning_robust.harness.compat import epochs_at, is_attached
from lightning_robust.harness.normalisation import pixel_space
from lightning_robust.mixins.host_step import HostStep, find_inputs
from lightning_robust.mixins.objective import WeightedLoss
from lightning_robust.mixins.preprocessing.consistency import Consistency
from lightning_robust.mixins.preprocessing.entries import EntryChoice, choose_entries
from lightning_robust.mixins.preprocessing.groups import Group, move_groups, perturb_groups, rows_of_groups
from lightning_robust.mixins.preprocessing.worst import choose_worst

if TYPE_CHECKING:
    from lightning_robust.mixins.preprocessing.mixin import PreprocessingMixin

Draw = Literal["random", "worst"]
Perturbed = tuple[Tensor, list[Group]]
_CANDIDATES = 3
_MANY = 32
"""Pictures of a batch that is passed in two halves: of fewer, BatchNorm's statistics would be those of a handful."""
_STREAM = 5


class PerturbedTerm:
    """The term of one module, which holds its settings.

    Args:
        module: The module.
    """

    def __init__(self, module: PreprocessingMixin) -> None:
        self._module, self._space = module, PixelSpace()
        self._entries = EntryChoice(module)
        self._consistency = Consistency(module)

    @property
    def sensitivity(self) -> Mapping[str, float]:
        """What entries are drawn in proportion to; empty where they are drawn alike."""
        return self._entries.sensitivity()

    def setup(self) -> None:
        """Find out how pictures were normalised, and which entries there are.

        Raises:
            MisconfigurationException: If entries are to be measured and are not.
        """
        module = self._module
        self._space = pixel_space(module.trainer, module.preprocessing_mean, module.preprocessing_std)
        self._entries.setup()

    def load(self, sensitivity: Mapping[str, float]) -> None:
        """Go on with what a checkpoint holds."""
        self._entries.measured = dict(sensitivity)

    def prepare(self, step: HostStep) -> Perturbed:
        """The perturbed inputs, which join the clean ones in their pass, and how they were perturbed.

        Raises:
            TypeError: If the inputs are no pictures.
            ValueError: If they were not normalised as stated.
            MisconfigurationException: If no entry applies.
        """
        self._space.check(_pictures_of(step))
        groups = self._choose(step)
        perturbed = perturb_groups(step.inputs, self._space, groups)
        step.extras.append(perturbed)
        step.passes = 2 if len(perturbed) >= _MANY else 1
        return perturbed, groups

    def losses(self, step: HostStep, state: Perturbed) -> list[WeightedLoss]:
        """The loss of the perturbed pictures in the place of a share of the host's own, and the consistency."""
        perturbed, groups = state
        losses, module = [], self._module
        module._warn_unless_shared(step, perturbed)
        if module.preprocessing_share > 0:
            loss, share = self._loss(step, perturbed, groups), module.preprocessing_share
            losses.append(WeightedLoss("preprocessing/loss", loss, share, replaces=share))
        distance = self._distance(step, perturbed, groups)
        return [*losses, WeightedLoss("preprocessing/consistency", distance, self._weight())]

    def _weight(self) -> float:
        """The weight that the warm-up has reached."""
        module = self._module
        if module.preprocessing_warmup_epochs == 0 or not is_attached(module):
            return module.preprocessing_weight
        return module.preprocessing_weight * min(epochs_at(module.trainer) / module.preprocessing_warmup_epochs, 1.0)

    def _choose(self, step: HostStep) -> list[Group]:
        """The draws of all groups: the only ones, or the worst of several."""
        module = self._module
        generator = module._generator(_STREAM, torch.device("cpu"))
        entries = self._entries.of(step, self._consistency.moves_values)
        if module.preprocessing_draw == "random":
            return self._draw(step, entries, generator)
        count = module.preprocessing_candidates or _CANDIDATES
        drawn = [self._draw(step, entries, generator) for _ in range(count)]
        return choose_worst(step, self._space, drawn, self._objective)

    def _draw(self, step: HostStep, entries: Sequence[Perturbation], generator: torch.Generator) -> list[Group]:
        """Entries and parameters of each group."""
        samples, size = len(step.inputs), read_layout(step.inputs.shape).size
        rows, ranges = rows_of_groups(samples, self._module.preprocessing_groups), self._module.preprocessing_ranges
        chosen = choose_entries(entries, self.sensitivity, len(rows), generator)
        return [
            Group(part, draw(entry, (len(range(samples)[part]), *size), ranges, generator))
            for part, entry in zip(rows, chosen, strict=True)
        ]

    def _objective(self, step: HostStep, perturbed: Tensor, groups: Sequence[Group]) -> Tensor:
        """What perturbed pictures add to the loss."""
        share = self._module.preprocessing_share
        distance = self._weight() * self._distance(step, perturbed, groups)
        return distance + share * self._loss(step, perturbed, groups) if share > 0 else distance

    def _loss(self, step: HostStep, perturbed: Tensor, groups: Sequence[Group]) -> Tensor:
        """The host's loss of perturbed pictures with moved targets."""
        move: Any = getattr(self._module, "move_targets", None)
        if move is None or all(group.drawn.motion is None for group in groups):
            return step.loss_of(perturbed)
        return step.losses_of(perturbed, [move_groups(step.targets, len(perturbed), groups, move)])[0]

    def _distance(self, step: HostStep, perturbed: Tensor, groups: Sequence[Group]) -> Tensor:
        """D, the mean over the samples that have one; 0 without any."""
        each = self._consistency.distance(step, perturbed, groups)
        return each.mean() if len(each) else each.new_zeros(())


def _pictures_of(step: HostStep) -> Tensor:
    """The pictures of a step, of clips each frame."""
    inputs, layout = step.inputs, layout_of(step.inputs.shape)
    if layout is None or not inputs.is_floating_point():
        key = find_inputs(step.module, step.batch)
        raise TypeError(
            f"Expected pictures (N, 1 or 3, H, W) in floating point at input_key={key!r}, whose preprocessing can "
            f"differ, but got {inputs.dtype} of shape {tuple(inputs.shape)}; what can be read is {ARRANGEMENTS}. Set "
            "preprocessing_weight=0 for others."
        )
    return layout.pictures(inputs)
