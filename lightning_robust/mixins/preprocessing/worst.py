"""The worst of several draws: for each group of pictures the one with the largest loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_robust.functional.batchnorm import evaluating
from lightning_robust.functional.pixels import PixelSpace
from lightning_robust.harness.quiet import isolated_rng
from lightning_robust.mixins.host_step import HostStep, find_inputs
from lightning_robust.mixins.preprocessing.groups import Group, perturb_groups, take_samples
from lightning_robust.rows import take_rows
from lightning_robust.structures import replace_items

Objective = Callable[[HostStep, Tensor, Sequence[Group]], Tensor]


def choose_worst(
    step: HostStep, space: PixelSpace, candidates: Sequence[Sequence[Group]], objective: Objective
) -> list[Group]:
    """For each group, the candidate with the largest loss; found in evaluation mode, without gradients or traces.

    Args:
        step: The step.
        space: How its inputs were normalised.
        candidates: Draws of all groups; the rows of a group are the same in each.
        objective: The loss of the pictures of one group, of their step, the perturbed pictures and the group.
    """
    with torch.no_grad(), evaluating(step.module), isolated_rng():
        return [_worst(step, space, group, objective) for group in zip(*candidates, strict=True)]


def _worst(step: HostStep, space: PixelSpace, candidates: Sequence[Group], objective: Objective) -> Group:
    part, whole = _part_of(step, candidates[0].rows), slice(None)
    losses = []
    for candidate in candidates:
        group = [Group(whole, candidate.drawn)]
        losses.append(objective(part, perturb_groups(part.inputs, space, group), group).float())
    # a loss that is not finite is no reason to train on it
    return candidates[int(torch.stack(losses).nan_to_num(-torch.inf, -torch.inf, -torch.inf).argmax())]


def _part_of(step: HostStep, rows: slice) -> HostStep:
    """The step of some samples alone."""
    samples, targets = len(step.inputs), step.find_targets()
    batch = take_rows(step.batch, rows, samples)
    new = {find_inputs(step.module, step.batch): step.inputs[rows]}
    if targets is not None:
        new[targets[0]] = take_samples(targets[1], rows, samples)
    return step.of(replace_items(batch, new))
