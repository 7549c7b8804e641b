"""Races whose trainings are learning curves known in advance: who goes on, what is kept, what is said."""

import contextlib
import json
import math

import pytest
import yaml

from lightning_robust.sweeps import race as race_module
from lightning_robust.sweeps.choice import Choice
from lightning_robust.sweeps.race import Race

EPOCHS = 9


class Track:
    """In place of Ray: each candidate's metrics by epochs and seed, and what was asked to run."""

    def __init__(self, curves, stop_after=None):
        self.curves, self.stop_after, self.ran = curves, stop_after, []
        self.interrupted = False

    def __call__(self, trials, settings, folder):
        for trial in trials:
            if self.stop_after is not None and len(self.ran) >= self.stop_after:
                if self.interrupted:
                    return  # as Ray does
                raise KeyboardInterrupt
            name, seed, epochs = trial.values["candidate"], trial.values["seed"], int(trial.config.split()[-1])
            self.ran.append((name, seed, epochs))
            found = self.curves[name](epochs, seed)
            if isinstance(found, str):
                trial.status, trial.error = "failed", found
                continue
            place = folder / trial.name
            place.mkdir(exist_ok=True)
            (place / "config.yaml").write_text(trial.config)
            told = {key: value if math.isfinite(value) else None for key, value in found.items()}
            (place / "ended.json").write_text(json.dumps({"metrics": told, "seconds": 1.0}))
            trial.status, trial.metrics, trial.seconds = "finished", found, 1.0


@pytest.fixture
def started(monkeypatch):
    """A function that makes a race on a track."""

    def complete(configs, values, name):
        epochs = values.get("trainer.max_epochs", EPOCHS)
        schedule = {key.partition(".")[2]: value for key, value in values.items() if key.startswith("lr_scheduler.")}
        head = f"# {start.base}, {name}, seed {values.get('seed_everything')}\n"
        return f"{head}lr_scheduler: {json.dumps({'init_args': schedule})}\ntrainer:\n  max_epochs: {epochs}\n"

    monkeypatch.setattr(race_module, "complete", complete)
    monkeypatch.setattr(race_module, "cluster", lambda address, cpus: contextlib.nullcontext())

    def start(folder, curves, stop_after=None, **settings):
        track = Track(curves, stop_after)
        monkeypatch.setattr(race_module, "run_trials", track)
        plain = {"candidates": {name: {} for name in curves}, "criteria": {"acc": 1.0}, "budget": 0.5, "seeds": 3}
        choice = Choice(["base.yaml"], **plain | settings)
        return Race(choice, folder), track

    start.base = "as it was"
    return start


def curve(last, first=0.0, noise=0.0):
    """An accuracy that grows in a straight line."""
    return lambda epochs, seed: {"acc": first + (last - first) * epochs / EPOCHS + noise * (seed - 1), "other": 7.0}


def test_the_best_third_goes_on_and_the_best_mean_wins(started, tmp_path):
    curves = {f"c{number}": curve(0.1 * number, noise=0.01) for number in range(9)}
    race, track = started(tmp_path, curves)
    outcome = race.run()
    assert outcome.winner == "c8"
    ran = [{trial.values["candidate"] for trial in lap.trials} for lap in outcome.laps]
    assert ran == [{*curves}, {"c6", "c7", "c8"}]
    assert track.ran[:9] == [(f"c{number}", 0, 3) for number in range(9)]
    assert sorted(track.ran[9:]) == [(name, seed, 9) for name in ("c6", "c7", "c8") for seed in range(3)]
    assert outcome.share == pytest.approx((9 * 3 + 3 * 9 * 3) / (9 * 9 * 3))
    # differences by the same seeds have no spread here
    assert [(lead.over, round(lead.difference.value, 6)) for lead in outcome.leads] == [("c7", 0.1), ("c6", 0.2)]
    assert all(lead.chance > 0.999 for lead in outcome.leads)
    assert "max_epochs: 9" in outcome.config


def test_criteria_are_weighed(started, tmp_path):
    """0.8 - 2 * 0.3 < 0.7 - 2 * 0.1."""
    curves = {
        "accurate": lambda epochs, seed: {"acc": 0.8, "distance": 0.3},
        "exact": lambda epochs, seed: {"acc": 0.7, "distance": 0.1},
    }
    race, _ = started(tmp_path, curves, criteria={"acc": 1.0, "distance": -2.0}, budget=1.0)
    outcome = race.run()
    assert outcome.winner == "exact"
    assert outcome.laps[-1].means == pytest.approx({"accurate": 0.2, "exact": 0.5})


