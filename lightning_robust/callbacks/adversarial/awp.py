"""AWP: adversarial training at weights that are perturbed too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_robust.callbacks.adversarial.methods import PGD, AttackedStep, EpochBill
from lightning_robust.callbacks.module_loss import ModuleLoss, require_loss
from lightning_robust.functional.batchnorm import batchnorm_layers, evaluating
from lightning_robust.functional.input_gradients import input_gradients
from lightning_robust.functional.weight_perturbation import perturbed_weights
from lightning_robust.harness.quiet import quietly
from lightning_robust.harness.steps import loss_in
from lightning_robust.layers import is_layer_norm


@dataclass
class AWP(PGD):
    r"""Adversarial weight perturbation: PGD on the inputs, then a step of the weights up the loss of the result.

    .. math:: \min_w \max_{\|v_l\| \le \gamma \|w_l\|} \max_{\|\delta\| \le \epsilon} L_{w + v}(x + \delta)

    `Wu et al. 2020 <https://arxiv.org/abs/2004.05884>`_. The module's own step runs at :math:`w + v` on the perturbed
    inputs, its gradient is taken there and applied to :math:`w`: after the backward pass the weights are put back, bit
    for bit. :math:`v_l` is one step for each tensor of two and more dimensions that takes a gradient; biases and
    normalisation stay. BatchNorm normalises by the batch in that pass too and keeps no statistics of it. With several
    processes each perturbs by its own part of the batch. Costs a pass forward and back to the weights more than PGD,
    and the memory of the weights. Not for manual optimisation, whose step moves the weights itself.

    Args:
        steps: Number of steps on the inputs.
        step_size: In pixels, as ``eps``; None is 2.5 eps / steps. It warms up with ``eps``.
        norm: ``"linf"`` or ``"l2"``, of the inputs.
        attack_precision: ``"bf16"`` where the device computes in it, ``"32"``, or ``"same"`` as training.
        gamma: Size of the perturbation of each tensor, as a share of its norm; 0.005 to 0.01 in the paper.

    Raises:
        ValueError: For arguments out of range.
        MisconfigurationException: For manual optimisation.
    """

    refuses: ClassVar[tuple[str, ...]] = ("ratio",)
    returns_objective: ClassVar[bool] = True

    gamma: float = 0.01
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list, init=False, compare=False, repr=False)
    """Weights that are perturbed now, with their own values."""

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        if not 0 < self.gamma < 1:
            raise ValueError(f"Expected `gamma` between 0 and 1, but got {self.gamma}.")

    @property
    def needs_whole_weights(self) -> str:
        """Each rank perturbs all weights in its own way."""
        return "method='awp'"

    def train(self, step: AttackedStep) -> Any:
        """The module's own step on perturbed inputs, at perturbed weights."""
        self.end()
        batch = step.perturbed(self.attack_in(step), ModuleLoss(step.module, step.run, self.attack_precision))
        with step.bill.timed():
            self._climb(step, batch)
        try:
            output = step.run(batch)
        except BaseException:
            self.end()
            raise
        if not isinstance(loss_in(output), Tensor):
            self.end()  # no backward pass follows
        return output

    def after_backward(self, radii: list[float], bill: EpochBill) -> None:
        """Put the weights back."""
        self.end()

    def end(self) -> None:
        """Put the weights back, if they are perturbed."""
        with torch.no_grad():
            for weight, own in self.kept:
                weight.copy_(own)
        self.kept = []

    def _climb(self, step: AttackedStep, batch: Any) -> None:
        """Move the weights up the loss of the perturbed batch."""
        weights = _perturbable(step.module)
        normalising = [layer for layer in batchnorm_layers(step.module) if layer.training]
        with quietly(step.trainer, step.module, "training"), evaluating(step.module, normalising), torch.enable_grad():
            gradients = input_gradients(require_loss(step.run(batch)), weights)
        moved = perturbed_weights(weights, gradients, self.gamma)
        self.kept = [(weight, weight.detach().clone()) for weight in weights]
        with torch.no_grad():
            for weight, value in zip(weights, moved, strict=True):
                weight.copy_(value)


def _perturbable(module: pl.LightningModule) -> list[Tensor]:
    """The tensors of two and more dimensions that take a gradient, without the scales of a normalisation."""
    scales = {id(each) for part in module.modules() if is_layer_norm(part) for each in part.parameters()}
    found = (each for each in module.parameters() if each.requires_grad and each.ndim > 1)
    return [each for each in found if id(each) not in scales]
