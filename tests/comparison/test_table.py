"""Which runs are one row, what rows are called, intervals and best values, against a hand-made table and numpy."""

import math
import random
from pathlib import Path

import numpy as np
import pytest

from lightning_robust.comparison.columns import Column
from lightning_robust.comparison.finished_runs import SECONDS, FinishedRun
from lightning_robust.comparison.table import axes, compare_runs, leading, mean_range, pareto_front

CLASS = "lightning_robust.callbacks."


def config(seed=0, *, model=None, **keys):
    return {"seed_everything": seed, "model": {"class_path": "my.Module", "init_args": model or {}}, **keys}


def finished(name, scalars, **settings):
    return FinishedRun(folder=Path(name), config=config(**settings), scalars=scalars)


def swa(**arguments):
    return {"class_path": CLASS + "SWACallback", "init_args": arguments}


def test_interval_of_the_mean():
    values = (0.5, 0.625, 0.875, 0.75)
    low, high = mean_range(values)
    half = 3.182446305 * np.std(values, ddof=1) / 2  # the table's t for three degrees of freedom
    assert (low, high) == (
        pytest.approx(np.mean(values) - half, rel=1e-6),
        pytest.approx(np.mean(values) + half, rel=1e-6),
    )
    assert mean_range((0.5, 0.25)) == (0.25, 0.5)
    assert mean_range((0.5,)) is None
    assert mean_range((0.5, math.nan, 0.25)) is None


def test_seeds_are_one_row_and_settings_are_not():
    runs = [
        finished("p0", {"val/acc": 0.5, SECONDS: 10.0}, seed=0, swa=False),
        finished("p1", {"val/acc": 0.75, SECONDS: 30.0}, seed=1, swa=False),
        finished("s0", {"val/acc": 0.875, SECONDS: 30.0}, seed=0, swa=swa(start=2)),
        finished("s1", {"val/acc": 1.0, SECONDS: 30.0}, seed=0, swa=swa(start=4)),
    ]
    comparison = compare_runs(runs)
    assert [row.name for row in comparison.rows] == ["plain", "swa (start=2)", "swa (start=4)"]
    assert [row.plain for row in comparison.rows] == [True, False, False]
    assert [row.times for row in comparison.rows] == [1.0, 1.5, 1.5]
    accuracy = comparison.columns[0]
    assert accuracy == Column("val/acc", "max", "clean")
    assert comparison.cell(0, "val/acc") == (0.5, 0.75)
    assert comparison.best(accuracy) == {2}
    assert comparison.best(comparison.columns[-1]) == {0}


def test_costs_are_counted_from_the_baseline():
    runs = [
        finished(f"runs/{name}/0", {"val/acc": 0.5, SECONDS: seconds}, data={"num_train": number}, **keys)
        for name, seconds, number, keys in (
            ("few", 4.0, 10, {}),
            ("all", 8.0, 20, {}),
            ("swa", 12.0, 20, {"swa": swa()}),
        )
    ]
    assert [row.times for row in compare_runs(runs).rows] == [None, None, None]  # two rows are plain
    comparison = compare_runs(runs, baseline="runs/all")
    assert [row.plain for row in comparison.rows] == [False, True, False]
    assert [row.times for row in comparison.rows] == [0.5, 1.0, 1.5]
    for folder, number in (("runs", 3), ("elsewhere", 0)):
        with pytest.raises(ValueError, match=rf"folder with runs of one configuration.*holds runs of {number}\."):
            compare_runs(runs, baseline=folder)


def test_what_else_differs_is_said():
    runs = [finished(str(lr), {"val/acc": 0.5}, optimizer={"lr": lr}) for lr in (0.1, 0.2)]
    comparison = compare_runs(runs)
    assert [row.name for row in comparison.rows] == ["plain [lr=0.1]", "plain [lr=0.2]"]
    assert comparison.notes == ("The configurations differ in more than techniques: optimizer.lr.",)


def test_doubts_are_told():
    runs = [finished(str(i), {"val/acc": 0.5, **({"val/f1": 0.5} if i else {})}) for i in range(2)]
    assert compare_runs(runs).notes == (
        "plain: several runs have the same seed, so that the interval is not one over seeds.",
        "plain: only some of its 2 runs have val/f1.",
    )


