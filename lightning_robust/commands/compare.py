"""``lightning-robust compare``: finished runs side by side, on one page."""

from __future__ import annotations

from pathlib import Path

from lightning_robust.checks import check_output_folder
from lightning_robust.gate.check import Judgement
from lightning_robust.gate.options import Gate


def compare(
    runs: list[str],
    *,
    metrics: str | None = None,
    mode: str | None = None,
    baseline: str | None = None,
    output: str = "comparison",
    gate: Gate,
) -> Judgement:
    """Compare finished runs: what each technique buys and costs. Writes comparison.html, .md and .json, and pareto.png.

    A run is a folder that holds the config.yaml of the command line, TensorBoard's event files, the CSVLogger's
    metrics.csv, or the JSON of the commands parity and replay; a folder above runs stands for all of them. Runs whose
    configurations differ only in their seed are one row. Runs on other data are another row, and the best is marked
    among rows on the same data. Exit status: 0 no row is worse than the baseline, in a metric of --metrics beyond the
    spread over seeds or in one of the budget (compare/<metric>: how much worse) beyond that; 1 one is; 2 that could not
    be told.

    Args:
        runs: Folders.
        metrics: Which metrics, as tag:max,tag:min,...; by default those of validation, attacks, parity and replay.
        mode: Which direction is better, as tag=max,tag=min,..., where the name of a metric does not say.
        baseline: Folder of the runs that costs are counted from; by default those without a technique, where they are
            one row.
        output: Folder for the page.
        gate: The budget.
    """
    if not any(Path(run).is_dir() for run in runs):
        raise ValueError(f"Expected folders of finished runs, but found none in {', '.join(runs)}.")

    check_output_folder(output)

    from lightning_robust.commands.work.compare import write_page

    return write_page(runs, metrics, mode, baseline, output, gate)
