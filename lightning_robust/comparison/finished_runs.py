"""Reads what a finished run wrote into its folder: configuration, last value of every scalar, wall time.

The sources are ``config.yaml``, TensorBoard event files, the CSVLogger's ``metrics.csv``, ``parity/parity.json`` and
``replay/replay.json`` (or the last two beside the configuration).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lightning_robust.comparison.event_files import LoggedScalar, read_event_file
from lightning_robust.reading import read_json, read_last_cells, read_yaml

_EVENTS = "events.out.tfevents."
FAMILY = "sensitivity/family/"
WORST = "sensitivity/worst"
SECONDS = "time/seconds"


@dataclass(frozen=True)
class FinishedRun:
    """What the folder of one run holds.

    Args:
        folder: The folder.
        config: The saved ``config.yaml``; empty without one.
        scalars: Tag -> last logged value. ``time/seconds`` is the wall time that the event files span, without the
            pauses between several files; ``sensitivity/worst`` is the largest over the families of preprocessing
            perturbations; ``replay/...`` is the worst line of a replay.
        notes: Sentences on what is wrong with the run.
    """

    folder: Path
    config: Mapping[str, Any]
    scalars: Mapping[str, float]
    notes: tuple[str, ...] = ()


def find_runs(paths: Sequence[str | Path]) -> tuple[list[Path], list[str]]:
    """List the folders of runs, each once, in order of appearance; a folder above runs stands for all of them.

    Links to folders are looked into, not followed further, so that loops end. A folder that cannot be opened is left
    out, and so is a stray config.yaml above runs.

    Returns:
        The folders, and a sentence for each path that is left out.

    Example:
        >>> find_runs(["/nowhere"])
        ([], ['/nowhere was left out: there is no such folder.'])
    """
    runs: dict[Path, None] = {}
    remarks: list[str] = []
    for path in map(Path, paths):
        if not os.path.isdir(path):
            remarks.append(f"{path} was left out: there is no such folder.")
            continue
        before = len(remarks)
        folders = _runs_below(path, remarks)
        if not folders and len(remarks) == before:
            remarks.append(f"{path} was left out: neither config.yaml nor event files nor metrics.csv are in it.")
        for folder in map(Path.resolve, folders):
            if folder in runs:
                remarks.append(f"{folder} was given twice and counts once.")
            runs[folder] = None
    return list(runs), remarks


def _runs_below(top: Path, remarks: list[str]) -> list[Path]:
    """The folders of runs in a folder, itself included; what a run wrote below its own folder is part of it."""
    runs: list[Path] = []
    strays: list[Path] = []
    pending = [top]
    while pending:
        folder = pending.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            remarks.append(f"{folder} was left out: {error.strerror}.")
            continue
        kind = _kind_of({entry.name for entry in entries})
        if kind == "logged":
            runs.append(folder)
            continue
        strays += [folder] if kind == "configured" and (folder == top or not folder.is_symlink()) else []
        pending += _folders_in(folder, entries, top)
    return sorted(runs + _without_runs_below(strays, runs, remarks))


def _without_runs_below(strays: Sequence[Path], runs: Sequence[Path], remarks: list[str]) -> list[Path]:
    """The folders with a configuration alone that are runs, if without numbers; a stray file above runs is none."""
    alone = [folder for folder in strays if not any(run.is_relative_to(folder) for run in runs)]
    above = "{}/config.yaml was left out: it stands above runs and has no numbers beside it."
    remarks += [above.format(folder) for folder in strays if folder not in alone]
    return alone


def _kind_of(names: set[str]) -> str:
    """Whether a folder holds what a logger wrote, or a configuration alone, or neither."""
    configured = "config.yaml" in names
    logged = "metrics.csv" in names or any(name.startswith(_EVENTS) for name in names)
    if {"parity", "checkpoints"} <= names:  # of a run whose logger keeps its numbers elsewhere, as W&B and MLflow
        return "logged"
    if logged and (configured or "replay.json" not in names):  # the command replay writes events beside its own report
        return "logged"
    return "configured" if configured else ""


def _folders_in(folder: Path, entries: Sequence[os.DirEntry[str]], top: Path) -> Iterator[Path]:
    """The folders to look into next; none below a link, save that of the user."""
    if folder != top and folder.is_symlink():
        return
    for entry in entries:
        if os.path.isdir(entry.path):
            yield Path(entry.path)


def read_run(folder: str | Path) -> FinishedRun:
    """Read one folder; a file that cannot be read becomes a note."""
    folder = Path(folder)
    notes: list[str] = []
    config = _read_or_note(_read_config, folder / "config.yaml", notes)
    scalars: dict[str, float] = {}
    for name, reader in (("replay", _read_replay), ("parity", _read_parity)):
        for path in (folder / f"{name}.json", *_reports(folder, name)):
            scalars |= _read_or_note(reader, path, notes)
    scalars |= _read_or_note(_read_csv, folder / "metrics.csv", notes)
    scalars |= _read_events(sorted(folder.glob(f"{_EVENTS}*")), notes)
    families = [value for tag, value in scalars.items() if tag.startswith(FAMILY)]
    if families:
        scalars[WORST] = float(pd.Series(families).max(skipna=False))
    return FinishedRun(folder, config, scalars, (*notes, *_state_of_completion(config, scalars)))


def _reports(folder: Path, name: str) -> list[Path]:
    """The report of a run; where several fits wrote into its folder, or into one without a logger, those of all.

    They are in order, so that the last number counts.
    """
    numbered = {path: path.parent.name.removeprefix(name) for path in folder.glob(f"{name}*/{name}.json")}
    ours = {path: end for path, end in numbered.items() if re.fullmatch(r"(-v?\d+)?", end)}
    return sorted(ours, key=lambda path: int(ours[path].lstrip("-v") or -1))


def _read_or_note(reader: Callable[[Path], dict[str, Any]], path: Path, notes: list[str]) -> dict[str, Any]:
    """The content of a file; nothing where there is no file, and nothing with a note where it cannot be read."""
    try:
        return reader(path) if os.path.lexists(path) else {}
    except Exception as error:  # whatever was written there, the other runs are compared
        notes.append(f"{path.name} could not be read ({type(error).__name__}: {' '.join(str(error).split())[:300]}).")
        return {}


def _read_config(path: Path) -> dict[str, Any]:
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"expected keys and values, but got {type(content).__name__}")
    trainer = content.get("trainer")
    if not isinstance(trainer, dict | None):
        raise ValueError(f"expected keys and values in `trainer`, but got {type(trainer).__name__}")
    _check_classes(content)
    return content


def _check_classes(value: Any) -> None:
    """Refuse keys, classes and arguments that no configuration has."""
    if isinstance(value, dict):
        for key, kinds in (("class_path", str | None), ("init_args", dict | None)):
            if not isinstance(value.get(key), kinds):
                raise ValueError(f"expected `{key}` to be a {kinds}, but got {type(value[key]).__name__}")
        if not all(isinstance(key, str | int | float) for key in value):
            raise ValueError("expected keys that are words or numbers")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_classes(item)


def _read_csv(path: Path) -> dict[str, float]:
    return {column: float(cell) for column, cell in read_last_cells(path).items() if column != "step"}


def _read_events(paths: Sequence[Path], notes: list[str]) -> dict[str, float]:
    entries: list[LoggedScalar] = []
    seconds = 0.0
    for path in paths:
        events = read_event_file(path)
        if events.damage:
            notes.append(f"{path.name} could not be read whole ({events.damage}).")
        times = [scalar.time for scalar in events.scalars]
        seconds += max(times) - min(events.begun, *times) if times else 0.0
        entries += events.scalars
    table = pd.DataFrame(entries, columns=LoggedScalar._fields).sort_values(["step", "time"])
    table = table.drop_duplicates("tag", keep="last")
    scalars = {SECONDS: seconds} if seconds > 0 else {}
    return scalars | dict(zip(table["tag"], table["value"], strict=True))


def _read_parity(path: Path) -> dict[str, float]:
    content = read_json(path)
    scalars = {
        f"parity/{name}/{metric}": float(value)
        for name, target in content["targets"].items()
        for metric, value in target["metrics"].items()
    }
    scalars |= {f"attribution/{cause}": float(value) for cause, value in content["attribution"].items()}
    return scalars | {f"{FAMILY}{family}": float(value) for family, value in content.get("families", {}).items()}


def _read_replay(path: Path) -> dict[str, float]:
    content = read_json(path)
    scalars: dict[str, float] = {}
    for name, result in {"torch-fp32": content["torch-fp32"], **content["runtimes"]}.items():
        # PyTorch is the reference: its own distance is zero and says nothing
        metrics = ["swing", "bend"] if name == "torch-fp32" else ["swing", "bend", "p99"]
        worst = pd.DataFrame(result["lines"]).reindex(columns=metrics).astype(float).max().dropna()
        scalars |= {f"replay/{name}/{metric}": float(value) for metric, value in worst.items()}
    return scalars


def _state_of_completion(config: Mapping[str, Any], scalars: Mapping[str, float]) -> list[str]:
    if not scalars:
        return ["It logged no number: it ended before the first one, or its logger writes elsewhere."]
    trainer = config.get("trainer")
    planned = trainer.get("max_epochs") if isinstance(trainer, dict) else None
    epoch = scalars.get("epoch")
    if isinstance(planned, int) and epoch is not None and math.isfinite(epoch) and epoch + 1 < planned:
        return [f"It ended in epoch {epoch + 1:g} of {planned} (crashed or stopped early); its last numbers are shown."]
    return []
