import math

import pytest
import torch

from lightning_robust.functional.soups import greedy_soup, uniform_soup


class Problem:
    """Linear classifiers around a true one, with an accuracy that is known batch by batch."""

    def __init__(self, seed, count=8, noise=0.6):
        generator = torch.Generator().manual_seed(seed)
        truth = torch.randn(4, 6, generator=generator)
        self.inputs = torch.randn(240, 6, generator=generator)
        self.labels = (self.inputs @ truth.T).argmax(1)
        self.states = [
            {"w": truth + noise * (1 + i / 3) * torch.randn(4, 6, generator=generator), "n": torch.tensor(i)}
            for i in range(count)
        ]
        self.batches = 0

    def running(self, state):
        right = 0
        for number, (x, y) in enumerate(zip(self.inputs.split(16), self.labels.split(16), strict=True), 1):
            self.batches += 1
            right += ((x @ state["w"].T).argmax(1) == y).sum().item()
            yield right / (16 * number), number / 15

    def accuracy(self, state):
        return list(self.running(state))[-1][0]


def plain(states, evaluate, strict=True):
    """The authors' loop: evaluate all, sort, add, rescale the running mean; ties in the given order."""
    scores = [evaluate(state) for state in states]
    order = sorted(range(len(states)), key=lambda index: -scores[index])
    chosen, soup, best = [order[0]], states[order[0]]["w"], scores[order[0]]
    for index in order[1:]:
        candidate = soup * len(chosen) / (len(chosen) + 1) + states[index]["w"] / (len(chosen) + 1)
        score = evaluate({"w": candidate})
        if score > best or (score == best and not strict):
            chosen, soup, best = [*chosen, index], candidate, score
    return chosen, soup, best


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_matches_the_plain_algorithm_and_is_never_below_the_best(seed, strict):
    problem = Problem(seed)
    chosen, state, best = plain(problem.states, problem.accuracy, strict)
    soup = greedy_soup(problem.states, problem.accuracy, strict=strict)
    assert soup.ingredients == chosen
    assert soup.evaluations == 2 * len(problem.states) - 1
    torch.testing.assert_close(soup.state["w"], state, rtol=1e-5, atol=1e-6)
    assert soup.score == best >= max(soup.scores)


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_stopping_early_never_changes_the_soup(seed, drop):
    problem = Problem(seed)
    whole = greedy_soup(problem.states, problem.running, drop=drop)
    spent, problem.batches = problem.batches, 0
    early = greedy_soup(problem.states, problem.running, best_possible=1.0, drop=drop)
    assert early.ingredients == whole.ingredients
    assert torch.equal(early.state["w"], whole.state["w"])
    assert problem.batches < spent
    assert early.evaluated == pytest.approx(problem.batches / 15)


def test_known_scores_are_not_measured_and_each_ingredient_is_read_once():
    problem, reads = Problem(3), []
    scores = [problem.accuracy(state) for state in problem.states]
    lazy = [lambda index=index: reads.append(index) or problem.states[index] for index in range(8)]
    soup = greedy_soup(lazy, problem.accuracy, scores=scores)
    assert sorted(reads) == list(range(8))
    assert soup.evaluations == 7
    assert soup.ingredients == greedy_soup(problem.states, problem.accuracy).ingredients


def test_soup_of_one_is_that_one():
    state = {"w": torch.randn(5, dtype=torch.bfloat16), "n": torch.tensor(4)}
    for soup in (uniform_soup([state]), greedy_soup([state], lambda _: 1.0)):
        assert torch.equal(soup.state["w"], state["w"])
        assert soup.state["n"] == 4


def test_strictness_ties_and_mode():
    states = [{"w": torch.tensor(w)} for w in (1.0, 2.0, 3.0)]
    assert greedy_soup(states, lambda _: 0.5).ingredients == [0]
    assert greedy_soup(states, lambda _: 0.5, strict=False).ingredients == [0, 1, 2]
    distance = greedy_soup(states, lambda state: abs(state["w"].item() - 2.6), mode="min")
    assert (distance.ingredients, distance.state["w"].item()) == ([2, 1], 2.5)


def test_a_sum_in_fp64_does_not_drift():
    """64 half-precision ingredients: the correctly rounded mean, where rescaling in that type is off."""
    states = [{"w": torch.randn(200).half()} for _ in range(64)]
    exact = torch.stack([state["w"].double() for state in states]).mean(0).half()
    drifted = states[0]["w"]
    for count, state in enumerate(states[1:], 1):
        drifted = drifted * (count / (count + 1)) + state["w"] / (count + 1)
    assert torch.equal(uniform_soup(states).state["w"], exact)
    assert not torch.equal(drifted, exact)


def test_ingredients_in_fp64_stay_as_they_are():
    states = [{"w": torch.tensor([value], dtype=torch.float64)} for value in (1.0, 5.0, 9.0)]
    assert uniform_soup(states).state["w"].item() == 5
    greedy_soup(states, lambda state: -((state["w"].item() - 5) ** 2), drop=True)
    assert [state["w"].item() for state in states] == [1, 5, 9]


def test_integers_come_from_the_best():
    problem = Problem(0)
    soup = greedy_soup(problem.states, problem.accuracy)
    assert soup.state["n"].item() == soup.ingredients[0]


def test_drop_takes_out_what_harms():
    """0.4, -1.0 and 1.4 mix to 0.27; without the first, with which the soup began, to 0.2."""
    states = [{"w": torch.tensor(w)} for w in (0.4, -2.9, 1.4, -1.0)]

    def score(state):
        return -abs(state["w"].item())

    assert greedy_soup(states, score).ingredients == [0, 3, 2]
    soup = greedy_soup(states, score, drop=True)
    assert soup.ingredients == [3, 2]
    assert soup.score == pytest.approx(-0.2)


@pytest.mark.parametrize("recipe", [uniform_soup, lambda s: greedy_soup(s, lambda _: 1.0)])
def test_rejects_what_does_not_mix(recipe):
    with pytest.raises(ValueError, match="at least one ingredient"):
        recipe([])
    with pytest.raises(ValueError, match=r"ingredient 1.*lacks w and has v"):
        recipe([{"w": torch.zeros(1)}, {"v": torch.zeros(1)}])
    with pytest.raises(ValueError, match=r"Expected w of shape \(1,\) in ingredient 1, but got \(2,\)"):
        recipe([{"w": torch.zeros(1)}, {"w": torch.zeros(2)}])


def test_rejects_bad_scores():
    states = [{"w": torch.zeros(1)}] * 2
    with pytest.raises(ValueError, match="finite held-out score for ingredient 0"):
        greedy_soup(states, lambda _: math.nan)
    with pytest.raises(ValueError, match="best_possible"):
        greedy_soup(states, lambda _: 1.5, best_possible=1.0)
    with pytest.raises(ValueError, match="a score for each of 2"):
        greedy_soup(states, lambda _: 1.0, scores=[1.0])
