"""TRADES: train a classifier on clean inputs and on the divergence to perturbed ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from lightning_robust.callbacks.adversarial.methods import AttackedStep, ProjectedAscent
from lightning_robust.callbacks.attacked_batches import ModuleLoss
from lightning_robust.harness.quiet import quietly
from lightning_robust.structures import get_args, get_item


@dataclass
class TRADES(ProjectedAscent):
    r"""The trade-off between accuracy and robustness, for classifiers.

    .. math:: L = \mathrm{CE}(f(x), y) + \beta \max_{\|\delta\| \le \epsilon} \mathrm{KL}(f(x) \,\|\, f(x + \delta))

    `Zhang et al. 2019 <https://arxiv.org/abs/1901.08573>`_. One forward pass of clean and perturbed inputs together,
    instead of the module's ``training_step``; the attack runs in the precision of the training. Several inputs are
    perturbed together, and ``forward`` takes them in the order of ``input_key``. Logs
    ``adversarial/natural_loss`` and ``adversarial/divergence``.

    Args:
        steps: Number of steps of the attack, which raises the divergence.
        step_size: In pixels, as ``eps``; None is 2.5 eps / steps. It warms up with ``eps``.
        norm: ``"linf"`` or ``"l2"``.
        beta: Weight of the divergence.
        target_key: Where the classes are in a batch.

    Raises:
        ValueError: For arguments out of range.
    """

    refuses: ClassVar[tuple[str, ...]] = ("ratio",)

    beta: float = 6.0
    target_key: int | str = 1

    def train(self, step: AttackedStep) -> Any:
        """Cross entropy on clean inputs and the divergence to perturbed ones."""
        keys = step.inputs.keys
        inputs, classes = get_args(step.batch, keys), get_item(step.batch, self.target_key)
        with step.bill.timed(), quietly(step.trainer, step.module, "training", runs="forward"), torch.no_grad():
            target = step.module(*inputs).log_softmax(1)

        def divergence(batch: Any, size: int) -> Tensor:
            predicted = step.module(*get_args(batch, keys)).log_softmax(1)
            return kl_div(predicted, target, reduction="none", log_target=True).flatten(1).sum(1)

        # the divergence is computed in the precision of the training; the loss only says how weights lie in memory
        batch = step.perturbed(self.attack_in(step), ModuleLoss(step.module, step.run, "bf16"), raised=divergence)
        both = [torch.cat(pair) for pair in zip(inputs, get_args(batch, keys), strict=True)]
        clean, perturbed = step.module(*both).chunk(2)
        natural = cross_entropy(clean, classes)
        robust = kl_div(perturbed.log_softmax(1), clean.log_softmax(1), reduction="batchmean", log_target=True)
        step.module.log_dict({"adversarial/natural_loss": natural, "adversarial/divergence": robust})
        return natural + self.beta * robust
