"""A race of candidates by successive halving: every round a whole training on Ray Tune, kept in files as it goes on."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lightning_robust.checks import check_new_folder
from lightning_robust.json_values import jsonable
from lightning_robust.sweeps.choice import Choice
from lightning_robust.sweeps.halving import Lead, Round, leads, plan_rounds, survivors
from lightning_robust.sweeps.lengths import beyond, brought_down, value_at
from lightning_robust.sweeps.ray import CONFIG, RESULT, cluster, run_trials
from lightning_robust.sweeps.trials import SweepTrial, complete

SETTINGS = "choice.json"
"""What a folder's race was asked for."""


@dataclass
class Lap:
    """A round and what came of it.

    Args:
        plan: How many train for how long.
        trials: Of all candidates and seeds.
        scores: Candidate -> its score for each seed; without those that failed.
    """

    plan: Round
    trials: list[SweepTrial]
    scores: dict[str, list[float]] = field(default_factory=dict)

    @property
    def means(self) -> dict[str, float]:
        """Candidate -> its mean score."""
        return {name: statistics.fmean(values) for name, values in self.scores.items()}


@dataclass(frozen=True)
class Outcome:
    """What a race found.

    Args:
        winner: The candidate with the highest mean score of the last round.
        laps: The rounds.
        failed: Candidate -> why it is out of the race, in one line.
        leads: How far the winner is before each other finalist.
        share: What the race cost, in epochs, as a share of training all candidates with all seeds to the end.
    """

    winner: str
    laps: list[Lap]
    failed: dict[str, str]
    leads: list[Lead]
    share: float

    @property
    def config(self) -> str:
        """The winner's configuration, with the first seed."""
        return next(trial.config for trial in self.laps[-1].trials if trial.values["candidate"] == self.winner)


class Race:
    """Candidates on their way.

    Args:
        choice: The settings.
        folder: Of the race; one with the same settings goes on where it was.
        address: Address of a running Ray cluster, or None for this machine.
        cpus: How many cores of this machine to use; None is all.

    Raises:
        ValueError: For a folder with another race, a candidate that ``lightning-robust fit`` would refuse, a
            configuration without ``trainer.max_epochs``, one whose schedule is longer than the first round and not in
            ``scaled``, or a budget too small.
    """

    def __init__(self, choice: Choice, folder: Path, address: str | None = None, cpus: int | None = None) -> None:
        self.choice, self.folder, self.address, self.cpus = choice, folder, address, cpus
        self.failed: dict[str, str] = {}
        epochs = _epochs_of(choice)
        self.rounds = plan_rounds(len(choice.candidates), epochs, choice.seeds, choice.budget, choice.reduction)
        self.whole = Round(len(choice.candidates), epochs, choice.seeds)
        self._configs: dict[tuple[str, int, int], str] = {}
        for name in choice.candidates:
            self._check_lengths(name)
        _open(folder, choice)

    def run(self) -> Outcome:
        """All rounds, on one cluster.

        Raises:
            ImportError: If Ray is not installed.
            KeyboardInterrupt: If Ray was interrupted; the same race goes on from there.
            RuntimeError: If fewer than one candidate is left.
            ValueError: If no candidate has numbers for all criteria.
        """
        with cluster(self.address, self.cpus):
            return self._run()

    def _run(self) -> Outcome:
        names, laps = [*self.choice.candidates], []
        for number, plan in enumerate(self.rounds):
            names = names[: plan.candidates]
            size = f"{len(names)} candidates, {plan.epochs} epochs, {plan.seeds} seed{'s' * (plan.seeds > 1)}"
            print(f"Round {number + 1} of {len(self.rounds)}: {size}", flush=True)
            laps.append(self._lap(number, plan, names))
            names = survivors(laps[-1].means, len(names))
        (winner, *_), last = names, laps[-1]
        cost = sum(len(lap.trials) * lap.plan.epochs for lap in laps)
        return Outcome(winner, laps, self.failed, leads(last.scores, winner), cost / self.whole.cost)

    def _lap(self, number: int, plan: Round, names: list[str]) -> Lap:
        folder = self.folder / f"round-{number + 1}"
        folder.mkdir(exist_ok=True)
        pairs = [(name, seed) for name in names for seed in range(plan.seeds)]
        lap = Lap(
            plan,
            [
                SweepTrial(place, {"candidate": name, "seed": seed}, self._config(name, seed, plan.epochs))
                for place, (name, seed) in enumerate(pairs)
            ],
        )
        if number == 0:
            self._require_criteria(lap.trials, folder)
        self._train(lap.trials, folder)
        for name in names:
            self._judge(lap, name)
        if not lap.scores:
            raise RuntimeError(f"Expected a candidate that finishes, but none did: {_reasons_told(self.failed)}")
        return lap

    def _require_criteria(self, trials: list[SweepTrial], folder: Path) -> None:
        """Stop after the first training that ends, if its metrics are not those of the criteria."""
        for trial in trials:
            self._train([trial], folder)
            if trial.status == "finished":
                if missing := [name for name in self.choice.criteria if name not in trial.metrics]:
                    raise ValueError(
                        f"Expected `criteria` to be metrics that a run logs, but {trial.values['candidate']} logged no "
                        f"{', '.join(missing)}. It logged {', '.join(trial.metrics)}. Name others, or put the callback "
                        "that measures them into `configs`."
                    )
                return

    def _train(self, trials: list[SweepTrial], folder: Path) -> None:
        """Those that have no result yet."""
        for trial in trials:
            _take_result(trial, folder)
        if missing := [trial for trial in trials if trial.status == "unfinished"]:
            run_trials(missing, self.choice, folder)
        if any(trial.status == "unfinished" for trial in trials):
            # Ray takes a Ctrl-C to itself and returns
            print("The race was interrupted. The same command goes on from here.", flush=True)
            raise KeyboardInterrupt

    def _judge(self, lap: Lap, name: str) -> None:
        """The scores of a candidate, or why it is out."""
        trials = [trial for trial in lap.trials if trial.values["candidate"] == name]
        if reasons := [reason for trial in trials if (reason := self._why_out(trial))]:
            self.failed[name] = reasons[0]
            print(f"{name} is out: it {reasons[0]}", flush=True)
        else:
            lap.scores[name] = [self.choice.score(trial.metrics) for trial in trials]

    def _why_out(self, trial: SweepTrial) -> str:
        """Empty for a training whose numbers count."""
        if trial.status != "finished":
            return f"failed with seed {trial.values['seed']}: {trial.error or trial.status}"
        missing = self.choice.missing(trial.metrics)
        return f"has no finite number for {', '.join(missing)} with seed {trial.values['seed']}" if missing else ""

    def _config(self, name: str, seed: int, epochs: int) -> str:
        """The whole configuration of a training; parsed once, though it is asked for to be checked and to be run."""
        key = name, seed, epochs
        if key not in self._configs:
            values = self.choice.candidates[name] | {"trainer.max_epochs": epochs, "seed_everything": seed}
            if epochs < self.whole.epochs:
                values |= self._lengths(name, epochs / self.whole.epochs)
            self._configs[key] = complete(self.choice.configs, values, f"Candidate {name}")
        return self._configs[key]

    def _lengths(self, name: str, share: float) -> dict[str, Any]:
        """The lengths in epochs that a candidate has, in a training of which only a share is left."""
        if not self.choice.scaled:
            return {}
        whole, lengths = yaml.safe_load(self._config(name, 0, self.whole.epochs)), {}
        for key in self.choice.scaled:
            if (value := value_at(whole, key)) is not None:
                try:
                    lengths[key] = brought_down(value, share)
                except ValueError as error:
                    raise ValueError(f"`scaled`, {key} of candidate {name!r}: {error}") from error
        return lengths

    def _check_lengths(self, name: str) -> None:
        """Refuse a training whose schedule a shorter round would cut off."""
        self._lengths(name, 1.0)  # refuses what is no length, in a race of one round too
        shortest = self.rounds[0].epochs
        config = yaml.safe_load(self._config(name, 0, shortest))
        for key in beyond(config, shortest, self.choice.scaled):
            raise ValueError(
                f"Expected `{key}` in `scaled`: in candidate {name!r} it is {value_at(config, key)} epochs, and the "
                f"first round has {shortest}. Give `scaled: [{key}]` to bring it down with the rounds."
            )


