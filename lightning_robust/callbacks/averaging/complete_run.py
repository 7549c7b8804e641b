"""What a run holds that was complete when it was killed: Lightning resumes it without a hook of its training loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from lightning_robust.callbacks.averaging.curves import DrawsAverages
from lightning_robust.callbacks.averaging.parts import checked, unpack
from lightning_robust.functional.weights import Weights
from lightning_robust.harness.checkpoints import RAW_KEY
from lightning_robust.harness.compat import writes_parts
from lightning_robust.harness.replacement import Replacement
from lightning_robust.harness.trainers import is_sharded


class HoldsAverageOfCompleteRun(DrawsAverages):
    """Leaves the average of a checkpoint in the module, where nothing was left to train from its raw weights."""

    _put_saved: Callable[[], Any] | None = None
    _loading: Replacement | None = None

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin anew."""
        super().setup(trainer, pl_module, stage)
        self._put_saved = None
        if stage == "fit" and writes_parts(trainer.strategy):
            self._loading = Replacement(trainer.strategy, "load_checkpoint", checked(trainer))

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Resume from the raw weights; tests and predictions keep the average."""
        if trainer.state.fn != "fit":
            return
        if is_sharded(trainer):
            self._resume_parts(trainer, pl_module, checkpoint)
        elif RAW_KEY in checkpoint:
            load = partial(pl_module.load_state_dict, strict=pl_module.strict_loading)
            self._put_saved = partial(load, checkpoint["state_dict"])
            load(checkpoint[RAW_KEY])

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the saved average, since there is something to train."""
        self._put_saved = None

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hold what was saved if nothing was trained, as after a kill in the last moment of a run."""
        if self._put_saved is not None:
            self._put_saved()

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the strategy as it was."""
        if stage == "fit" and self._loading is not None:
            self._loading.restore(trainer.strategy)
            self._loading = None

    def _resume_parts(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """The same where the strategy has loaded the average into this rank's parts of the weights."""
        saved = checkpoint.get("callbacks", {}).get(self.state_key)
        if saved is None:
            return
        weights = Weights(pl_module)
        raw = unpack(trainer, weights, saved, checkpoint)
        if raw is not None:
            self._put_saved = partial(weights.restore, [tensor.clone() for tensor in weights.tensors()])
            weights.restore(raw)
