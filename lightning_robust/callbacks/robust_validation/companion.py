"""A callback that brings robust validation along."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from lightning_robust.callbacks.robust_validation.callback import RobustValidationCallback
from lightning_robust.harness.trainers import find_callbacks


class ValidatesRobustly(pl.Callback):
    """Validates and tests on attacked batches, unless the Trainer has a RobustValidationCallback of its own."""

    validation: RobustValidationCallback | None = None
    """The robust validation that comes along; None where nothing is asked of it, and with methods on an embedding."""

    @override
    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prepare to validate on attacked batches."""
        for validation in self._validations(trainer):
            validation.on_validation_epoch_start(trainer, pl_module)

    @override
    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prepare to test on attacked batches."""
        for validation in self._validations(trainer):
            validation.on_test_epoch_start(trainer, pl_module)

    @override
    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Refuse batches without an input to perturb."""
        for validation in self._validations(trainer):
            validation.on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)

    @override
    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Refuse the same of a test."""
        for validation in self._validations(trainer):
            validation.on_test_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)

    @override
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate on attacked batches."""
        for validation in self._validations(trainer):
            validation.on_validation_epoch_end(trainer, pl_module)

    @override
    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Test on attacked batches."""
        for validation in self._validations(trainer):
            validation.on_test_epoch_end(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep clean and attacked metrics."""
        for validation in self._validations(trainer):
            validation.on_validation_end(trainer, pl_module)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw clean against attacked metrics."""
        for validation in self._validations(trainer):
            validation.on_train_end(trainer, pl_module)

    @override
    def state_dict(self) -> dict[str, Any]:
        """The metrics so far."""
        return {} if self.validation is None else {"validation": self.validation.state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the metrics; files of earlier versions have none."""
        if self.validation is not None and "validation" in state_dict:
            self.validation.load_state_dict(state_dict["validation"])

    def _validations(self, trainer: pl.Trainer) -> list[RobustValidationCallback]:
        own = find_callbacks(trainer, RobustValidationCallback)
        return [] if self.validation is None or own else [self.validation]
