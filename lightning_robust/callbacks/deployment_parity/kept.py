"""Whether the weights that a run keeps are those that its parity report is of."""

from __future__ import annotations

from collections.abc import Iterator

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_robust.callbacks.deployment_parity.examined import Examined
from lightning_robust.callbacks.deployment_parity.measure import are_equal
from lightning_robust.harness.checkpoints import read_checkpoint
from lightning_robust.harness.trainers import find_callbacks


def kept_elsewhere(trainer: pl.Trainer, examined: Examined) -> Iterator[str]:
    """A line for each best checkpoint of other weights than a report's, with the command that measures it.

    A checkpoint that cannot be read is passed over.
    """
    measured = examined.subject.module.state_dict()
    for path in {keeper.best_model_path: None for keeper in find_callbacks(trainer, ModelCheckpoint)}:
        try:
            content = read_checkpoint(path) if path else {}
            if "state_dict" not in content or are_equal(content["state_dict"], measured):
                continue
        except Exception:  # noqa: S112 - the line is a help, and no reason to lose the report
            continue
        yield (
            f"These numbers are of the weights that the fit returned. The kept checkpoint {path} has others, of epoch "
            f"{content.get('epoch')}. To measure those: lightning-robust parity --ckpt {path}"
        )
