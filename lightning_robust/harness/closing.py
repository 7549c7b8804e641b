"""The one summary at the end of a fit, of what was switched on and could not be done."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lightning_robust.harness.trainers import find_callbacks


class ClosingSummary(pl.Callback):
    """Repeats at the end of the fit what was lost; it joins the callbacks of a Trainer at the first loss."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: dict[str, None] = {}

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say it, and leave the Trainer."""
        lines = "\n".join(f"  - {loss}" for loss in self.losses)
        rank_zero_info(f"Not all that was switched on was done in this fit:\n{lines}")
        _leave(trainer, self)

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the Trainer."""
        _leave(trainer, self)


def note_loss(trainer: pl.Trainer, loss: str) -> None:
    """Remember something that could not be done, for the end of the fit; the same words count once.

    Example:
        >>> trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True)
        >>> note_loss(trainer, "DatapathCallback: nothing was measured")
        >>> note_loss(trainer, "DatapathCallback: nothing was measured")
        >>> [list(each.losses) for each in find_callbacks(trainer, ClosingSummary)]
        [['DatapathCallback: nothing was measured']]
    """
    summaries = find_callbacks(trainer, ClosingSummary)
    if not summaries:
        summaries = [ClosingSummary()]
        trainer.callbacks.append(summaries[0])  # type: ignore[attr-defined]
    summaries[0].losses[loss] = None


def _leave(trainer: pl.Trainer, summary: ClosingSummary) -> None:
    # another list, since Lightning goes through the present one
    trainer.callbacks = [each for each in find_callbacks(trainer, pl.Callback) if each is not summary]  # type: ignore[attr-defined]
