"""The trials of a sweep as tables, and a soup of their checkpoints."""

from __future__ import annotations

import contextlib
import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jsonargparse

from lightning_robust.sweeps.file import Sweep, as_argument, refuse_unknown
from lightning_robust.tables import number, plain_table

if TYPE_CHECKING:
    from lightning_robust.sweeps.trials import SweepTrial


def report(trials: Sequence[SweepTrial], settings: Sweep, folder: Path) -> SweepTrial:
    """Write and print the tables, and return the best trial."""
    monitor = settings.monitor
    judged = [trial for trial in trials if not math.isnan(trial.score(monitor))]
    pick = max if settings.mode == "max" else min
    best = pick(judged, key=lambda trial: trial.score(monitor), default=None)
    _write_results(trials, best, settings, folder)
    print(_format_table(trials, settings))
    finished = [trial for trial in trials if trial.status == "finished"]
    failed = sum(trial.status == "failed" for trial in trials)
    print(f"{len(finished)} of {len(trials)} trials finished, {failed} failed")
    if not finished:
        raise RuntimeError(f"Expected trials that finish, but none did, the first with: {trials[0].error}")
    if best is None:
        raise ValueError(
            f"Expected `monitor` to be a metric of the trials, but no {monitor!r} came with a number; they logged "
            f"{', '.join(finished[0].metrics)}. Everything is in {folder / 'trials.csv'}."
        )
    print(f"Best: trial {best.name}, {monitor} {best.score(monitor):.5g}, {folder / best.name}/config.yaml")
    return best


def _format_table(trials: Sequence[SweepTrial], settings: Sweep) -> str:
    rows = []
    for trial in trials:
        values = [trial.values[key] for key in settings.shown]
        shown = [number(value, 4) if isinstance(value, float) else str(value) for value in values]
        rows.append([trial.name, *shown, trial.status, trial.retries, number(trial.score(settings.monitor), 5)])
    failures = [f"trial {trial.name} failed: {trial.error}" for trial in trials if trial.status == "failed"]
    return "\n".join([plain_table(["trial", *settings.shown, "status", "retries", settings.monitor], rows), *failures])


def _write_results(trials: Sequence[SweepTrial], best: SweepTrial | None, settings: Sweep, folder: Path) -> None:
    """Everything about all trials: trials.json, and flat, trials.csv."""
    entries = [trial.as_dict() for trial in trials]
    content = {"monitor": settings.monitor, "mode": settings.mode, "best": best and best.name, "trials": entries}
    (folder / "trials.json").write_text(json.dumps(content, indent=2, allow_nan=False), encoding="utf-8")
    metrics = sorted({name for trial in trials for name in trial.metrics})
    columns = ["trial", *settings.vary, "status", "retries", *metrics, "checkpoint", "error"]
    with (folder / "trials.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(entry | trial.values | trial.metrics for entry, trial in zip(entries, trials, strict=True))


def soup_arguments(settings: Sweep) -> list[str]:
    """The section ``soup`` as arguments of the command ``soup``, checked before any trial runs."""
    from lightning_robust.cli import RobustTrainer

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    skipped = {"model", "datamodule", "ingredients", "dirpath"}
    names = parser.add_method_arguments(RobustTrainer, "soup", skip=skipped)
    soup = {"monitor": settings.monitor, "mode": settings.mode} | (settings.soup or {})
    refuse_unknown(soup, names, "`soup`")
    try:
        parsed = parser.parse_object(soup)
    except jsonargparse.ArgumentError as error:
        raise ValueError(f"`soup`: {error}") from error
    return [as_argument(name, parsed[name]) for name in names if parsed[name] is not None]


def cook(finished: Sequence[SweepTrial], best: SweepTrial, recipe: list[str], folder: Path) -> None:
    """Average the trials' last checkpoints into a soup, in the folder ``soup``."""
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
    soup = json.loads((place / "soup.json").read_text(encoding="utf-8"))
    order, score = soup["order"], soup["score"]
    print(f"Soup of {len(order)} of {len(paths)} checkpoints: {soup['monitor']} {score:.5g}, {place}/soup.ckpt")
