"""What a finished run left in its folder: configuration, last value of every scalar, time. Nothing is compared here.

Read are ``config.yaml``, TensorBoard event files, the CSVLogger's ``metrics.csv``, ``parity/parity.json`` and
``replay/replay.json`` (or the same two beside the configuration).
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_EVENTS = "events.out.tfevents.*"
_FAMILY = "sensitivity/family/"
WORST = "sensitivity/worst"
SECONDS = "time/seconds"


@dataclass(frozen=True)
class FinishedRun:
    """One run as its folder tells it.

    Args:
        folder: Where it lies.
        config: The saved ``config.yaml``; empty where there is none.
        scalars: Tag -> last logged value. ``time/seconds`` is the wall time that the event files span (pauses between
            several files left out), ``sensitivity/worst`` the largest of the families of preprocessing perturbations,
            ``replay/...`` the worst line of a replay.
        notes: What the reader should know, a sentence each.
    """

    folder: Path
    config: Mapping[str, Any]
    scalars: Mapping[str, float]
    notes: tuple[str, ...] = field(default=())


def find_runs(paths: Sequence[str | Path]) -> tuple[list[Path], list[str]]:
    """Folders of runs, each once, in order of appearance; a folder above runs stands for all of them.

    Returns:
        The folders, and a sentence for each path that was left out.

    Example:
        >>> find_runs(["/nowhere"])
        ([], ['/nowhere was left out: there is no such folder.'])
    """
    found: dict[Path, None] = {}
    remarks = []
    for path in map(Path, paths):
        if not path.is_dir():
            remarks.append(f"{path} was left out: there is no such folder.")
            continue
        folders = [path] if _is_run(path) else sorted(folder for folder in path.rglob("*") if _is_run(folder))
        if not folders:
            remarks.append(f"{path} was left out: neither config.yaml nor event files nor metrics.csv are in it.")
        for folder in map(Path.resolve, folders):
            if folder in found:
                remarks.append(f"{folder} was given twice and counts once.")
            found[folder] = None
    return list(found), remarks


def read_run(folder: str | Path) -> FinishedRun:
    """Everything that one folder tells; a file that cannot be read becomes a note."""
    folder = Path(folder)
    notes: list[str] = []
    config = _tried(_read_config, folder / "config.yaml", notes) or {}
    scalars: dict[str, float] = {}
    for name, reader in (("replay", _read_replay), ("parity", _read_parity)):
        for path in (folder / f"{name}.json", folder / name / f"{name}.json"):
            scalars |= _tried(reader, path, notes) or {}
    scalars |= _tried(_read_csv, folder / "metrics.csv", notes) or {}
    logged = _read_events(sorted(folder.glob(_EVENTS)), notes)
    scalars |= logged
    families = [value for tag, value in scalars.items() if tag.startswith(_FAMILY)]
    if families:
        scalars[WORST] = math.nan if any(map(math.isnan, families)) else max(families)
    return FinishedRun(folder, config, scalars, (*notes, *_doubts(config, scalars)))


def _is_run(folder: Path) -> bool:
    return folder.is_dir() and (
        (folder / "config.yaml").is_file() or (folder / "metrics.csv").is_file() or any(folder.glob(_EVENTS))
    )


def _tried(reader: Callable[[Path], Any], path: Path, notes: list[str]) -> Any:
    """What a reader makes of a file; None, with a note, where it cannot be read."""
    if not path.is_file():
        return None
    try:
        return reader(path)
    except (ValueError, TypeError, KeyError, AttributeError, OSError, yaml.YAMLError) as error:
        notes.append(f"{path.name} could not be read ({type(error).__name__}: {' '.join(str(error).split())[:120]}).")
        return None


def _read_config(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"expected keys and values, but got {type(content).__name__}")
    return content


def _read_csv(path: Path) -> dict[str, float]:
    last: dict[str, float] = {}
    with path.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            last |= {tag: float(cell) for tag, cell in row.items() if tag and isinstance(cell, str) and cell.strip()}
    return {tag: value for tag, value in last.items() if tag != "step"}


def _read_events(paths: Sequence[Path], notes: list[str]) -> dict[str, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    last: dict[str, tuple[int, float, float]] = {}
    seconds = 0.0
    for path in paths:
        events = EventAccumulator(str(path), size_guidance={"scalars": 0})
        try:
            events.Reload()
        except Exception as error:  # whatever the parser of a damaged file raises
            notes.append(f"{path.name} could not be read whole ({type(error).__name__}).")
        entries = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
        for tag, values in entries.items():
            newest = max((entry.step, entry.wall_time, entry.value) for entry in values)
            last[tag] = max(last.get(tag, newest), newest, key=lambda entry: entry[:2])
        times = [entry.wall_time for values in entries.values() for entry in values]
        seconds += max(times) - min(events.FirstEventTimestamp(), *times) if times else 0.0
    found = {tag: value for tag, (_, _, value) in last.items()}
    return {SECONDS: seconds, **found} if seconds > 0 else found


def _read_parity(path: Path) -> dict[str, float]:
    content = json.loads(path.read_text(encoding="utf-8"))
    found = {
        f"parity/{name}/{metric}": float(value)
        for name, target in content["targets"].items()
        for metric, value in target["metrics"].items()
    }
    found |= {f"attribution/{cause}": float(value) for cause, value in content["attribution"].items()}
    moved = [float(m[content["unit"]]) for m in content["sensitivity"].values() if content["unit"] in m]
    return {**found, WORST: max(moved)} if moved else found


def _read_replay(path: Path) -> dict[str, float]:
    content = json.loads(path.read_text(encoding="utf-8"))
    results = {"torch-fp32": content["torch-fp32"], **content["runtimes"]}
    found = {}
    for name, result in results.items():
        for metric in ("swing", "bend", "p99"):
            amounts = [float(line[metric]) for line in result["lines"] if line.get(metric) is not None]
            if amounts and not (name == "torch-fp32" and metric == "p99"):
                found[f"replay/{name}/{metric}"] = max(amounts)
    return found


def _doubts(config: Mapping[str, Any], scalars: Mapping[str, float]) -> list[str]:
    if not scalars:
        return ["It logged no number: it ended before the first one, or its logger writes elsewhere."]
    trainer = config.get("trainer")
    planned = trainer.get("max_epochs") if isinstance(trainer, dict) else None
    done = scalars.get("epoch")
    if isinstance(planned, int) and planned > 0 and done is not None and done + 1 < planned:
        return [f"It ended in epoch {done + 1:g} of {planned} (crashed or stopped early); its last numbers are shown."]
    return []
