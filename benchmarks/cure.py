"""Training against preprocessing differences on lanes: what it removes, what it costs, and what it never saw.

    python benchmarks/cure.py --recording solidWhiteRight.mp4 [--seeds 0 1 2] [--out runs/cure] [--jobs 2]

Every row is a command of ``lightning-robust`` over 2,000 rendered pictures, twelve epochs unless its name
says more; finished ones are kept in ``results.json`` and not run again, and the weights of each stand in its folder as
``final.ckpt``, for ``libraries.py``. ``lane_sensitivity.py`` says what is measured, on held-out rendered roads and on a
real recording. The rows "without ..." leave one family out of training, for the third table. ``--only`` takes some of
the rows.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from pathlib import Path

from lane_sensitivity import Source, sensitivities, sources
from rows import COST, Columns, Results, measured_run, options, quiet_trainer, run_rows
from suite_lanes import CONFIG, FGSM, RECIPE, SWA

from lightning_robust.cli import RobustCLI
from lightning_robust.deployment.pixels.catalogue import CATALOGUE
from lightning_robust.deployment.pixels.names import FAMILIES
from lightning_robust.tables import markdown

EPOCHS = ["--trainer.max_epochs=12"]
CONSISTENCY = ["--model.preprocessing_distance=values", "--model.preprocessing_warmup_epochs=8"]
MIXIN = ["--model.preprocessing_weight=4", *CONSISTENCY, "--model.preprocessing_entries=all"]
PARITY = ["--deployment_parity.targets=[torch-fp32]", "--deployment_parity.perturbations=all"]
ROWS: dict[str, list[str]] = {
    "plain": [],
    "plain, 24 epochs": ["--trainer.max_epochs=24"],
    "FGSM-RS": FGSM,
    "augmentation": ["--model.preprocessing_weight=1e-9", "--model.preprocessing_entries=all"],
    "random": MIXIN,
    "random, weight 10": [*MIXIN, "--model.preprocessing_weight=10"],
    "worst": [*MIXIN, "--model.preprocessing_draw=worst"],
    "measured": [*MIXIN, "--model.preprocessing_entries=measured", *PARITY],
    "random, SWA": [*MIXIN, *SWA, "--swa.start=8"],
    "random, FGSM-RS": [*MIXIN, *FGSM, "--adversarial.eps=0.5/255"],
}
LEFT_OUT = {
    f"without {family}": [
        *MIXIN,
        f"--model.preprocessing_entries=[{','.join(name for name in CATALOGUE if name not in names)}]",
    ]
    for family, names in FAMILIES.items()
}
COLUMNS: Columns = {
    "clean": ("clean", 1, ".1f"),
    "rendered: p99 median": ("p99_median/rendered", 1, ".1f"),
    "p99 worst": ("p99_worst/rendered", 1, ".0f"),
    "mean median": ("mean_median/rendered", 1, ".2f"),
    "mean worst": ("mean_worst/rendered", 1, ".1f"),
    "recording: error": ("recording_px", 1, ".2f"),
    "p99 median ": ("p99_median/recording", 1, ".2f"),
    "p99 worst ": ("p99_worst/recording", 1, ".1f"),
    "mean median ": ("mean_median/recording", 1, ".2f"),
    "mean worst ": ("mean_worst/recording", 1, ".2f"),
    "swing": ("swing", 1, ".2f"),
    "its worst": ("swing_worst", 1, ".2f"),
    "bend": ("bend", 1, ".2f"),
    "its worst ": ("bend_worst", 1, ".2f"),
    **COST,
}


def measured(cli: RobustCLI, weights: Path, pictures: list[Source]) -> dict[str, float]:
    """All columns but the cost, of the weights that training returned; these are kept."""
    cli.trainer.save_checkpoint(weights)
    (found,) = quiet_trainer([]).validate(cli.model, cli.datamodule, verbose=False)
    return {"clean": found["val/lateral_px"]} | sensitivities(cli.model, pictures)


def trained(name: str, seed: int, folder: Path, pictures: list[Source]) -> dict[str, float]:
    """One row: train by its command, then measure."""
    switches = (ROWS | LEFT_OUT)[name]
    measure_it = functools.partial(measured, weights=folder / "final.ckpt", pictures=pictures)
    return measured_run(CONFIG, seed, folder, [*RECIPE, *EPOCHS, *switches], measure_it)


def by_family(results: Results, given: argparse.Namespace, source: str) -> str:
    """The 99th percentile of each family in every row."""
    columns = {family: (f"p99/{source}/{family}", 1.0, ".2f") for family in FAMILIES}
    return results.table([row for row in given.only if row in ROWS], given.seeds, columns)


def left_out(results: Results, given: argparse.Namespace, source: str) -> str:
    """Each family's 99th percentile: plain, trained on all, and trained on all others."""
    lines = []
    for family in FAMILIES:
        rows = ("plain", "random", f"without {family}")
        cells = [_cell(results, row, given.seeds, f"p99/{source}/{family}") for row in rows]
        lines.append([family, *cells])
    return markdown(["family", "plain", "trained on all", "trained without it"], lines)


def _cell(results: Results, row: str, seeds: list[int], tag: str) -> str:
    values = [results.content[key][tag] for seed in seeds if (key := f"{row} | {seed}") in results.content]
    spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.median(values):.2f}{spread}" if values else ""


def main() -> None:
    """Run what is missing and print the tables."""
    given = options(__doc__, "runs/cure", ROWS | LEFT_OUT, files=["recording"])
    results = run_rows(given, trained, sources(given.out / "pixels", given.recording))
    print("\n" + results.table([row for row in given.only if row in ROWS], given.seeds, COLUMNS))
    for source in ("recording", "rendered"):
        print(f"\n99th percentile by family, {source}\n\n{by_family(results, given, source)}")
        print(f"\nTrained without the family, {source}\n\n{left_out(results, given, source)}")


if __name__ == "__main__":
    main()
