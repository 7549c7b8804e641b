"""The report on WiSE-FT: scalars, table, figure, warnings, and the curve in ``wise_ft.json``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lightning_robust.callbacks.candidates import Candidates
from lightning_robust.callbacks.diagnostics import Report, show
from lightning_robust.callbacks.merging.wise_ft.curve import AlphaCurve
from lightning_robust.callbacks.merging.wise_ft.figure import wise_ft_figures
from lightning_robust.harness.closing import warn
from lightning_robust.harness.logging import log_files, log_scalars
from lightning_robust.harness.trainers import NoEffectWarning, is_fast_dev_run
from lightning_robust.statistics import Interval
from lightning_robust.tables import number


def report_wise_ft(curve: AlphaCurve, chosen: float, candidates: Candidates, folder: Path, start: str) -> None:
    """Log the numbers, the table and the figures, warn where the choice is no gain, write ``wise_ft.json``.

    Args:
        curve: The metrics at each alpha.
        chosen: The alpha that was chosen.
        candidates: Judged the mixtures.
        folder: Where ``wise_ft.json`` goes.
        start: What the weights at alpha 0 are.
    """
    trainer, monitor, mode = candidates.trainer, candidates.monitor, candidates.mode
    inside, shifted = (column[curve.alphas.index(chosen)] for column in (curve.inside, curve.shifted))
    of_shift = {"wise_ft/shifted": shifted} if len(curve.names) > 1 else {}
    log_scalars(trainer, {"wise_ft/alpha": chosen, "wise_ft/in_distribution": inside, **of_shift})
    intervals = curve.intervals(mode)
    figures = wise_ft_figures(curve, chosen, monitor, mode, start)
    show(
        trainer,
        Report(
            {},
            {"wise_ft/curve": (["alpha", *curve.names], _curve_rows(curve, intervals))},
            figures,
            [_describe_curve(curve, chosen, monitor, start)],
        ),
        step=("wise_ft", candidates.module),
    )
    if of_shift and chosen == 1:
        warn(
            "WiSEFTCallback: the fine-tuned weights are the best of the curve and stay as they are.",
            category=NoEffectWarning,
        )
    if trainer.is_global_zero and not is_fast_dev_run(trainer):
        content = {
            "alpha": chosen,
            "alphas": curve.alphas,
            "metrics": curve.names,
            "samples": curve.samples,
            "values": curve.values,
            "intervals": intervals,
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "wise_ft.json").write_text(json.dumps(content, indent=2))
        log_files(trainer, folder)


def _curve_rows(curve: AlphaCurve, intervals: Sequence[Sequence[Interval]]) -> list[list[str]]:
    """A row of the table for each alpha, with the intervals that there are."""
    values = [[number(value, 4) for value in row] for row in curve.values]
    ends = [[f" ({number(low)} to {number(high)})" for low, high in row] for row in intervals]
    cells = [[v + e for v, e in zip(*pair, strict=True)] for pair in zip(values, ends, strict=True)] if ends else values
    return [[number(alpha), *row] for alpha, row in zip(curve.alphas, cells, strict=True)]


def _describe_curve(curve: AlphaCurve, chosen: float, monitor: str, start: str) -> str:
    """The choice in a sentence."""
    index = curve.alphas.index(chosen)
    if len(curve.names) == 1:
        return f"{monitor} {curve.inside[0]:.4g} at the {start}, {curve.inside[index]:.4g} fine-tuned."
    return (
        f"alpha {chosen:.3g}, {monitor} {curve.inside[index]:.4g} in distribution, {curve.shifted[index]:.4g} "
        f"shifted; fine-tuned {curve.inside[-1]:.4g} and {curve.shifted[-1]:.4g}."
    )
