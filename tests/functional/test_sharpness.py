"""The largest eigenvalue of Hessians that are known, and what power iteration says of its exactness."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from lightning_robust.functional.landscape import filter_norms, inner_product
from lightning_robust.functional.sharpness import hessian_product, largest_curvature
from lightning_robust.functional.state_loss import module_loss


def quadratic(*eigenvalues):
    """L(w) = w A w / 2 with these eigenvalues, turned at random."""
    size = len(eigenvalues)
    turn, _ = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))
    matrix = turn @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ turn.T
    return turn, lambda state: state["w"] @ matrix @ state["w"] / 2, {"w": torch.randn(size, dtype=torch.float64)}


@pytest.mark.parametrize(
    "eigenvalues",
    [(5.0, 1.0, 0.1, -1.0), (-8.0, 3.0, 1.0), (-8.0, -3.0, -1.0), (2.0,), (-2.0, -2.0), (4.0, 4.0, -4.1)],
    ids=str,
)
def test_closed_form(eigenvalues):
    """The largest one, not that of the largest magnitude."""
    turn, loss, state = quadratic(*eigenvalues)
    found = largest_curvature(loss, state, steps=500, tolerance=1e-6)
    assert found.eigenvalue == pytest.approx(max(eigenvalues), abs=1e-8)
    assert found.residual <= 1e-6 * 2 * max(map(abs, eigenvalues))
    assert found.direction["w"].norm().item() == pytest.approx(1)
    if eigenvalues.count(max(eigenvalues)) == 1:
        own = turn[:, eigenvalues.index(max(eigenvalues))]
        assert abs(own @ found.direction["w"]).item() == pytest.approx(1, abs=1e-6)


def test_the_residual_bounds_the_error_after_few_steps():
    """Some eigenvalue is as near as the residual says, and none of those found lies above the largest."""
    eigenvalues = (5.0, 4.5, 3.0, 1.0, 0.5, 0.1)
    for steps in (1, 2, 5, 20):
        _, loss, state = quadratic(*eigenvalues)
        found = largest_curvature(loss, state, steps=steps, tolerance=1e-9)
        assert found.products == steps
        assert min(abs(found.eigenvalue - each) for each in eigenvalues) <= found.residual + 1e-12
        assert found.eigenvalue <= 5.0 + 1e-12


@pytest.mark.parametrize("sizes", [(40,), (13, 20, 7)])
def test_linear_model_by_the_spectrum_of_its_data(sizes):
    """Of mean (w x - y)**2 the Hessian is 2 X'X / n, however the data come in batches."""
    inputs = torch.randn(40, 6, dtype=torch.float64) * torch.tensor([3.0, 1, 1, 1, 0.5, 0.1], dtype=torch.float64)
    targets, layer = torch.randn(40, dtype=torch.float64), nn.Linear(6, 1, bias=False).double()
    batches = list(zip(inputs.split(sizes), targets.split(sizes), strict=True))
    loss = module_loss(layer, lambda: batches, lambda m, b: (m(b[0]).flatten() - b[1]).square())
    found = largest_curvature(loss, dict(layer.named_parameters()), tolerance=1e-6)
    expected = 2 * torch.linalg.eigvalsh(inputs.T @ inputs / 40).max().item()
    assert found.eigenvalue == pytest.approx(expected, rel=1e-9)
    assert all(parameter.grad is None for parameter in layer.parameters())


def small():
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def test_matches_the_whole_hessian():
    """That of torch.func, entry by entry, of a network whose parameters are few."""
    module, inputs, labels = small(), torch.randn(30, 5, dtype=torch.float64), torch.randint(3, (30,))
    state = {name: tensor.detach() for name, tensor in module.named_parameters()}
    whole = hessian(lambda s: cross_entropy(functional_call(module, s, (inputs,)), labels))(state)
    matrix = torch.cat([torch.cat([whole[a][b].reshape(state[a].numel(), -1) for b in state], 1) for a in state])
    loss = module_loss(module, lambda: [(inputs, labels)], lambda m, b: cross_entropy(m(b[0]), b[1], reduction="none"))
    vector = {name: torch.randn_like(tensor) for name, tensor in state.items()}
    found = hessian_product(loss, state, vector)
    expected = matrix @ torch.cat([part.flatten() for part in vector.values()])
    assert torch.allclose(torch.cat([part.flatten() for part in found.values()]), expected, atol=1e-12)
    largest = largest_curvature(loss, state, steps=500, tolerance=1e-3)
    assert largest.eigenvalue == pytest.approx(torch.linalg.eigvalsh(matrix).max().item(), rel=1e-3)


