"""The command ``sweep``: many configurations as Ray Tune trials, a table of them, a soup of their checkpoints.

The file is read in ``utilities/sweeps.py``, the trials are run in ``tune.py``; here files and lines are written.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonargparse

from lightning_robust.sweeps.file import Sweep, as_argument, read_sweep, refuse_unknown
from lightning_robust.tables import plain_table

if TYPE_CHECKING:
    from lightning_robust.sweeps.trials import Trial


def sweep(
    file: str,
    *,
    output: str | None = None,
    address: str | None = None,
    cpus: int | None = None,
) -> None:
    """Train many configurations with Ray Tune, compare them, and cook a soup of their checkpoints if asked to.

    Each trial is `lightning-robust fit` in a process and a folder of its own: what a configuration writes to a
    relative path lands there, what it reads needs an absolute one. A trial that fails or is killed goes on from the
    checkpoint of its last epoch; after `retries` it is given up and the others go on. Writes into the output folder
    trials.csv, trials.json, for each trial config.yaml and its last checkpoint, and soup/.

    Args:
        file: The sweep: `configs`, `vary`, `monitor`, `mode`, `num_samples`, `seed`, `resources`, `retries`, `soup`.
        output: Folder for the results, new or empty; by default sweeps/ and the name of the file. On a cluster, one
            that all machines share.
        address: Of a running Ray cluster, such as auto or ray-head:6379; by default this machine alone.
        cpus: Cores of this machine to use; all by default.
    """
    # built on the command line's classes, which import this package
    from lightning_robust.sweeps.ray import require_ray, run_trials
    from lightning_robust.sweeps.trials import plan

    require_ray()
    wanted = read_sweep(file)
    folder = Path(output or Path("sweeps") / Path(file).stem).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"Expected a new or an empty folder, but got {folder}. Name another with --output.")
    trials = plan(wanted)
    recipe = None if wanted.soup is None else _soup_settings(wanted)
    print(f"{len(trials)} trials in {folder}")
    run_trials(trials, wanted, folder, address, cpus)
    best = _tell(trials, wanted, folder)
    if recipe is not None:
        _cook([trial for trial in trials if trial.status == "finished"], best, recipe, folder)


def _tell(trials: Sequence[Trial], wanted: Sweep, folder: Path) -> Trial:
    """Write and print the tables, and name the best trial."""
    best = _best(trials, wanted)
    _write(trials, best, wanted, folder)
    print(_table(trials, wanted))
    finished = [trial for trial in trials if trial.status == "finished"]
    failed = sum(trial.status == "failed" for trial in trials)
    print(f"{len(finished)} of {len(trials)} trials finished, {failed} failed")
    if not finished:
        raise RuntimeError(f"Expected trials that finish, but none did, the first with: {trials[0].error}")
    if best is None:
        raise ValueError(
            f"Expected `monitor` to be a metric of the trials, but no {wanted.monitor!r} came with a number; they "
            f"logged {', '.join(finished[0].metrics)}. Everything is in {folder / 'trials.csv'}."
        )
    print(
        f"Best: trial {best.name}, {wanted.monitor} {best.score(wanted.monitor):.5g}, {folder / best.name}/config.yaml"
    )
    return best


def _best(trials: Sequence[Trial], wanted: Sweep) -> Trial | None:
    judged = [trial for trial in trials if not math.isnan(trial.score(wanted.monitor))]
    pick = max if wanted.mode == "max" else min
    return pick(judged, key=lambda trial: trial.score(wanted.monitor)) if judged else None


def _table(trials: Sequence[Trial], wanted: Sweep) -> str:
    columns = ["trial", *wanted.varied, "status", "retries", wanted.monitor]
    rows = [
        [t.name, *(_short(t.values[k]) for k in wanted.varied), t.status, t.retries, f"{t.score(wanted.monitor):.5g}"]
        for t in trials
    ]
    failures = [f"trial {t.name} failed: {t.error}" for t in trials if t.status == "failed"]
    return "\n".join([plain_table(columns, rows), *failures])


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write(trials: Sequence[Trial], best: Trial | None, wanted: Sweep, folder: Path) -> None:
    """Everything about all trials: trials.json, and flat, trials.csv."""
    entries = [
        {
            "trial": trial.name,
            "values": trial.values,
            "status": trial.status,
            "retries": trial.retries,
            "metrics": {name: value if math.isfinite(value) else None for name, value in trial.metrics.items()},
            "checkpoint": None if trial.checkpoint is None else str(trial.checkpoint),
            "error": trial.error,
        }
        for trial in trials
    ]
    content = {
        "monitor": wanted.monitor,
        "mode": wanted.mode,
        "best": None if best is None else best.name,
        "trials": entries,
    }
    (folder / "trials.json").write_text(json.dumps(content, indent=2, allow_nan=False), encoding="utf-8")
    metrics = sorted({name for trial in trials for name in trial.metrics})
    with (folder / "trials.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["trial", *wanted.vary, "status", "retries", *metrics, "checkpoint", "error"])
        for t in trials:
            told = [t.metrics.get(name, "") for name in metrics]
            writer.writerow([t.name, *t.values.values(), t.status, t.retries, *told, t.checkpoint or "", t.error])


def _soup_settings(wanted: Sweep) -> list[str]:
    """The section ``soup`` as arguments of the command ``soup``, checked before any trial runs."""
    from lightning_robust.cli import RobustTrainer

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    skipped = {"model", "datamodule", "ingredients", "dirpath"}
    names = parser.add_method_arguments(RobustTrainer, "soup", skip=skipped)
    given = {"monitor": wanted.monitor, "mode": wanted.mode} | (wanted.soup or {})
    refuse_unknown(given, names, "`soup`")
    try:
        parsed = parser.parse_object(given)
    except jsonargparse.ArgumentError as error:
        raise ValueError(f"`soup`: {error}") from error
    return [as_argument(name, parsed[name]) for name in names if parsed[name] is not None]


def _cook(finished: Sequence[Trial], best: Trial, recipe: list[str], folder: Path) -> None:
    """A soup of the trials' last checkpoints, in the folder ``soup``."""
    from lightning_robust.cli import main

    if len(finished) < 2:
        print("No soup: it needs the checkpoints of two trials, but one finished.")
        return
    paths = [str(trial.checkpoint) for trial in finished]
    place = folder / "soup"
    place.mkdir()
    with contextlib.chdir(place):
        config = folder / best.name / "config.yaml"
        main(["soup", f"--config={config}", f"--ingredients={json.dumps(paths)}", *recipe, f"--dirpath={place}"])
    cooked = json.loads((place / "soup.json").read_text(encoding="utf-8"))
    order, score = cooked["order"], cooked["score"]
    print(f"Soup of {len(order)} of {len(paths)} checkpoints: {cooked['monitor']} {score:.5g}, {place}/soup.ckpt")
