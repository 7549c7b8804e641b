"""The runs are found, read, compared and put on a page."""

from __future__ import annotations

from lightning_robust.comparison.finished_runs import find_runs, read_run
from lightning_robust.comparison.page import markdown_page, write_comparison
from lightning_robust.comparison.table import compare_runs


def write_page(runs: list[str], metrics: str | None, mode: str | None, baseline: str | None, output: str) -> None:
    """Print what is compared, and write the page."""
    folders, remarks = find_runs(runs)
    for remark in remarks:
        print(remark)
    if not folders:
        raise ValueError(f"Expected folders of finished runs, but found none in {', '.join(runs)}.")
    comparison = compare_runs([read_run(folder) for folder in folders], metrics, baseline, mode)
    print(markdown_page(comparison))
    print("The whole page:  " + str(write_comparison(comparison, output)[0].resolve()))
