import math

import pytest
import torch

from lightning_robust.functional.held_out import HeldOutScorer, require_finite


def running(values):
    """The mean of equal parts of the data as it grows."""
    for number in range(1, len(values) + 1):
        yield sum(values[:number]) / number, number / len(values)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_candidate_is_stopped_where_the_rest_cannot_save_it(mode):
    """Of four parts each at best 1, after 0 and 0.5 the mean is at best 2.5 / 4; against 0.625 that is a tie."""
    sign = 1 if mode == "max" else -1
    values = [sign * value for value in (0.0, 0.5, 1.0, 1.0)]
    scorer = HeldOutScorer(running, mode, best_possible=sign * 1.0)
    assert scorer.contest(values, sign * 0.7) == (None, 0.5)
    assert scorer.contest(values, sign * 0.8) == (None, 0.25)
    assert scorer.contest(values, sign * 0.6) == (sign * 0.625, 1.0)
    assert scorer.contest(values, sign * 0.625) == (None, 1.0)
    assert scorer.contest(values, sign * 0.625, strict=False) == (sign * 0.625, 1.0)
    assert (scorer.evaluations, scorer.evaluated) == (5, 0.5 + 0.25 + 3)


def test_without_a_bound_nothing_is_stopped():
    scorer = HeldOutScorer(running)
    assert scorer.contest([0.0, 0.0, 0.0], 1.0) == (None, 1.0)


def test_a_generator_is_closed_before_the_next_one_begins():
    events = []

    def evaluate(name):
        try:
            events.append(f"begin {name}")
            yield 0.0, 0.5
            yield 0.0, 1.0
        finally:
            events.append(f"end {name}")

    scorer = HeldOutScorer(evaluate, best_possible=1.0)
    scorer.contest("one", 0.9)
    scorer.score("two", "the second")
    assert events == ["begin one", "end one", "begin two", "end two"]


def test_rejects_bad_scores_and_modes():
    with pytest.raises(ValueError, match="'max' or 'min'"):
        HeldOutScorer(running, "best")
    with pytest.raises(ValueError, match=r"best_possible=1\.0, but got 2"):
        HeldOutScorer(running, best_possible=1.0).score([2.0], "x")
    with pytest.raises(ValueError, match="finite held-out score for ingredient 0"):
        require_finite(math.inf, "ingredient 0")


@pytest.mark.parametrize("best_possible", [None, 0.0])
def test_a_candidate_without_a_finite_score_loses(best_possible):
    """Also where early stopping would have refused it."""
    scorer = HeldOutScorer(lambda state: state["w"].item(), "min", best_possible=best_possible)
    assert scorer.contest({"w": torch.tensor(math.inf)}, 1.0)[0] is None
    assert scorer.contest({"w": torch.tensor(math.nan)}, 1.0)[0] is None
    assert scorer.contest({"w": torch.tensor(0.5)}, 1.0)[0] == 0.5
