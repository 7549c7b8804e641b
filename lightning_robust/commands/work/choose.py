"""What a race found: the winner's configuration, a table of all candidates, the Pareto page."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from pathlib import Path
from typing import Any

import yaml

from lightning_robust.comparison.finished_runs import SECONDS, FinishedRun
from lightning_robust.comparison.page import write_comparison
from lightning_robust.comparison.table import compare_runs
from lightning_robust.json_values import jsonable
from lightning_robust.sweeps.choice import Choice
from lightning_robust.sweeps.halving import Lead
from lightning_robust.sweeps.race import Lap, Outcome
from lightning_robust.tables import number, plain_table


def report_choice(outcome: Outcome, choice: Choice, folder: Path) -> None:
    """Write ``winner.yaml``, ``choose.json`` and the page, and print what was chosen and how sure that is."""
    winner = folder / "winner.yaml"
    winner.write_text(outcome.config, encoding="utf-8")
    (folder / "choose.json").write_text(json.dumps(jsonable(outcome_dict(outcome)), indent=2, allow_nan=False), "utf-8")
    lines = sentences(outcome, choice)
    (page, *_) = _write_page(outcome, choice, folder, lines)
    print("\n" + table(outcome, choice))
    print("\n".join(lines))
    print(f"Its configuration:  {winner}\nThe whole page:     {page.resolve()}")


def outcome_dict(outcome: Outcome) -> dict[str, Any]:
    """Everything for programs."""
    laps = [
        {**dataclasses.asdict(lap.plan), "scores": lap.scores, "trials": [trial.as_dict() for trial in lap.trials]}
        for lap in outcome.laps
    ]
    before = [dataclasses.asdict(lead) for lead in outcome.leads]
    return {"winner": outcome.winner, "leads": before, "share": outcome.share, "failed": outcome.failed, "rounds": laps}


def sentences(outcome: Outcome, choice: Choice) -> list[str]:
    """What was chosen, how sure that is, and what it cost."""
    last, out = outcome.laps[-1], [f"{name} is out: it {reason}." for name, reason in outcome.failed.items()]
    epochs = f"{last.plan.epochs} epochs and {last.plan.seeds} seed{'s' * (last.plan.seeds > 1)}"
    seconds = sum(trial.seconds for lap in outcome.laps for trial in lap.trials)
    whole = f"all {len(choice.candidates)} candidates with {choice.seeds} seeds to the end"
    return [
        f"Chosen: {outcome.winner}, with a score of {number(last.means[outcome.winner], 4)} after {epochs}.",
        *(_told_lead(lead) for lead in sorted(outcome.leads, key=lambda lead: lead.difference.value)),
        *out,
        f"The race cost {outcome.share:.2f} of training {whole}, {seconds:.0f} s.",
        "What left it earlier was not trained to the end: it might have caught up.",
    ]


def _told_lead(lead: Lead) -> str:
    ahead = f"It is {number(lead.difference.value, 3)} before {lead.over}"
    if math.isnan(lead.chance):
        return f"{ahead}; how sure that is one seed does not tell: give `seeds`."
    ends = f"{number(lead.difference.low, 3)} to {number(lead.difference.high, 3)}"
    return f"{ahead} (95 % interval over seeds {ends}): the better one with a chance of {100 * lead.chance:.0f} %."


def table(outcome: Outcome, choice: Choice) -> str:
    """Every candidate with its score in each round, and the criteria of its last."""
    heads = [f"{lap.plan.epochs} epochs" for lap in outcome.laps]
    rows = []
    for name in sorted(choice.candidates, key=lambda name: _order_in_table(outcome.laps, name)):
        means = [lap.means.get(name) for lap in outcome.laps]
        scores = ["" if mean is None else number(mean, 4) for mean in means]
        lap = _last_lap(outcome.laps, name)
        trials = [] if lap is None else _trials_of(lap, name)
        rows.append([name, *scores, *(_mean_of(trials, tag) for tag in choice.criteria)])
    return plain_table(["candidate", *heads, *choice.criteria], rows)


def _mean_of(trials: list[Any], tag: str) -> str:
    return number(statistics.fmean(trial.metrics[tag] for trial in trials), 4) if trials else ""


def _write_page(outcome: Outcome, choice: Choice, folder: Path, lines: list[str]) -> list[Path]:
    """The comparison of each candidate's longest trainings, with what was chosen above it."""
    runs, names, last = [], {}, outcome.laps[-1]
    for name in choice.candidates:
        lap = _last_lap(outcome.laps, name)
        if lap is None:
            continue
        for trial in _trials_of(lap, name):
            place = folder / f"round-{outcome.laps.index(lap) + 1}" / trial.name
            config = yaml.safe_load(trial.config)
            runs.append(FinishedRun(place, config, {**trial.metrics, SECONDS: trial.seconds}))
            names[place] = name if lap is last else f"{name}, {lap.plan.epochs} epochs"
    metrics = ",".join(f"{tag}:{'max' if weight > 0 else 'min'}" for tag, weight in choice.criteria.items())
    comparison = compare_runs(runs, metrics)
    rows = tuple(dataclasses.replace(row, name=names[row.runs[0].folder]) for row in comparison.rows)
    cautions = (*lines, *comparison.cautions)
    return write_comparison(dataclasses.replace(comparison, rows=rows, cautions=cautions), folder)


def _last_lap(laps: list[Lap], name: str) -> Lap | None:
    """The last round in which a candidate has a score."""
    return next((lap for lap in reversed(laps) if name in lap.scores), None)


def _trials_of(lap: Lap, name: str) -> list[Any]:
    return [trial for trial in lap.trials if trial.values["candidate"] == name]


def _order_in_table(laps: list[Lap], name: str) -> tuple[int, float]:
    """Later rounds first, then higher scores."""
    lap = _last_lap(laps, name)
    return (0, 0.0) if lap is None else (-1 - laps.index(lap), -lap.means[name])
