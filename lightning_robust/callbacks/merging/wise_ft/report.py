"""The report on WiSE-FT: scalars, table, figure, warnings, and the curve in ``wise_ft.json``."""

from __future__ import annotations

import json
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_robust.callbacks.candidates import Candidates
from lightning_robust.callbacks.merging.wise_ft.curve import AlphaCurve
from lightning_robust.callbacks.merging.wise_ft.figure import draw_wise_ft
from lightning_robust.harness.logging import log_figure, log_scalars, log_table
from lightning_robust.harness.trainers import NoEffectWarning, is_fast_dev_run
from lightning_robust.tables import number


def report_wise_ft(curve: AlphaCurve, chosen: float, candidates: Candidates, folder: Path, epsilon: float) -> None:
    """Log the numbers, the table and the figure, warn where the choice is no gain, write ``wise_ft.json``.

    Args:
        curve: The metrics at each alpha.
        chosen: The alpha that was chosen.
        candidates: Judged the mixtures.
        folder: Where ``wise_ft.json`` goes.
        epsilon: How much of the metric may be given up in distribution.
    """
    trainer, monitor, mode = candidates.trainer, candidates.monitor, candidates.mode
    index = curve.alphas.index(chosen)
    inside, shifted = curve.inside[index], curve.shifted[index]
    fine_tuned = curve.inside[-1]
    log_scalars(trainer, {"wise_ft/alpha": chosen, "wise_ft/in_distribution": inside, "wise_ft/shifted": shifted})
    rows = [
        [number(alpha), *(number(value, 5) for value in row)]
        for alpha, row in zip(curve.alphas, curve.values, strict=True)
    ]
    log_table(trainer, "wise_ft/curve", ["alpha", *curve.names], rows)
    log_figure(trainer, "wise_ft/overview", draw_wise_ft(curve, chosen, monitor, mode))
    rank_zero_info(
        f"WiSE-FT: alpha {chosen:.3g}, {monitor} {inside:.4g} in distribution, {shifted:.4g} shifted; "
        f"fine-tuned {fine_tuned:.4g} and {curve.shifted[-1]:.4g}."
    )
    if chosen == 1:
        reason = "are the best of the curve"
        if len(curve.names) == 1:
            reason = f"are better than those half way by more than epsilon={epsilon} ({monitor} on the only loader)"
        rank_zero_warn(
            f"WiSEFTCallback: the fine-tuned weights {reason} and stay as they are.", category=NoEffectWarning
        )
    if trainer.is_global_zero and not is_fast_dev_run(trainer):
        content = {"alpha": chosen, "alphas": curve.alphas, "metrics": curve.names, "values": curve.values}
        (folder / "wise_ft.json").write_text(json.dumps(content, indent=2))
