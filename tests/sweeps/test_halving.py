"""Plans by hand, their costs, and how sure a lead is."""

import itertools
import math

import pytest
from scipy.stats import ttest_rel

from lightning_robust.sweeps.halving import Round, leads, plan_rounds, survivors


def test_twenty_candidates_in_a_third_of_the_cost():
    plan = plan_rounds(20, 18, 1, 1 / 3)
    assert plan == [Round(20, 2), Round(6, 6), Round(2, 18)]
    assert sum(each.cost for each in plan) == 40 + 36 + 36


def test_all_are_trained_to_the_end_where_the_budget_allows():
    assert plan_rounds(5, 10, 3, 1.0) == [Round(5, 10, 3)]


def test_seeds_are_of_the_finalists_alone():
    assert plan_rounds(9, 9, 3, 0.5) == [Round(9, 3), Round(3, 9, 3)]


@pytest.mark.parametrize(
    ("candidates", "epochs", "seeds", "budget", "reduction"),
    itertools.product([2, 3, 7, 20, 81], [1, 2, 5, 18, 100], [1, 3], [0.2, 1 / 3, 0.7, 1.0], [2, 3, 4]),
)
def test_plans_keep_the_budget_and_shrink(candidates, epochs, seeds, budget, reduction):
    """Never above the budget; fewer candidates and more epochs in each round; the last is whole; else a sum is said."""
    whole = candidates * epochs * seeds
    try:
        plan = plan_rounds(candidates, epochs, seeds, budget, reduction)
    except ValueError as error:
        least = float(str(error).split("at least ")[1].split()[0])
        assert least > budget - 1e-3
        again = plan_rounds(candidates, epochs, seeds, least + 1e-3, reduction)
        assert sum(each.cost for each in again) / whole == pytest.approx(least, abs=1e-3)
        return
    assert sum(each.cost for each in plan) <= budget * whole * (1 + 1e-12)
    assert (plan[0].candidates, plan[-1].epochs, plan[-1].seeds) == (candidates, epochs, seeds)
    assert all(two.candidates < one.candidates for one, two in itertools.pairwise(plan))
    assert all(two.epochs > one.epochs for one, two in itertools.pairwise(plan))
    assert plan[-1].candidates >= 2


def test_a_round_that_nobody_leaves_is_left_out():
    """Eight, two, two candidates for 2, 5 and 15 epochs: the second round would send on both."""
    assert plan_rounds(8, 15, 3, 0.34) == [Round(8, 2), Round(2, 15, 3)]
    assert plan_rounds(2, 9, 1, 1.0) == [Round(2, 9)]


def test_survivors_keep_the_order_of_equals():
    assert survivors({"a": 1.0, "b": 2.0, "c": 2.0, "d": 0.0}, 3) == ["b", "c", "a"]


def test_leads_are_the_paired_t_test():
    """scipy's one-sided paired test, of another implementation."""
    scores = {"a": [0.91, 0.93, 0.9, 0.94], "b": [0.9, 0.9, 0.91, 0.92], "c": [0.5, 0.6, 0.4, 0.5]}
    for lead in leads(scores, "a"):
        test = ttest_rel(scores["a"], scores[lead.over], alternative="greater")
        assert lead.chance == pytest.approx(1 - test.pvalue)
        ends = ttest_rel(scores["a"], scores[lead.over]).confidence_interval(0.95)
        assert (lead.difference.low, lead.difference.high) == pytest.approx((ends.low, ends.high))


def test_one_seed_says_nothing_of_the_chance():
    (lead,) = leads({"a": [2.0], "b": [1.0]}, "a")
    assert lead.difference.value == 1.0
    assert math.isnan(lead.chance)


@pytest.mark.parametrize(("values", "chance"), [([1.0, 1.0], 0.5), ([0.5, 0.5], 1.0)])
def test_equal_differences(values, chance):
    (lead,) = leads({"a": [1.0, 1.0], "b": values}, "a")
    assert lead.chance == chance
