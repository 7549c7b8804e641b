"""Reads what a finished run wrote into its folder: configuration, last value of every scalar, wall time.

The sources are ``config.yaml``, TensorBoard event files, the CSVLogger's ``metrics.csv``, ``parity/parity.json`` and
``replay/replay.json`` (or the last two beside the configuration).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

_EVENTS = "events.out.tfevents.*"
_FAMILY = "sensitivity/family/"
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

    Returns:
        The folders, and a sentence for each path that is left out.

    Example:
        >>> find_runs(["/nowhere"])
        ([], ['/nowhere was left out: there is no such folder.'])
    """
    runs: dict[Path, None] = {}
    remarks = []
    for path in map(Path, paths):
        if not path.is_dir():
            remarks.append(f"{path} was left out: there is no such folder.")
            continue
        folders = [path] if _is_run(path) else sorted(filter(_is_run, path.rglob("*")))
        if not folders:
            remarks.append(f"{path} was left out: neither config.yaml nor event files nor metrics.csv are in it.")
        for folder in map(Path.resolve, folders):
            if folder in runs:
                remarks.append(f"{folder} was given twice and counts once.")
            runs[folder] = None
    return list(runs), remarks


def read_run(folder: str | Path) -> FinishedRun:
    """Read one folder; a file that cannot be read becomes a note."""
    folder = Path(folder)
    notes: list[str] = []
    config = _read_or_note(_read_config, folder / "config.yaml", notes)
    scalars: dict[str, float] = {}
    for name, reader in (("replay", _read_replay), ("parity", _read_parity)):
        for path in (folder / f"{name}.json", folder / name / f"{name}.json"):
            scalars |= _read_or_note(reader, path, notes)
    scalars |= _read_or_note(_read_csv, folder / "metrics.csv", notes)
    scalars |= _read_events(sorted(folder.glob(_EVENTS)), notes)
    families = [value for tag, value in scalars.items() if tag.startswith(_FAMILY)]
    if families:
        scalars[WORST] = float(pd.Series(families).max(skipna=False))
    return FinishedRun(folder, config, scalars, (*notes, *_state_of_completion(config, scalars)))


def _is_run(folder: Path) -> bool:
    names = ("config.yaml", "metrics.csv")
    return folder.is_dir() and (any((folder / name).is_file() for name in names) or any(folder.glob(_EVENTS)))


def _read_or_note(reader: Callable[[Path], dict[str, Any]], path: Path, notes: list[str]) -> dict[str, Any]:
    """The content of a file; nothing where there is no file, and nothing with a note where it cannot be read."""
    if not path.is_file():
        return {}
    try:
        return reader(path)
    except (ValueError, TypeError, KeyError, AttributeError, OSError, yaml.YAMLError) as error:
        notes.append(f"{path.name} could not be read ({type(error).__name__}: {' '.join(str(error).split())[:120]}).")
        return {}


def _read_config(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"expected keys and values, but got {type(content).__name__}")
    return content


def _read_csv(path: Path) -> dict[str, float]:
    # as text, which distinguishes a metric that became NaN from an empty cell
    table = pd.read_csv(path, dtype=str, keep_default_na=False).fillna("").drop(columns="step", errors="ignore")
    columns = {str(tag): cells[cells.str.strip() != ""].astype(float) for tag, cells in table.items()}
    return {tag: float(cells.iloc[-1]) for tag, cells in columns.items() if len(cells)}


def _read_events(paths: Sequence[Path], notes: list[str]) -> dict[str, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    entries = []
    seconds = 0.0
    for path in paths:
        events = EventAccumulator(str(path), size_guidance={"scalars": 0})
        try:
            events.Reload()
        except Exception as error:  # whatever the parser of a damaged file raises
            notes.append(f"{path.name} could not be read whole ({type(error).__name__}).")
        logged = [(tag, e.step, e.wall_time, e.value) for tag in events.Tags()["scalars"] for e in events.Scalars(tag)]
        times = [time for _, _, time, _ in logged]
        seconds += max(times) - min(events.FirstEventTimestamp(), *times) if times else 0.0
        entries += logged
    table = pd.DataFrame(entries, columns=["tag", "step", "time", "value"]).sort_values(["step", "time"])
    table = table.drop_duplicates("tag", keep="last")
    scalars = {SECONDS: seconds} if seconds > 0 else {}
    return scalars | dict(zip(table["tag"], table["value"], strict=True))


def _read_parity(path: Path) -> dict[str, float]:
    content = json.loads(path.read_text(encoding="utf-8"))
    scalars = {
        f"parity/{name}/{metric}": float(value)
        for name, target in content["targets"].items()
        for metric, value in target["metrics"].items()
    }
    scalars |= {f"attribution/{cause}": float(value) for cause, value in content["attribution"].items()}
    unit = content["unit"]
    deviations = [float(metrics[unit]) for metrics in content["sensitivity"].values() if unit in metrics]
    return {**scalars, WORST: max(deviations)} if deviations else scalars


def _read_replay(path: Path) -> dict[str, float]:
    content = json.loads(path.read_text(encoding="utf-8"))
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
    if isinstance(planned, int) and epoch is not None and epoch + 1 < planned:
        return [f"It ended in epoch {epoch + 1:g} of {planned} (crashed or stopped early); its last numbers are shown."]
    return []