def test_the_attacks_at_validation_are_named():
    tag = "adversarial/val_acc@0.1"
    pgd = {"class_path": CLASS + "AdversarialCallback", "init_args": {"val_steps": 10, "ratio": 0.0}}
    fgsm = {"class_path": CLASS + "RobustValidationCallback", "init_args": {"steps": 0}}
    runs = [finished("a", {tag: 0.5}, adversarial=pgd), finished("b", {tag: 0.25}, adversarial=pgd)]
    named = "Attacked at validation by {}; behind @ stands the radius."
    assert named.format("PGD-10") in compare_runs(runs).notes
    runs.append(finished("c", {tag: 0.25}, adversarial=pgd, robust_validation=fgsm, seed=1))
    doubt = " Runs were attacked differently: do not compare those numbers."
    assert named.format("FGSM or PGD-10") + doubt in compare_runs(runs).notes
    assert not any("Attacked" in note for note in compare_runs([finished("d", {"val/acc": 0.5})]).notes)


def test_what_corruption_errors_are_over_is_told():
    robust = {"class_path": CLASS + "RobustValidationCallback", "init_args": {"under": ["fog", "snow@3"]}}
    other = {"class_path": CLASS + "AdversarialCallback", "init_args": {"val_under": "weather", "ratio": 0.0}}
    scalars = {"corruption/mean_error": 0.5, "corruption/fog/val_acc": 0.4, "corruption/snow/val_acc": 0.6}
    runs = [finished("a", scalars, robust_validation=robust)]
    table = compare_runs(runs)
    assert table.columns == (Column("corruption/mean_error", "min", "corrupted"),)
    assert "Mean corruption errors are over fog, snow@3." in table.notes
    runs.append(finished("b", scalars, adversarial=other, seed=1))
    told = "over fog, snow@3 or weather. Runs were corrupted differently: do not compare those numbers."
    assert any(told in note for note in compare_runs(runs).notes)


def test_chosen_metrics():
    run = finished("a", {"val/acc": 0.5, "depth": 2.0})
    assert compare_runs([run], "depth:min, val/acc").columns == (
        Column("depth", "min", "other"),
        Column("val/acc", "max", "clean"),
    )
    with pytest.raises(
        ValueError, match=r"as tag:max or tag:min, but got 'val/accuracy:max'. There are: depth, val/acc"
    ):
        compare_runs([run], "val/accuracy:max")
    with pytest.raises(ValueError, match="Expected metrics as tag:max or tag:min, but got ','"):
        compare_runs([run], ",")
    with pytest.raises(ValueError, match="at least one finished run, but got none"):
        compare_runs([])


@pytest.mark.parametrize("seed", [False, True, None])
def test_runs_without_a_seed_do_not_share_one(seed):
    runs = [finished(name, {"val/acc": 0.5}, seed_everything=seed) for name in "ab"]
    assert not [note for note in compare_runs(runs).notes if "the same seed" in note]


def test_pareto_front_against_all_pairs():
    generator = random.Random(0)
    points = [(generator.randint(0, 5), generator.randint(0, 5)) for _ in range(40)]
    beaten = {i for i, p in enumerate(points) for q in points if q != p and q[0] >= p[0] and q[1] <= p[1]}
    assert pareto_front(points, ("max", "min")) == [i for i in range(40) if i not in beaten]


def test_the_strongest_attack_speaks_for_all():
    scalars = {"val/acc": 0.9, "val/acc_clean": 0.1, "val/fgsm_acc": 0.5, "val/pgd_acc": 0.25, "val/pgd_loss": 9.0}
    comparison = compare_runs([finished("a", scalars | {"parity/a-fp16/rel_l2": 1e-3, "parity/b-fp16/rel_l2": 1e-2})])
    tags = [leading(comparison, group).tag for group in ("clean", "attacked", "fp16")]
    assert tags == ["val/acc", "val/pgd_acc", "parity/b-fp16/rel_l2"]
    assert leading(comparison, "corrupted") is None


def test_a_run_without_numbers_is_a_row_without_cells():
    comparison = compare_runs([finished("a", {"val/acc": 0.5}), finished("b", {}, optimizer={"lr": 1})])
    assert [comparison.cell(row, "val/acc") for row in range(2)] == [(0.5,), ()]
    assert comparison.best(comparison.columns[0]) == set()  # nothing to choose from
    assert compare_runs([finished("a", {})]).columns == ()


def test_a_diverged_run_is_worst_and_is_shown():
    runs = [finished("a", {"val/acc": math.nan}), finished("b", {"val/acc": 0.5}, optimizer={"lr": 1})]
    comparison = compare_runs(runs)
    assert math.isnan(comparison.means["val/acc"][0])
    assert comparison.best(comparison.columns[0]) == {1}


def test_axes_of_the_picture():
    clean, fp16 = {"val/acc": 0.5}, {"parity/emulated-fp16/rel_l2": 0.5}
    assert axes(compare_runs([finished("a", clean)])) is None
    chosen = axes(compare_runs([finished("a", clean | fp16)]))
    assert [column.group for column in chosen] == ["clean", "fp16"]


DATA = {"class_path": "my.Data", "init_args": {"root": "/x", "batch_size": 8}}