def test_the_race_goes_on_without_those_that_fail(started, tmp_path, capsys):
    curves = {f"c{number}": curve(0.1 * number) for number in range(6)}
    curves["c4"] = lambda epochs, seed: "ValueError: eps"
    curves["c5"] = lambda epochs, seed: {"acc": math.nan}
    race, _ = started(tmp_path, curves)
    outcome = race.run()
    assert outcome.winner == "c3"
    assert outcome.failed == {
        "c4": "failed with seed 0: ValueError: eps",
        "c5": "has no finite number for acc with seed 0",
    }
    assert "c4 is out: it failed with seed 0: ValueError: eps" in capsys.readouterr().out


def test_a_finalist_that_fails_with_one_seed_is_out(started, tmp_path):
    curves = {f"c{number}": curve(0.1 * number) for number in range(6)}
    curves["c5"] = lambda epochs, seed: "MemoryError" if seed == 2 else {"acc": 0.9}
    race, _ = started(tmp_path, curves)
    outcome = race.run()
    assert outcome.winner == "c4"
    assert outcome.failed == {"c5": "failed with seed 2: MemoryError"}


@pytest.mark.parametrize("after", range(1, 15))
def test_a_killed_race_goes_on_and_ends_the_same(started, tmp_path, after):
    """Whatever was trained is not trained again, and the outcome is that of a race in one go."""
    curves = {f"c{number}": curve(0.1 * number, noise=0.02) for number in range(9)}
    race, whole = started(tmp_path / "whole", curves)
    expected = race.run()
    race, killed = started(tmp_path / "killed", curves, stop_after=after)
    with pytest.raises(KeyboardInterrupt):
        race.run()
    race, rest = started(tmp_path / "killed", curves)
    outcome = race.run()
    assert killed.ran + rest.ran == whole.ran
    assert (outcome.winner, outcome.leads, outcome.share) == (expected.winner, expected.leads, expected.share)


def test_an_interrupt_that_ray_swallows_ends_the_race(started, tmp_path, capsys):
    """What was running is no failure: the same race goes on, with all of its candidates."""
    curves = {f"c{number}": curve(0.1 * number, noise=0.02) for number in range(9)}
    race, whole = started(tmp_path / "whole", curves)
    expected = race.run()
    race, killed = started(tmp_path / "killed", curves, stop_after=12)
    killed.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        race.run()
    assert "interrupted. The same command goes on" in capsys.readouterr().out
    race, rest = started(tmp_path / "killed", curves)
    assert race.run().leads == expected.leads
    assert killed.ran + rest.ran == whole.ran


def test_results_are_those_of_their_own_candidate(started, tmp_path):
    """One that failed and then does not changes who goes on: what lies in its folder is of another."""
    curves = {f"c{number}": curve(0.1 * number) for number in range(9)}
    race, _ = started(tmp_path, curves | {"c0": lambda epochs, seed: "out of memory"}, stop_after=10)
    with pytest.raises(KeyboardInterrupt):
        race.run()
    race, rest = started(tmp_path, curves | {"c0": curve(0.95)})
    outcome = race.run()
    assert outcome.winner == "c0"
    assert outcome.laps[1].scores["c0"] == pytest.approx([0.95 * outcome.laps[1].plan.epochs / EPOCHS] * 3)
    assert ("c0", 0, outcome.laps[1].plan.epochs) in rest.ran


def test_what_was_trained_with_another_base_is_trained_again(started, tmp_path, capsys):
    curves = {f"c{number}": curve(0.1 * number) for number in range(9)}
    race, before = started(tmp_path, curves)
    race.run()
    race, again = started(tmp_path, curves)
    race.run()
    assert again.ran == []
    started.base = "edited"
    race, after = started(tmp_path, curves)
    assert "edited" in race.run().config
    assert after.ran == before.ran
    assert "held another training, which is thrown away" in capsys.readouterr().out


def test_lengths_in_epochs_come_down_with_the_rounds(started, tmp_path):
    """Nine candidates for a third of nine epochs, then three for all of them."""
    schedules = [{"lr_scheduler.T_max": EPOCHS}, {"lr_scheduler.milestones": [6, 8]}, {}]
    candidates = {f"c{number}": schedules[number % 3] for number in range(9)}
    curves = {name: curve(0.1) for name in candidates}
    scaled = ["lr_scheduler.T_max", "lr_scheduler.milestones"]
    race, _ = started(tmp_path, curves, candidates=candidates, scaled=scaled)
    first, last = (
        {trial.values["candidate"]: yaml.safe_load(trial.config)["lr_scheduler"]["init_args"] for trial in lap.trials}
        for lap in race.run().laps
    )
    assert [first[name] for name in ("c0", "c1", "c2")] == [{"T_max": 3}, {"milestones": [2, 3]}, {}]
    assert [last[name] for name in ("c0", "c1", "c2")] == [{"T_max": 9}, {"milestones": [6, 8]}, {}]


