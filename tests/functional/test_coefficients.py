import itertools
import math

import pytest
import torch
from torch import nn

from lightning_robust.functional.coefficients import learned_soup, stock_soup


def test_stock_formula_by_pairs():
    base = {"w": torch.randn(4, 3), "n": torch.tensor(1)}
    states = [{"w": base["w"] + 1 + 0.3 * torch.randn(4, 3), "n": torch.tensor(2)} for _ in range(4)]
    deltas = [(state["w"] - base["w"]).flatten() for state in states]
    pairs = [nn.functional.cosine_similarity(a, b, dim=0).item() for a, b in itertools.combinations(deltas, 2)]
    c = sum(pairs) / len(pairs)
    ratio = 4 * c / (1 + 3 * c)
    soup = stock_soup(states, base)
    assert soup.coefficients["w"].item() == pytest.approx(ratio, rel=1e-5)
    expected = base["w"] + ratio * torch.stack(deltas).mean(0).view(4, 3)
    torch.testing.assert_close(soup.state["w"], expected, rtol=1e-5, atol=1e-6)


def test_stock_ratio_is_clamped_and_one_for_equal_models():
    base = {"w": torch.zeros(2)}
    apart = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([-1.0, 0.1])}]
    assert torch.equal(stock_soup(apart, base).state["w"], base["w"])
    same = {"w": torch.tensor([3.0, 4.0])}
    torch.testing.assert_close(stock_soup([same, same], base).state["w"], same["w"])


@pytest.mark.parametrize("per", ["model", "tensor"])
def test_learned_coefficients_reach_the_known_optimum(per):
    """Targets that are a fixed mixture (0.2, 0.5, 0.3) of the ingredients."""
    states = [{name: torch.randn(5) for name in "ab"} for _ in range(3)]
    shares = torch.tensor([0.2, 0.5, 0.3])
    target = {name: sum(s * state[name] for s, state in zip(shares, states, strict=True)) for name in "ab"}

    def loss(state, *_):
        return sum((state[name] - target[name]).square().sum() for name in "ab")

    soup = learned_soup(states, loss, lambda: range(300), per=per, epochs=1)
    assert set(soup.coefficients) == ({"model"} if per == "model" else {"a", "b"})
    for found in soup.coefficients.values():
        torch.testing.assert_close(found, shares, rtol=0, atol=0.01)
        assert found.sum().item() == pytest.approx(1)


def test_equal_shares_before_the_first_step_are_the_uniform_soup():
    states = [{"w": torch.randn(5), "n": torch.tensor(n)} for n in (4, 9)]
    soup = learned_soup(states, lambda state, *_: state["w"].sum(), list)
    torch.testing.assert_close(soup.state["w"], (states[0]["w"] + states[1]["w"]) / 2)
    assert list(soup.state) == ["w", "n"]
    assert soup.state["n"] == 4


def test_rejects_too_few_ingredients_and_a_loss_that_is_not_finite():
    states = [{"w": torch.zeros(1)}] * 2
    with pytest.raises(ValueError, match="two ingredients"):
        stock_soup(states[:1], states[0])
    with pytest.raises(ValueError, match="at least one ingredient"):
        learned_soup([], lambda state, *_: state["w"].sum(), lambda: [0])
    with pytest.raises(ValueError, match="finite held-out score for the learned soup"):
        learned_soup(states, lambda state, *_: state["w"].sum() * math.nan, lambda: [0])


def test_learned_soup_matches_an_implementation_by_hand():
    """Of a linear classifier, with gradients written out and Adam by its formulas: same coefficients, same beta."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    teacher = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    labels = (inputs @ teacher.T).argmax(1)
    weights = torch.stack([teacher + k * torch.randn(3, 4, generator=generator).double() for k in (0.3, 1.0, 3.0)])
    batches = list(zip(inputs.split(20), labels.split(20), strict=True))

    def loss(state, batch, beta):
        return nn.functional.cross_entropy(beta * batch[0] @ state["w"].T, batch[1])

    soup = learned_soup([{"w": w} for w in weights], loss, lambda: batches, epochs=30, lr=0.05)

    point, first, second = (torch.zeros(4, dtype=torch.float64) for _ in range(3))  # three logits and log beta
    for step in range(1, 91):
        x, y = batches[(step - 1) % 3]
        shares, beta = point[:3].exp() / point[:3].exp().sum(), point[3].exp()
        outputs = x @ (shares[:, None, None] * weights).sum(0).T
        error = (beta * outputs).exp() / (beta * outputs).exp().sum(1, keepdim=True)
        error[torch.arange(20), y] -= 1
        error /= 20
        of_shares = (beta * (error.T @ x) * weights).sum((1, 2))
        of_logits = shares * (of_shares - (shares * of_shares).sum())
        gradient = torch.cat([of_logits, beta * (error * outputs).sum()[None]])
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        point = point - 0.05 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    assert soup.beta == pytest.approx(point[3].exp().item(), rel=1e-4)
    assert soup.beta > 1.5
    # the callback's logits are in fp32
    torch.testing.assert_close(soup.coefficients["w"].double(), point[:3].softmax(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_stock_is_the_nearest_point_to_the_centre_of_fine_tuned_weights(count):
    """The paper's geometry: steps from the centre to the base and to each ingredient are orthogonal.

    The nearest point to the centre on the line from the base to the mean, by least squares and not by the angle.
    """
    centre = torch.randn(12, dtype=torch.float64)
    directions = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    base = centre + 3.0 * directions[0]
    states = [{"w": centre + 0.8 * directions[number]} for number in range(1, count + 1)]
    mean = torch.stack([state["w"] for state in states]).mean(0)
    ratio = torch.linalg.lstsq((mean - base)[:, None], (centre - base)[:, None]).solution.item()
    soup = stock_soup(states, {"w": base})
    assert soup.coefficients["w"].item() == pytest.approx(ratio, rel=1e-9)
    assert ratio == pytest.approx(9 / (9 + 0.64 / count), rel=1e-9)
    torch.testing.assert_close(soup.state["w"], base + ratio * (mean - base))
    if count == 2:  # as the paper writes it for two, with the angle at the base
        one, two = (state["w"] - base for state in states)
        cosine = nn.functional.cosine_similarity(one, two, dim=0).item()
        assert ratio == pytest.approx(2 * cosine / (1 + cosine), rel=1e-9)