@pytest.mark.parametrize(
    "other",
    [
        {"class_path": "my.Other", "init_args": DATA["init_args"]},
        {"class_path": "my.Data", "init_args": {"root": "/y", "batch_size": 8}},
        {"class_path": "my.Data", "init_args": {"root": "/x", "batch_size": 8, "data_dir": "/z"}},
        {"class_path": "my.Data", "init_args": {"root": "/x", "batch_size": 8, "split": "night"}},
    ],
)
def test_other_data_is_no_other_seed(other):
    runs = [finished(f"a{seed}", {"val/acc": 0.5 + seed / 8}, seed=seed, data=DATA) for seed in range(2)]
    runs += [finished("b", {"val/acc": 0.9, "val/px": 3.0}, seed=2, data=other)]
    comparison = compare_runs(runs)
    assert [len(row.runs) for row in comparison.rows] == [2, 1]
    assert comparison.best(comparison.columns[0]) == set()  # one row on each data: nothing to choose from
    (caution,) = comparison.cautions
    assert caution.startswith("The rows were measured on different data: ")
    assert "in row 1; " in caution
    comparison = compare_runs([*runs, finished("c", {"val/acc": 0.75}, data=DATA, swa=swa())])
    assert comparison.best(comparison.columns[0]) == {2}
    assert comparison.same_data() == [[0, 2], [1]]


def test_another_batch_size_is_another_row_on_the_same_data():
    other = {"class_path": "my.Data", "init_args": {"root": "/x", "batch_size": 16}}
    comparison = compare_runs([finished("a", {"val/acc": 0.5}, data=DATA), finished("b", {"val/acc": 0.6}, data=other)])
    assert len(comparison.rows) == 2
    assert comparison.cautions == ()
    assert comparison.best(comparison.columns[0]) == {1}


def test_different_models_are_ranked_together_only_with_a_word():
    models = [FinishedRun(Path(name), {"model": {"class_path": name}}, {"val/acc": 0.5}) for name in ("my.A", "my.B")]
    models.append(FinishedRun(Path("c"), {"model": {"class_path": "my.A"}, "optimizer": {"lr": 1}}, {"val/acc": 0.75}))
    comparison = compare_runs(models)
    assert comparison.cautions == (
        "The rows are of different models, ranked together: my.A in rows 1, 3; my.B in row 2.",
    )
    assert comparison.best(comparison.columns[0]) == {2}


def test_an_unknown_direction_is_asked_for():
    runs = [finished(str(lr), {"val/depth": float(lr)}, optimizer={"lr": lr}) for lr in (1, 2)]
    comparison = compare_runs(runs)
    assert comparison.best(comparison.columns[0]) == set()
    assert comparison.notes[-1] == (
        "Nothing is marked as best in val/depth, whose names do not say what is better: --mode 'val/depth=max' or "
        "'val/depth=min'."
    )
    for mode, best in (("max", 1), ("min", 0)):
        told = compare_runs(runs, mode=f"val/depth={mode}")
        assert told.best(told.columns[0]) == {best}
        assert not any("--mode" in note for note in told.notes)
    assert compare_runs(runs, "val/depth:max", mode="val/depth=min").columns[0].mode == "min"


def test_what_was_not_asked_for_is_no_doubt():
    runs = [
        finished(str(i), {"val/loss": 0.5, **({"val/f1": 0.5, SECONDS: 1.0} if i else {})}, seed=i) for i in range(2)
    ]
    assert compare_runs(runs, "val/loss").notes == ()


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (True, "PGD-10"),
        ({"steps": 3}, "PGD-3"),
        ({"evaluator": "auto"}, "APGD-50 and Square"),
        ({"evaluator": "pgd", "norm": "l2", "steps": 20}, "PGD-20 in l2"),
        ({"evaluator": "smallest_eps", "moves": {"x_px": 20}}, "the smallest radius by APGD-20"),
    ],
)
def test_what_was_not_written_is_what_the_attack_has_by_default(given, name):
    tag = "adversarial/val_acc@0.1"
    runs = [finished("a", {tag: 0.5}, robust_validation=given, adversarial={"val_steps": 7})]
    assert f"Attacked at validation by {name}; behind @ stands the radius." in compare_runs(runs).notes
    clean = finished("b", {tag: 0.5}, adversarial={"val_steps": 7, "val_eps": []})
    assert not any("Attacked" in note for note in compare_runs([clean]).notes)


def test_a_switch_that_is_off_tells_nothing_apart():
    runs = [finished("a", {"val/acc": 0.5}), finished("b", {"val/acc": 0.25}, deployment_parity=False)]
    assert [row.name for row in compare_runs(runs).rows] == ["plain"]
