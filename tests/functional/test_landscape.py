"""Profiles of the loss against closed forms, and invariance of filter-normalised directions."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from lightning_robust.functional.landscape import (
    WeightPlane,
    filter_norms,
    loss_along,
    loss_between,
    loss_on_plane,
    random_direction,
)
from lightning_robust.functional.state_loss import mean_loss, module_loss

GRID = [-1.0, -0.25, 0.0, 0.5, 2.0]


def rectified():
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5), nn.ReLU(), nn.Linear(5, 3))


def parameters(module):
    return {name: tensor.detach().clone() for name, tensor in module.named_parameters()}


def data():
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(8, 2, 4, 4, generator=generator), torch.randn(8, 3, generator=generator))]


def squares(module):
    return module_loss(module, data, lambda m, batch: (m(batch[0]) - batch[1]).square().mean(1))


def quadratic(size=6):
    """L(w) = w A w / 2 with a symmetric A."""
    generator = torch.Generator().manual_seed(5)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix = root + root.T
    return matrix, lambda state: state["w"] @ matrix @ state["w"] / 2


def test_profile_of_a_quadratic():
    """w A w / 2 + t d A w + t**2 d A d / 2."""
    matrix, loss = quadratic()
    w, d = torch.randn(2, 6, dtype=torch.float64)
    found = loss_along(loss, {"w": w}, {"w": d}, GRID)
    expected = [(w @ matrix @ w / 2 + t * d @ matrix @ w + t**2 * d @ matrix @ d / 2).item() for t in GRID]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_plane_of_a_quadratic():
    matrix, loss = quadratic()
    w, d, e = torch.randn(3, 6, dtype=torch.float64)
    found = loss_on_plane(loss, WeightPlane({"w": w}, {"w": d}, {"w": e}), GRID, [0.0, 1.5])
    points = [[w + x * d + y * e for x in GRID] for y in (0.0, 1.5)]
    expected = torch.tensor([[(p @ matrix @ p / 2).item() for p in row] for row in points], dtype=torch.float64)
    assert torch.allclose(found, expected, rtol=1e-12)


def test_line_of_a_linear_model_is_a_parabola_whose_ends_are_the_two_losses():
    one, other = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()
    inputs, targets = torch.randn(20, 4, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    loss = module_loss(one, lambda: [(inputs, targets)], lambda m, b: (m(b[0]) - b[1]).square().mean(1))
    found = loss_between(loss, one.state_dict(), other.state_dict(), [0.0, 0.3, 1.0, 1.7])
    a, b = one(inputs).detach(), other(inputs).detach()
    expected = [mse_loss((1 - t) * a + t * b, targets).item() for t in (0.0, 0.3, 1.0, 1.7)]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    assert found[0].item() == mean_loss(loss, one.state_dict())
    assert found[2].item() == mean_loss(loss, other.state_dict())


def test_ends_of_the_line_are_exact_with_batchnorm():
    """Bit for bit those of the two networks, each with statistics of its own."""
    ends = [nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 1)) for _ in range(2)]
    inputs = torch.randn(30, 4)
    own = []
    for module in ends:
        loss = module_loss(module, lambda: [inputs], lambda m, x: m(x).square().flatten())
        own.append(mean_loss(loss, module.state_dict()))
    found = loss_between(loss, ends[0].state_dict(), ends[1].state_dict(), [0.0, 1.0])
    assert found.tolist() == own


def test_filters_of_a_direction_are_as_long_as_those_of_the_weights():
    state = rectified().state_dict()
    direction = random_direction(state)
    for name, tensor in state.items():
        if tensor.ndim > 1:
            lengths = [part.flatten(1).norm(dim=1) for part in (tensor, direction[name])]
            assert torch.allclose(*lengths, rtol=1e-5)
            cosine = (tensor * direction[name]).sum() / tensor.square().sum()
            assert abs(cosine) < 5 / math.sqrt(tensor.numel()), "not the weights themselves"
        else:
            assert not direction[name].any()


@pytest.mark.parametrize("factor", [4.0, 0.125])
def test_rescaled_layers_have_the_same_profile(factor):
    """c W1, c b1 before a ReLU and W2 / c after it are the same function: the loss along the same draws is the same."""
    plain, scaled = rectified(), rectified()
    state = parameters(plain)
    state_of_scaled = {
        name: tensor * {"0": factor, "3": 1 / factor}.get(name[0], 1.0) if name != "3.bias" else tensor
        for name, tensor in state.items()
    }
    profiles, naive = [], []
    for module, weights in ((plain, state), (scaled, state_of_scaled)):
        direction = random_direction(weights, torch.Generator().manual_seed(11))
        profiles.append(loss_along(squares(module), weights, direction, GRID))
        torch.manual_seed(0)
        drawn = {name: torch.randn_like(tensor) for name, tensor in weights.items()}
        naive.append(loss_along(squares(module), weights, drawn, GRID))
    assert torch.allclose(*profiles, rtol=1e-5)
    assert not torch.allclose(*naive, rtol=0.1), "a direction that is not normalised tells them apart"


def test_norms_of_filters():
    norms = filter_norms({"w": torch.tensor([[[3.0], [4.0]]]), "b": torch.ones(3), "n": torch.tensor([[2]])})
    assert norms["w"].tolist() == [[[5.0], [5.0]]]
    assert norms["b"].tolist() == [0, 0, 0]
    assert norms["n"].tolist() == [[0]]


def test_plane_through_three_sets_of_weights():
    states = [parameters(rectified()) for _ in range(3)]
    plane = WeightPlane.through(*states)
    places = [plane.place(state) for state in states]
    assert places[0] == (0.0, 0.0)
    assert places[1][1] == pytest.approx(0, abs=1e-4)
    for state, place in zip(states, places, strict=True):
        again = plane.at(*place)
        assert all(torch.allclose(again[name], tensor, atol=1e-5) for name, tensor in state.items())
    distance = math.dist(places[1], places[2])
    expected = math.sqrt(sum((states[1][name] - states[2][name]).square().sum().item() for name in states[1]))
    assert distance == pytest.approx(expected, rel=1e-5)


def test_integers_stay():
    state = {"w": torch.ones(2, 2), "n": torch.tensor(7)}
    plane = WeightPlane.through(
        state, {"w": torch.eye(2), "n": torch.tensor(9)}, {"w": -torch.ones(2, 2), "n": state["n"]}
    )
    assert plane.at(0.3, -2.0)["n"].item() == 7
    found = []
    loss_along(lambda s: found.append(s["n"].item()) or s["w"].sum(), state, random_direction(state), [0.5, 1.0])
    assert found == [7, 7]


def test_overflow_shows():
    """Far away a loss may be no number: a hole in the figure, not an error."""
    found = loss_along(lambda s: s["w"].exp().sum(), {"w": torch.zeros(1)}, {"w": torch.ones(1)}, [0.0, 1e3])
    assert found[0] == 1
    assert found[1].isinf()


W, NAN = {"w": torch.ones(2, 2)}, {"w": torch.tensor([[1.0, torch.nan], [1.0, 1.0]])}


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: loss_between(mean, W, {"w": torch.ones(3, 2)}, GRID), r"Expected w of shape \(2, 2\) in the end"),
        (lambda: loss_between(mean, W, {"v": torch.ones(2, 2)}, GRID), "the end of the line, but it lacks w"),
        (lambda: loss_along(mean, W, {"w": torch.ones(2, 3)}, GRID), r"Expected w of shape \(2, 2\) in the direction"),
        (lambda: loss_between(mean, NAN, W, GRID), "Expected finite numbers in the start of the line, but 1 of 4 in w"),
        (lambda: loss_between(mean, W, NAN, GRID), "Expected finite numbers in the end of the line"),
        (lambda: loss_along(mean, NAN, W, GRID), "Expected finite numbers in the origin"),
        (lambda: loss_along(mean, W, NAN, GRID), "Expected finite numbers in the direction"),
        (lambda: random_direction(NAN), "Expected finite numbers in the weights"),
        (lambda: loss_between(mean, W, W, []), "Expected `positions` to be at least one finite number"),
        (lambda: loss_along(mean, W, W, [0.0, math.inf]), r"finite number, but got \[0.0, inf\]"),
        (lambda: random_direction({"b": torch.ones(3)}), "Expected weights with filters.* none among 1 tensors"),
        (lambda: random_direction({"w": torch.zeros(3, 3)}), "Expected weights with filters"),
        (lambda: WeightPlane.through(W, W, {"w": torch.eye(2)}), "Expected three sets of weights that are not on one"),
        (lambda: WeightPlane.through(W, {"w": 3 * W["w"]}, {"w": 7 * W["w"]}), "not on one line"),
    ],
)
def test_rejects_what_has_no_landscape(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def mean(state):
    return state["w"].mean()
