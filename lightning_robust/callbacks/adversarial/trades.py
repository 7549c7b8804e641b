"""Methods that train a classifier on clean and perturbed inputs together, instead of by its own step: TRADES, MART."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from lightning_robust.callbacks.adversarial.methods import AttackedStep, ProjectedAscent
from lightning_robust.callbacks.module_loss import BatchLoss, ModuleLoss
from lightning_robust.functional.mart import mart_losses
from lightning_robust.harness.batches import count_samples
from lightning_robust.harness.inputs import call_forward, forward_arguments, targets_of
from lightning_robust.harness.quiet import quietly
from lightning_robust.structures import Key, rebuild, tensors_in


@dataclass
class PairedAscent(ProjectedAscent):
    """What TRADES and MART share: one forward pass of clean and perturbed inputs together."""

    refuses: ClassVar[tuple[str, ...]] = ("ratio",)
    returns_objective: ClassVar[bool] = True

    beta: float = 6.0
    target_key: int | str | None = None

    def classes(self, step: AttackedStep) -> Tensor:
        """The right classes."""
        classes: Tensor = targets_of(step.module, step.batch, self.target_key, step.inputs.given)
        return classes

    def logits(self, step: AttackedStep, raised: BatchLoss) -> tuple[Tensor, Tensor]:
        """Logits of the clean inputs, and of those that raise a loss."""
        keys = step.inputs.given
        # the loss is computed in the precision of the training; this one only says how weights lie in memory
        batch = step.perturbed(self.attack_in(step), ModuleLoss(step.module, step.run, "bf16"), raised=raised)
        one, other = (forward_arguments(step.module, each, keys) for each in (step.batch, batch))
        args, named = _joined(one, other, len(self.classes(step)))
        clean, perturbed = _require_logits(step.module, step.module(*args, **named)).chunk(2)
        return clean, perturbed


@dataclass
class TRADES(PairedAscent):
    r"""The trade-off between accuracy and robustness, for classifiers.

    .. math:: L = \mathrm{CE}(f(x), y) + \beta \max_{\|\delta\| \le \epsilon} \mathrm{KL}(f(x) \,\|\, f(x + \delta))

    `Zhang et al. 2019 <https://arxiv.org/abs/1901.08573>`_. One forward pass of clean and perturbed inputs together,
    instead of the module's ``training_step``; the attack runs in the precision of the training. Several inputs are
    perturbed together, and ``forward`` takes them in the order of ``input_key``, or what it takes is inferred. Logs
    ``adversarial/natural_loss`` and ``adversarial/divergence``.

    Args:
        steps: Number of steps of the attack, which raises the divergence.
        step_size: In pixels, as ``eps``; None is 2.5 eps / steps. It warms up with ``eps``.
        norm: ``"linf"`` or ``"l2"``.
        beta: Weight of the divergence.
        target_key: Where the classes are in a batch; None: behind the inputs of a sequence, or by a usual name.

    Raises:
        ValueError: For arguments out of range.
    """

    def train(self, step: AttackedStep) -> Any:
        """Cross entropy on clean inputs and the divergence to perturbed ones."""
        keys = step.inputs.given
        with step.bill.timed(), quietly(step.trainer, step.module, "training", runs="forward"), torch.no_grad():
            target = _logits_of(step.module, step.batch, keys).log_softmax(1)

        def divergence(batch: Any, size: int) -> Tensor:
            predicted = _logits_of(step.module, batch, keys).log_softmax(1)
            return kl_div(predicted, target, reduction="none", log_target=True).flatten(1).sum(1)

        clean, perturbed = self.logits(step, divergence)
        natural = cross_entropy(clean, self.classes(step))
        divergences = kl_div(perturbed.log_softmax(1), clean.log_softmax(1), reduction="none", log_target=True)
        robust = divergences.sum(1).mean()  # of all places, as the cross entropy
        losses = {"adversarial/natural_loss": natural, "adversarial/divergence": robust}
        step.module.log_dict(losses, batch_size=count_samples(step.batch))
        return natural + self.beta * robust


@dataclass
class MART(PairedAscent):
    r"""Adversarial training that looks hardest at what is misclassified, for classifiers.

    .. math:: L = \mathrm{BCE}(f(x'), y) + \beta\, \mathrm{KL}(f(x) \,\|\, f(x')) \,(1 - f_y(x))

    with the boosted cross entropy of :func:`~lightning_robust.functional.mart_losses`, and :math:`x'` by PGD on the
    cross entropy. `Wang et al. 2020 <https://openreview.net/forum?id=rklOg6EFwS>`_. One forward pass of clean and
    perturbed inputs together, instead of the module's ``training_step``; the attack runs in the precision of the
    training. Logs ``adversarial/boosted_loss`` and ``adversarial/divergence``, the weighted one.

    Args:
        steps: Number of steps of the attack.
        step_size: In pixels, as ``eps``; None is 2.5 eps / steps. It warms up with ``eps``.
        norm: ``"linf"`` or ``"l2"``.
        beta: Weight of the divergence, lambda in the paper.
        target_key: Where the classes are in a batch; None: behind the inputs of a sequence, or by a usual name.

    Raises:
        ValueError: For arguments out of range.
    """

    beta: float = 5.0

    def train(self, step: AttackedStep) -> Any:
        """The boosted cross entropy of perturbed inputs, and the weighted divergence from clean ones."""
        classes = self.classes(step)

        def error(batch: Any, size: int) -> Tensor:
            logits = _logits_of(step.module, batch, step.inputs.given)
            return cross_entropy(logits, classes, reduction="none")

        boosted, divergence = (each.mean() for each in mart_losses(*self.logits(step, error), classes))
        losses = {"adversarial/boosted_loss": boosted, "adversarial/divergence": divergence}
        step.module.log_dict(losses, batch_size=count_samples(step.batch))
        return boosted + self.beta * divergence


def _logits_of(module: pl.LightningModule, batch: Any, keys: list[Key] | None) -> Tensor:
    return _require_logits(module, call_forward(module, batch, keys))


def _require_logits(module: pl.LightningModule, outputs: Any) -> Tensor:
    if not isinstance(outputs, Tensor) or outputs.ndim < 2:
        what = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise MisconfigurationException(
            f"Expected {type(module).__name__}.forward to return logits (N, classes), since TRADES and MART are for "
            f"classifiers, but got {what}. Choose another method, such as pgd."
        )
    return outputs


def _joined(one: Any, other: Any, size: int) -> Any:
    """The same structure with the samples of both, first those of the first; what has no row for each stays."""
    pairs = zip(tensors_in(one), tensors_in(other), strict=True)
    return rebuild(one, iter([torch.cat([a, b]) if a.ndim and len(a) == size else a for a, b in pairs]))
