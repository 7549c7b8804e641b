"""PreprocessingMixin: training on the differences between training's and the deployed side's preprocessing."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from typing_extensions import override

from lightning_robust.checks import check_choices
from lightning_robust.deployment.pixels.catalogue import Perturbation
from lightning_robust.deployment.pixels.draws import draw
from lightning_robust.functional.pixels import PixelSpace
from lightning_robust.harness.normalisation import pixel_space
from lightning_robust.mixins.host_step import HostStep, find_inputs, require_inputs_alone
from lightning_robust.mixins.objective import ObjectiveMixin, Term, WeightedLoss
from lightning_robust.mixins.preprocessing.consistency import Consistency
from lightning_robust.mixins.preprocessing.entries import (
    check_drawn_ranges,
    choose_entries,
    read_entries,
    split_entries,
)
from lightning_robust.mixins.preprocessing.groups import Group, move_groups, perturb_groups, rows_of_groups

_SAVED = "preprocessing_sensitivity"
Draw = Literal["random", "worst"]
Perturbed = tuple[Tensor, list[Group]]


class PreprocessingMixin(ObjectiveMixin):
    """To be written."""

    def __init__(
        self,
        *,
        preprocessing_weight: float = 0.0,
        preprocessing_share: float = 0.5,
        preprocessing_entries: str | list[str] = "typical",
        preprocessing_draw: Draw = "random",
        preprocessing_candidates: int = 1,
        preprocessing_groups: int = 4,
        preprocessing_ranges: dict[str, list[float]] | None = None,
        preprocessing_class_dim: int = 1,
        preprocessing_mean: float | list[float] | None = None,
        preprocessing_std: float | list[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        _check_numbers(preprocessing_weight, preprocessing_share, preprocessing_groups)
        check_choices(preprocessing_draw=(preprocessing_draw, Draw))
        self._entries = read_entries(preprocessing_entries)
        check_drawn_ranges(preprocessing_ranges or {}, preprocessing_entries)
        self.preprocessing_weight, self.preprocessing_share = preprocessing_weight, preprocessing_share
        self.preprocessing_entries, self.preprocessing_draw = preprocessing_entries, preprocessing_draw
        self.preprocessing_candidates, self.preprocessing_groups = preprocessing_candidates, preprocessing_groups
        self.preprocessing_ranges = preprocessing_ranges
        self.preprocessing_class_dim = preprocessing_class_dim
        self.preprocessing_mean, self.preprocessing_std = preprocessing_mean, preprocessing_std
        self._consistency = Consistency(self, preprocessing_class_dim)
        self._space: PixelSpace | None = None
        self._sensitivity: dict[str, float] = {}
        self._terms.append(Term(self._perturbs, self._perturbed_losses, self._perturb))

    @override
    def setup(self, stage: str) -> None:
        """Find out how pictures were normalised."""
        super().setup(stage)
        if stage != "fit" or not self._perturbs():
            return
        require_inputs_alone(self, self.output_method, "logits(inputs)")
        self._space = pixel_space(self.trainer, self.preprocessing_mean, self.preprocessing_std)

    def _perturbs(self) -> bool:
        return self.preprocessing_weight > 0

    def _perturb(self, step: HostStep) -> Perturbed:
        """The perturbed inputs, which join the clean ones in their pass."""
        space = self._space or PixelSpace()
        _require_pictures(step, find_inputs(self, step.batch))
        space.check(step.inputs)
        groups = self._draw(step)
        perturbed = perturb_groups(step.inputs, space, groups)
        step.extras.append(perturbed)
        return perturbed, groups

    def _draw(self, step: HostStep) -> list[Group]:
        """Entries and parameters of each group."""
        generator = self._generator(5, torch.device("cpu"))
        entries = self._drawable(step)
        samples, _, height, width = step.inputs.shape
        rows = rows_of_groups(samples, self.preprocessing_groups)
        chosen = choose_entries(entries, self._sensitivity, len(rows), generator)
        return [
            Group(part, draw(entry, (len(range(samples)[part]), height, width), self.preprocessing_ranges, generator))
            for part, entry in zip(rows, chosen, strict=True)
        ]

    def _drawable(self, step: HostStep) -> list[Perturbation]:
        """Entries that apply to the pictures, and to the targets."""
        channels = step.inputs.shape[1]
        entries, left = split_entries(self._entries, lambda entry: entry.applies_to(channels))
        if left:
            self._warn_once(f"{left} need three channels and are left out, since the pictures have one.")
        if not self._moves_targets(step.targets):
            entries, left = split_entries(entries, lambda entry: entry.motion is None)
            if left:
                self._warn_once(
                    f"{left} move the picture and are left out, since it is not known how the targets move. Define a "
                    "method `move_targets(targets, matrix)`."
                )
        if not entries:
            raise MisconfigurationException(
                f"Expected `preprocessing_entries` to have one that applies to these pictures of {channels} channel(s) "
                f"and their targets, but got {self.preprocessing_entries!r}. Choose others."
            )
        return entries

    def _moves_targets(self, targets: Any) -> bool:
        """Whether it is known what targets become when the picture moves."""
        if self.preprocessing_share == 0 or callable(getattr(self, "move_targets", None)):
            return True
        return isinstance(targets, Tensor) and _stays(targets, self._consistency.moves_values)

    def _perturbed_losses(self, step: HostStep, state: Perturbed) -> list[WeightedLoss]:
        perturbed, groups = state
        losses, share = [], self.preprocessing_share
        if not step.has_passed(perturbed):
            self._warn_once(
                f"the training step does not give the inputs of its batch to `{self.output_method}`, so each loss "
                "takes a pass of its own. What is done to inputs first is better done in `on_after_batch_transfer`."
            )
        if share > 0:
            (loss,) = step.losses_of(perturbed, [self._targets(step, groups)])
            losses.append(WeightedLoss("preprocessing/loss", loss, share, replaces=share))
        each = self._consistency.distance(step, perturbed, groups)
        distance = each.mean() if len(each) else each.new_zeros(())
        return [*losses, WeightedLoss("preprocessing/consistency", distance, self.preprocessing_weight)]

    def _targets(self, step: HostStep, groups: list[Group]) -> Any:
        move = getattr(self, "move_targets", None)
        return step.targets if move is None else move_groups(step.targets, len(step.inputs), groups, move)


def _check_numbers(weight: float, share: float, groups: int) -> None:
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"Expected `preprocessing_weight` of at least 0, but got {weight}.")
    if not 0 <= share <= 1:
        raise ValueError(f"Expected `preprocessing_share` from 0 to 1, but got {share}.")
    if groups < 1:
        raise ValueError(f"Expected `preprocessing_groups` of at least 1, but got {groups}.")


def _stays(targets: Tensor, values_move: bool) -> bool:
    """Whether targets say nothing about places: classes, or one number or vector a picture."""
    if targets.ndim > 2:
        return False
    return not targets.is_floating_point() or not values_move


def _require_pictures(step: HostStep, key: Any) -> None:
    inputs = step.inputs
    if inputs.ndim != 4 or inputs.shape[1] not in (1, 3) or not inputs.is_floating_point():
        raise TypeError(
            f"Expected pictures (N, 1 or 3, H, W) in floating point at input_key={key!r}, whose preprocessing can "
            f"differ, but got {inputs.dtype} of shape {tuple(inputs.shape)}. Set preprocessing_weight=0 for others."
        )
