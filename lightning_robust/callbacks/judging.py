"""What weights are judged by: one metric of the validation, and whether a fit has it."""

from __future__ import annotations

from typing import Literal

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from typing_extensions import override

from lightning_robust.harness.closing import warn
from lightning_robust.harness.compat import has_validation_data, overrides
from lightning_robust.harness.trainers import find_callbacks
from lightning_robust.suggest import did_you_mean

PARITY = ("parity/", "sensitivity/", "attribution/")
"""How metrics begin that DeploymentParityCallback measures, and not at the sanity check."""


class JudgingCallback(pl.Callback):
    """A callback that judges weights by one metric of the validation.

    Attributes:
        monitor: The metric, or several, of which the first one judges; None takes that of a ModelCheckpoint or
            EarlyStopping callback.
        mode: Whether larger or smaller is better; None likewise.
    """

    monitor: str | list[str] | None
    mode: Literal["max", "min"] | None

    def judged_by(self, trainer: pl.Trainer) -> tuple[str, Literal["max", "min"]]:
        """The metric and its mode.

        Raises:
            MisconfigurationException: If neither this callback nor another names them, or a fit has no validation.
        """
        if trainer.state.fn == "fit":
            self._require_validation(trainer)
        given = self.monitor[0] if isinstance(self.monitor, list) else self.monitor
        watched = [(w.monitor, w.mode) for w in find_callbacks(trainer, ModelCheckpoint | EarlyStopping) if w.monitor]
        name = given or next((monitor for monitor, _ in watched), None)
        mode = self.mode or dict(reversed(watched)).get(name)
        if name is None or mode not in ("max", "min"):
            raise MisconfigurationException(
                f"{type(self).__name__}: Expected a metric to judge weights by, but got monitor={name!r} with "
                f"mode={mode!r}. Set `monitor` to a validation metric and `mode` to 'max' or 'min'."
            )
        return name, mode

    @override
    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Warn where the sanity check logged numbers, and the metric is none of them.

        A module may leave some of its metrics out of the sanity check, so that the training goes on; one that has names
        of its own for that time is not judged.
        """
        monitor, _ = self.judged_by(trainer)
        logged = sorted(trainer.callback_metrics)
        there = any(name == monitor or name.startswith(f"{monitor}/dataloader_idx_") for name in logged)
        renamed = any(name.startswith("sanity") for name in logged)
        if logged and not there and not renamed and not monitor.startswith(PARITY):
            warn(
                f"{type(self).__name__}: {monitor!r} is not what the sanity check logged ({', '.join(logged)}), and "
                f"weights cannot be judged without it.{did_you_mean(monitor, logged, 1)}"
            )

    def _require_validation(self, trainer: pl.Trainer) -> None:
        module, name = trainer.lightning_module, type(self).__name__
        if not overrides(module, "validation_step"):
            raise MisconfigurationException(
                f"{name}: Expected {type(module).__name__} to have a `validation_step`, which weights are judged by, "
                "but it has none."
            )
        if not has_validation_data(trainer):
            raise MisconfigurationException(
                f"{name}: Expected validation loaders, which weights are judged on, but got none. Give them to `fit`, "
                f"or define `val_dataloader` in {type(module).__name__} or its data module."
            )
