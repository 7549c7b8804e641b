"""The runs are found, read, compared and put on a page."""

from __future__ import annotations

from lightning_robust.comparison.finished_runs import find_runs, read_run
from lightning_robust.comparison.judge import judge_comparison
from lightning_robust.comparison.page import markdown_page, write_comparison
from lightning_robust.comparison.table import compare_runs
from lightning_robust.gate.check import Judgement
from lightning_robust.gate.options import Gate
from lightning_robust.progress import track


def write_page(
    runs: list[str], metrics: str | None, mode: str | None, baseline: str | None, output: str, gate: Gate
) -> Judgement:
    """Print what is compared, write the page, and judge it."""
    folders, remarks = find_runs(runs)
    for remark in remarks:
        print(remark)
    if not folders:
        raise ValueError(f"Expected folders of finished runs, but found none in {', '.join(runs)}.")
    comparison = compare_runs(
        [read_run(folder) for folder in track(folders, "Reading runs")], metrics, baseline, mode, gate.limits
    )
    print(markdown_page(comparison))
    print("The whole page:  " + str(write_comparison(comparison, output)[0].resolve()))
    asked = [column.tag for column in comparison.columns] if metrics else []
    return judge_comparison(comparison, gate.limits, gate.source, asked)
