"""The loss of a module as attacks ask for it: of its training step, or of the method that it has for them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakSet

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_robust.callbacks.attack_precision import computes_in_bf16
from lightning_robust.harness.closing import warn
from lightning_robust.harness.steps import loss_in

AttackPrecision = Literal["bf16", "32", "same"]
BatchLoss = Callable[[Any, int], Tensor]
"""``loss(batch, size)``: one value for each of ``size`` samples, or their sum."""

_needs_its_own_precision: WeakSet[pl.LightningModule] = WeakSet()
"""Modules whose own step fails in bf16, as one that writes activations into a buffer of fp32."""

_EVALUATING = (
    "Attacks run `training_step` in evaluation mode, at validation on validation batches. If the network has no loss "
    "then, or those have another form, define `attack_loss(batch)`, which returns the loss that attacks climb."
)


class NoLossError(ValueError):
    """A batch for which the module has no loss, such as a training step that skips it by returning None."""


@dataclass
class ModuleLoss:
    """The loss of a batch that an attack on a module raises.

    It is ``attack_loss(batch)`` where the module defines it (a scalar, or one value for each sample), else what the
    step returns.

    Args:
        module: The module.
        step: Its training step, as a function of a batch.
        precision: Arithmetic of the pass: ``"bf16"`` where the device computes in it, ``"32"``, or ``"same"`` as the
            training.
    """

    module: pl.LightningModule
    step: Callable[[Any], Any]
    precision: AttackPrecision = "same"

    def __post_init__(self) -> None:
        """Find out what the device can do.

        Raises:
            MisconfigurationException: If the module has no loss that can be asked for without training.
        """
        require_own_loss(self.module)
        bf16 = self.precision == "bf16" and computes_in_bf16(self.module.device)
        self.in_bf16 = bf16 and self.module not in _needs_its_own_precision

    def __call__(self, batch: Any, size: int) -> Tensor:
        """One value for each of ``size`` samples, or their sum, in fp32.

        Raises:
            NoLossError: If the module has no loss for this batch.
        """
        try:
            output = self._run(batch)
        except RuntimeError as error:
            if not self.in_bf16 or isinstance(error, torch.OutOfMemoryError):
                raise
            _needs_its_own_precision.add(self.module)
            self.in_bf16 = False
            output = self._run(batch)
            warn(
                f"{type(self.module).__name__} does not run in bf16 ({str(error).splitlines()[0]}), so attacks take "
                "the precision of the training. Set attack_precision='same' to say so."
            )
        loss = require_loss(output)
        return loss.float() * size if loss.ndim == 0 else loss.float()

    def mean(self, batch: Any, size: int) -> Tensor:
        """The mean over ``size`` samples."""
        value = self(batch, size)
        return value.mean() if value.ndim else value / size

    def _run(self, batch: Any) -> Any:
        attack_loss = getattr(self.module, "attack_loss", None)
        device = self.module.device.type
        arithmetic: AbstractContextManager[Any] = nullcontext()
        if self.precision == "32":
            arithmetic = torch.autocast(device, enabled=False)
        elif self.in_bf16:
            arithmetic = torch.autocast(device, torch.bfloat16)
        with arithmetic:
            if attack_loss is not None:
                return attack_loss(batch)
            try:
                return self.step(batch)
            except Exception as error:
                if not self.module.training:
                    error.add_note(_EVALUATING)
                raise


def require_loss(output: Any) -> Tensor:
    """The loss in what a step returned.

    Raises:
        NoLossError: If there is none.
    """
    loss = loss_in(output)
    if not isinstance(loss, Tensor):
        raise NoLossError(
            f"Expected `training_step` or `attack_loss` to return a loss, but got {type(loss).__name__}. Batches "
            "without a loss cannot be attacked."
        )
    return loss


def require_own_loss(pl_module: pl.LightningModule, ratio: float = 1.0) -> None:
    """Refuse a module whose training step trains by itself, and that has no loss beside it.

    Args:
        pl_module: The module.
        ratio: The share of the attacked samples in the loss that is trained with.

    Raises:
        MisconfigurationException: Naming what to define, or where both a clean and an attacked step would train.
    """
    if pl_module.automatic_optimization:
        return
    if ratio < 1:
        raise MisconfigurationException(
            "Expected ratio=1 on a module with manual optimisation, whose clean and attacked steps would each train in "
            f"full, but got {ratio}."
        )
    if not hasattr(pl_module, "attack_loss"):
        raise MisconfigurationException(
            "Expected a method `attack_loss(batch)` on a module with manual optimisation, since its "
            "`training_step` cannot be run without training. Define it; it returns the loss that the attack climbs."
        )


def own_step(pl_module: pl.LightningModule) -> Callable[..., Any]:
    """The training step of the module, without what AdversarialCallback puts on the instance."""
    return getattr(vars(pl_module).get("training_step"), "__wrapped__", pl_module.training_step)