@pytest.mark.parametrize(
    ("schedule", "scaled", "message"),
    [
        (
            {"lr_scheduler.T_max": 9},
            [],
            r"`lr_scheduler\.T_max` in `scaled`: in candidate 'b' it is 9 epochs, and the ",
        ),
        ({"lr_scheduler.milestones": [2, 4]}, [], r"is \[2, 4\] epochs, and the first round has 3\. Give `scaled:"),
        ({"lr_scheduler.mode": "min"}, ["lr_scheduler.mode"], r"mode of candidate 'b': Expected a number .* got 'min'"),
    ],
)
def test_rejects_a_schedule_that_a_round_would_cut_off(started, tmp_path, schedule, scaled, message):
    curves = {name: curve(0.1) for name in "abcdefghi"}
    candidates = {name: schedule if name == "b" else {} for name in curves}
    with pytest.raises(ValueError, match=message):
        started(tmp_path, curves, candidates=candidates, scaled=scaled)
    assert not any(tmp_path.iterdir())
    one_round = {"candidates": candidates, "budget": 1.0, "reduction": 2}
    if scaled:
        with pytest.raises(ValueError, match=message):
            started(tmp_path, curves, **one_round, scaled=scaled)
    else:
        assert len(started(tmp_path, curves, **one_round)[0].rounds) == 1


def test_a_schedule_that_the_first_round_holds_stays(started, tmp_path):
    curves = {name: curve(0.1) for name in "abcdefghi"}
    race, _ = started(tmp_path, curves, candidates={name: {"lr_scheduler.step_size": 3} for name in curves})
    assert [lap.trials[0].config.partition("\n")[2] for lap in race.run().laps] == [
        f'lr_scheduler: {{"init_args": {{"step_size": 3}}}}\ntrainer:\n  max_epochs: {epochs}\n' for epochs in (3, 9)
    ]


def test_a_missing_criterion_ends_the_race_after_the_first_training(started, tmp_path):
    curves = {"broken": lambda epochs, seed: "no", **{f"c{number}": curve(0.1) for number in range(8)}}
    race, track = started(tmp_path, curves, criteria={"acc": 1.0, "val/robust": 1.0})
    with pytest.raises(ValueError, match=r"c0 logged no val/robust\. It logged acc, other\. Name others"):
        race.run()
    assert len(track.ran) == 2


def test_all_fail(started, tmp_path):
    race, _ = started(tmp_path, {"a": lambda *_: "one", "b": lambda *_: "two"}, budget=1.0)
    with pytest.raises(RuntimeError, match="none did: a failed with seed 0: one; b failed with seed 0: two"):
        race.run()


def test_rejects_another_race_in_the_folder(started, tmp_path):
    curves = {"a": curve(0.1), "b": curve(0.2)}
    started(tmp_path, curves, budget=1.0)
    with pytest.raises(ValueError, match="Expected the race that is in"):
        started(tmp_path, curves, budget=1.0, seeds=2)
    other = tmp_path / "full"
    other.mkdir()
    (other / "file").write_text("")
    with pytest.raises(ValueError, match="Expected a new or an empty folder"):
        started(other, curves, budget=1.0)


def test_rejects_a_budget_for_less_than_a_round(started, tmp_path):
    curves = {f"c{number}": curve(0.1) for number in range(9)}
    with pytest.raises(ValueError, match=r"of at least 0\.\d+ for 9 candidates, 9 epochs and 3 seeds, but got 0\.100"):
        started(tmp_path, curves, budget=0.1)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidates": {"a": {}}}, "two `candidates` to choose from, but got 1 and 1"),
        ({"criteria": {}}, "Expected `criteria` as metrics with their weights"),
        ({"criteria": {"acc": 0.0}}, "Expected `criteria` as metrics with their weights"),
        ({"criteria": {"acc": math.nan}}, "Expected `criteria` as metrics with their weights"),
        ({"budget": 0.0}, "Expected `budget` above 0"),
        ({"seeds": 0}, "`seeds` of at least 1"),
        ({"candidates": {"a": {}, "b": {"trainer.max_epochs": 3}}}, "no `trainer.max_epochs` in candidate 'b'"),
    ],
)
def test_rejects_choices(changes, message):
    settings = {"candidates": {"a": {}, "b": {}}, "criteria": {"acc": 1.0}} | changes
    with pytest.raises(ValueError, match=message):
        Choice(["base.yaml"], **settings)
