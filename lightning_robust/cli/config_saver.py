"""The configuration that a run saves beside its results."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from typing_extensions import override

_HEADER = "# lightning.pytorch=="
"""How a saved configuration begins."""
_BESIDE = "config_of_run.yaml"


class ConfigSaver(SaveConfigCallback):
    """Saves the configuration into the folder of the run, over that of an earlier run there, never over a user's own.

    Without a logger, and with some, that folder is the one that the command runs in, where a user's ``config.yaml`` may
    lie. The run's is ``config_of_run.yaml`` then.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save, under another name where the usual one is somebody's."""
        if self.already_saved:
            return
        theirs = Path(str(trainer.log_dir), self.config_filename)
        if theirs.is_file() and not theirs.read_text(encoding="utf-8", errors="replace").startswith(_HEADER):
            self.config_filename = _BESIDE
        super().setup(trainer, pl_module, stage)