def _epochs_of(choice: Choice) -> int:
    epochs = yaml.safe_load(complete(choice.configs, {"seed_everything": 0}, "The base"))["trainer"]["max_epochs"]
    if not isinstance(epochs, int) or epochs < 1:
        raise ValueError(
            f"Expected `trainer.max_epochs` in {', '.join(choice.configs)}, for rounds of its parts, but got {epochs}."
        )
    return epochs


def _open(folder: Path, choice: Choice) -> None:
    """Begin a race in a folder, or go on with the same one."""
    asked = json.loads(json.dumps(jsonable(dataclasses.asdict(choice))))
    path = folder / SETTINGS
    if path.is_file():
        if json.loads(path.read_text(encoding="utf-8")) != asked:
            raise ValueError(
                f"Expected the race that is in {folder}, but got another. Name a new folder with --output."
            )
        print(f"Going on with the race in {folder}")
        return
    check_new_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asked, indent=2), encoding="utf-8")


def _take_result(trial: SweepTrial, folder: Path) -> None:
    """Take what a trial left in its folder when it ended, if it has; another training in its place goes."""
    path, of = folder / trial.name / RESULT, folder / trial.name / CONFIG
    if of.is_file() and of.read_text(encoding="utf-8") != trial.config:
        print(f"{folder.name}/{trial.name} held another training, which is thrown away", flush=True)
        shutil.rmtree(of.parent)
    if trial.status == "unfinished" and path.is_file():
        told = json.loads(path.read_text(encoding="utf-8"))
        trial.metrics = {name: math.nan if value is None else value for name, value in told["metrics"].items()}
        trial.seconds, trial.status = told["seconds"], "finished"


def _reasons_told(failed: dict[str, str]) -> str:
    return "; ".join(f"{name} {reason}" for name, reason in failed.items())
