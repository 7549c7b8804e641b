import math
from pathlib import Path

import pytest
from scipy import stats

from lightning_robust.comparison.finished_runs import FinishedRun
from lightning_robust.comparison.judge import judge_comparison
from lightning_robust.comparison.table import compare_runs


def runs(**values):
    """Runs of configurations that differ in one technique, with a value of val/acc and val/px for each seed."""
    found = []
    for name, pairs in values.items():
        config = {"model": "net", "swa": {"class_path": "SWACallback"}} if name == "swa" else {"model": "net"}
        for seed, (acc, px) in enumerate(pairs):
            scalars = {"val/acc": acc, "val/px": px, "val/depth": 1.0}
            found.append(FinishedRun(Path(f"/{name}/{seed}"), config | {"seed_everything": seed}, scalars))
    return found


def judged(values, limits=None, asked=()):
    return judge_comparison(compare_runs(runs(**values), also=limits or ()), limits or {}, "parity.yaml", asked)


PLAIN = [(0.90, 1.0), (0.91, 1.1), (0.92, 1.2)]


@pytest.mark.parametrize(
    ("swa", "limits", "code"),
    [
        ([(0.90, 1.0)], {"val/acc": 0.02}, 0),  # 0.01 worse than 0.91
        ([(0.88, 1.0)], {"val/acc": 0.02}, 1),
        ([(0.88, 1.0)], {"val/px": 0.05}, 0),  # better than 1.1
        ([(0.88, 1.2)], {"val/px": 0.05}, 1),
        ([(0.99, 0.1)], {"val/acc": 0.0, "val/px": 0.0}, 0),
        ([(0.99, 0.1)], {"val/f1": 0.1}, 2),  # nobody logged it
        ([(0.99, 0.1)], {"val/depth": 0.1}, 2),  # nobody said what is better
    ],
)
def test_a_budget_is_how_much_worse_than_the_baseline(swa, limits, code):
    judgement = judged({"plain": PLAIN, "swa": swa}, limits)
    assert judgement.exit_code == code, judgement.text()
    assert judgement.budget == "parity.yaml"


def test_without_a_budget_the_spread_is_one():
    """Half of Welch's interval of a difference, as SciPy computes it; of a single run there is none."""
    swa = [(0.80, 1.0), (0.82, 1.1), (0.84, 1.2)]
    (check,) = judged({"plain": PLAIN, "swa": swa}, asked=["val/acc"]).checks
    interval = stats.ttest_ind(
        [acc for acc, _ in PLAIN], [acc for acc, _ in swa], equal_var=False
    ).confidence_interval()
    assert check.limit == pytest.approx((interval.high - interval.low) / 2)
    assert check.value == pytest.approx(0.09)
    judgement = judged({"plain": PLAIN, "swa": swa}, asked=["val/acc"])
    assert judgement.exit_code == 1
    assert judgement.text().startswith("verdict: beyond the spread over seeds: swa: val/acc is 0.82, 0.09 worse than")
    near = [(0.89, 1.0), (0.91, 1.1), (0.93, 1.2)]
    assert judged({"plain": PLAIN, "swa": near}, asked=["val/acc", "val/px"]).exit_code == 0
    single = judged({"plain": PLAIN[:1], "swa": [(0.1, 9.0)]}, asked=["val/acc"])
    assert single.exit_code == 0
    assert single.text().startswith("verdict: no budget was set, nothing was judged: ")


@pytest.mark.parametrize(("px", "code"), [([math.inf, 1.1, 1.2], 1), ([math.nan, 1.1, 1.2], 2), ([1.0, 1.1, 1.2], 0)])
def test_what_diverged_or_has_no_number_is_not_passed_over(px, code):
    """Beside another metric that is fine, and without a limit that anybody set."""
    swa = [(acc, each) for (acc, _), each in zip(PLAIN, px, strict=True)]
    assert judged({"plain": PLAIN, "swa": swa}, asked=["val/acc", "val/px"]).exit_code == code


def test_a_metric_that_was_asked_for_and_not_logged_is_not_passed_over():
    assert judged({"plain": PLAIN, "swa": PLAIN}, asked=["val/acc", "val/f1"]).exit_code == 2


def test_without_a_baseline_nothing_is_judged():
    values = {"swa": PLAIN}
    assert judged(values).exit_code == 0
    judgement = judged(values, {"val/acc": 0.1})
    assert judgement.exit_code == 2
    assert "there is no baseline, or several: name one with --baseline" in judgement.text()
    judgement = judged({"plain": PLAIN}, {"val/acc": 0.1})
    assert judgement.exit_code == 2
    assert "(there is nothing beside the baseline)" in judgement.text()
