"""What a run holds that was complete when it was killed: Lightning resumes it without a hook of its training loop."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from lightning_robust.callbacks.averaging.curves import DrawsAverages
from lightning_robust.harness.checkpoints import RAW_KEY


class HoldsAverageOfCompleteRun(DrawsAverages):
    """Leaves the average of a checkpoint in the module, where nothing was left to train from its raw weights."""

    _saved: dict[str, Any] | None = None

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin anew."""
        super().setup(trainer, pl_module, stage)
        self._saved = None

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Resume from the raw weights; tests and predictions keep the average."""
        if trainer.state.fn == "fit" and RAW_KEY in checkpoint:
            self._saved = checkpoint["state_dict"]
            pl_module.load_state_dict(checkpoint[RAW_KEY], strict=pl_module.strict_loading)

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the saved average, since there is something to train."""
        self._saved = None

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hold what was saved if nothing was trained, as after a kill in the last moment of a run."""
        if self._saved is not None:
            pl_module.load_state_dict(self._saved, strict=pl_module.strict_loading)
