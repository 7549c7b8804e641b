"""What averaging keeps of each validation, so that the figure at the end shows raw weights against averages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from lightning_robust.callbacks.averaging.figure import AVERAGE_SERIES, RAW_SERIES, averaging_figures
from lightning_robust.callbacks.diagnostics import Report, show
from lightning_robust.callbacks.metric_curves import MetricCurves, epochs_so_far
from lightning_robust.harness.load_hook import WeightKeeper
from lightning_robust.harness.ranks import Guard

_PREFIX = "swa/"


class DrawsAverages(WeightKeeper):
    """Draws the metrics of raw weights and averages when the fit ends; without a logger it keeps and draws nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._curves = MetricCurves()

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin anew."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._curves = MetricCurves()

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw."""
        figures = averaging_figures(self._curves, self._curves.chosen(trainer))
        guard = Guard(type(self).__name__)
        guard.attempt(trainer, lambda: show(trainer, Report(figures=figures)), "the figures are not drawn")

    @override
    def state_dict(self) -> dict[str, Any]:
        """The curves so far."""
        return {"curves": self._curves.state()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the curves; files of earlier versions have none."""
        self._curves.points = state_dict.get("curves", {})

    def keep_validation(self, trainer: pl.Trainer, of_others: Mapping[str, float], *, averaged: bool) -> None:
        """Keep the metrics of a validation that has just ended.

        Args:
            trainer: The Trainer; its own metrics are those of the weights that were validated.
            of_others: Of the raw weights and further averages, as ``swa/<name>/<metric>``.
            averaged: Whether the average was validated, not the raw weights.
        """
        if not trainer.loggers:
            return
        epochs, plain = epochs_so_far(trainer), _plain_metrics(trainer)
        if not averaged:
            self._curves.note(epochs, RAW_SERIES, plain)
        for tag, value in of_others.items():
            name, _, metric = tag.removeprefix(_PREFIX).partition("/")
            if metric in plain:
                self._curves.note(epochs, name, {metric: value})
        compared = {tag.removeprefix(_PREFIX).partition("/")[2] for tag in of_others}
        if averaged:
            self._curves.note(epochs, AVERAGE_SERIES, {name: plain[name] for name in plain.keys() & compared})


def _plain_metrics(trainer: pl.Trainer) -> dict[str, float]:
    """What the module itself logs."""
    return {name: float(value) for name, value in trainer.callback_metrics.items() if not name.startswith(_PREFIX)}