@pytest.mark.parametrize("factor", [5.0, 0.2])
def test_scaled_by_filters_it_is_the_same_for_the_same_function(factor):
    module = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    inputs, targets = torch.randn(30, 5, dtype=torch.float64), torch.randn(30, 3, dtype=torch.float64)
    loss = module_loss(module, lambda: [(inputs, targets)], lambda m, b: (m(b[0]) - b[1]).square().mean(1))
    state = {name: tensor.detach() for name, tensor in module.named_parameters()}
    grown = state | {
        "0.weight": factor * state["0.weight"],
        "0.bias": factor * state["0.bias"],
        "2.weight": state["2.weight"] / factor,
    }
    how = {"steps": 60, "tolerance": 5e-3}
    scaled = [largest_curvature(loss, each, scales=filter_norms(each), **how).eigenvalue for each in (state, grown)]
    plain = [largest_curvature(loss, each, steps=20).eigenvalue for each in (state, grown)]
    assert scaled[1] == pytest.approx(scaled[0], rel=0.02)
    assert abs(plain[1] / plain[0] - 1) > 0.2


def test_linear_losses_do_not_curve():
    found = largest_curvature(lambda state: state["w"].sum(), {"w": torch.ones(3), "n": torch.tensor(2)})
    assert (found.eigenvalue, found.residual, found.products) == (0.0, 0.0, 1)
    assert set(found.direction) == {"w"}


def test_batchnorm_by_the_batch_makes_the_layer_before_it_free_of_scale():
    """The loss does not change along the weights of a layer before it: H w = -gradient; by refreshed ones it does."""
    module = nn.Sequential(
        nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6, eps=1e-30), nn.Tanh(), nn.Linear(6, 2)
    ).double()
    inputs = torch.randn(40, 5, dtype=torch.float64)
    state = {name: tensor.detach() for name, tensor in module.named_parameters()}
    along = {name: tensor if name == "0.weight" else torch.zeros_like(tensor) for name, tensor in state.items()}
    products, slopes = {}, {}
    for batchnorm in ("batch", "refresh"):
        loss = module_loss(module, lambda: [inputs], lambda m, x: m(x).square().sum(1), batchnorm=batchnorm)
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in state.items()}
        (losses,) = loss(leaves)
        (slopes[batchnorm],) = torch.autograd.grad(losses.mean(), [leaves["0.weight"]])
        products[batchnorm] = hessian_product(loss, state, along)["0.weight"]
    assert torch.allclose(products["batch"], -slopes["batch"], atol=1e-10)
    assert inner_product({"w": slopes["batch"]}, {"w": state["0.weight"]}) == pytest.approx(0, abs=1e-12)
    assert not torch.allclose(products["refresh"], -slopes["refresh"], atol=1e-3)


def test_attention_has_second_derivatives():
    """Its fused kernel on the CPU has none."""
    queries = torch.randn(1, 2, 4, 8)

    def loss(state):
        return scaled_dot_product_attention(queries * state["w"], queries, queries).square().sum()

    state, way, step = {"w": torch.tensor(0.7)}, {"w": torch.tensor(1.0)}, 0.05
    found = hessian_product(loss, state, way)["w"].item()
    ends = [loss({"w": torch.tensor(0.7 + step * sign)}).item() for sign in (-1, 0, 1)]
    assert found == pytest.approx((ends[0] - 2 * ends[1] + ends[2]) / step**2, rel=0.05)


@pytest.mark.parametrize(
    ("loss", "options", "says"),
    [
        (lambda s: s["w"].sum(), {"steps": 0}, "Expected steps of at least 1 and a positive tolerance, but got 0"),
        (lambda s: s["w"].sum(), {"tolerance": 0.0}, "positive tolerance, but got 100 and 0.0"),
        (lambda s: s["w"].sum(), {"scales": {"w": torch.ones(3)}}, r"Expected w of shape \(2,\) in the scales"),
        (lambda s: torch.tensor(1.0), {}, "Expected a loss with a derivative by the weights"),
        (lambda s: (s["w"] ** 1.5).sum() * float("inf"), {}, "Expected finite second derivatives"),
        (lambda s: [], {}, "Expected batches to measure the loss on, but got none"),
    ],
)
def test_rejects_what_has_no_curvature(loss, options, says):
    with pytest.raises(ValueError, match=says):
        largest_curvature(loss, {"w": torch.ones(2)}, **options)


def test_rejects_weights_and_directions_that_do_not_fit():
    with pytest.raises(ValueError, match="Expected finite numbers in the weights, but 1 of 2 in w are not"):
        largest_curvature(lambda s: s["w"].sum(), {"w": torch.tensor([1.0, torch.nan])})
    with pytest.raises(ValueError, match=r"Expected w of shape \(2,\) in the direction, but got \(3,\)"):
        hessian_product(lambda s: s["w"].sum(), {"w": torch.ones(2)}, {"w": torch.ones(3)})
