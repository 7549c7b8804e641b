"""Complex weights, as of Fourier layers: every mean is that of the same numbers as pairs of real ones."""

import pytest
import torch

from lightning_robust.functional import (
    RunningAverage,
    interpolate,
    learned_soup,
    quantize_block,
    quantize_channels,
    stock_soup,
    uniform_soup,
)
from lightning_robust.functional.basins import cosine
from lightning_robust.functional.landscape import WeightPlane, filter_norms, random_direction
from lightning_robust.functional.sharpness import hessian_product, largest_curvature
from lightning_robust.functional.weights import Weights
from lightning_robust.number_types import real_parts


def complex_states(count=3, kind=torch.complex64):
    generator = torch.Generator().manual_seed(0)
    return [{"w": torch.randn(4, 3, dtype=kind, generator=generator)} for _ in range(count)]


def real(state):
    return {name: real_parts(tensor) for name, tensor in state.items()}


def close(one, other):
    torch.testing.assert_close(real(one), real(other))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("settings", [{}, {"kind": "ema", "half_life": 2.0}, {"kind": "lawa", "window": 2}])
def test_running_averages(settings, dtype):
    """In bf16 they are wider than asked for, since it has no complex type."""
    pairs = RunningAverage(**settings, dtype=torch.float32 if dtype == torch.bfloat16 else dtype)
    average = RunningAverage(**settings, dtype=dtype)
    for state in complex_states(5):
        average.update([state["w"]])
        pairs.update([real_parts(state["w"])])
    assert average.values()[0].dtype == (torch.complex128 if dtype == torch.float64 else torch.complex64)
    torch.testing.assert_close(real_parts(average.values()[0]), pairs.values()[0])


def test_infinity_stays():
    one, other = torch.tensor([complex("inf"), 1 + 1j]), torch.tensor([complex("inf"), 3 + 1j])
    average = RunningAverage()
    average.update([one])
    average.update([other])
    assert average.values()[0].tolist() == [complex("inf"), 2 + 1j]
    assert interpolate({"w": one}, {"w": other}, 0.5)["w"].tolist() == [complex("inf"), 2 + 1j]


def test_interpolation_and_soups():
    states = complex_states()
    pairs = [real(state) for state in states]
    close(interpolate(*states[:2], 0.3), interpolate(*pairs[:2], 0.3))
    close(uniform_soup(states).state, uniform_soup(pairs).state)
    close({"w": uniform_soup(states).state["w"]}, {"w": sum(state["w"] for state in states) / 3})
    stock, stock_of_pairs = stock_soup(states[:2], states[2]), stock_soup(pairs[:2], pairs[2])
    close(stock.state, stock_of_pairs.state)
    assert stock.coefficients["w"] == pytest.approx(stock_of_pairs.coefficients["w"])
    assert cosine(*states[:2]) == pytest.approx(cosine(*pairs[:2]))
    assert cosine(*states[:2], states[2]) == pytest.approx(cosine(*pairs[:2], pairs[2]))


def test_a_learned_soup_reaches_the_optimum():
    """Of the ends 0 and 2 + 2j the one in the middle is wanted: both have the share of one half."""
    ends = [{"w": torch.zeros(1, dtype=torch.complex64)}, {"w": torch.full((1,), 2 + 2j)}]
    soup = learned_soup(
        ends, lambda state, _, beta: (state["w"] - (1 + 1j)).abs().square().sum(), lambda: [None], epochs=200
    )
    assert soup.state["w"].item() == pytest.approx(1 + 1j, abs=0.05)


@pytest.mark.parametrize("dim", [None, 0, -1])
def test_quantising(dim):
    (state,) = complex_states(1)
    pairs = real(state)["w"]
    by_pairs = None if dim is None else dim % 2
    rounded = quantize_block(state["w"], 4, block_dim=dim, rounding="nearest")
    assert torch.equal(real_parts(rounded), quantize_block(pairs, 4, block_dim=by_pairs, rounding="nearest"))
    held = state["w"].clone()
    quantize_block(held, 4, block_dim=dim, rounding="nearest", out=held)
    assert torch.equal(held, rounded)
    if dim is not None:
        assert torch.equal(
            real_parts(quantize_channels(state["w"], 4, dim=dim)), quantize_channels(pairs, 4, dim=by_pairs)
        )


def test_exchange():
    module = torch.nn.Module()
    module.w = torch.nn.Parameter(complex_states(1)[0]["w"])
    before, weights = module.w.detach().clone(), Weights(module)
    with weights.exchanged([torch.zeros(4, 3, dtype=torch.complex64)]):
        assert not module.w.any()
    assert torch.equal(module.w, before)


def test_landscape():
    """A plane through three networks has them where it says; filters of a direction are as long as those of weights."""
    states = complex_states()
    plane = WeightPlane.through(*states)
    for state in states:
        close(plane.at(*plane.place(state)), state)
    direction = random_direction(states[0], torch.Generator().manual_seed(0))
    assert direction["w"].is_complex()
    torch.testing.assert_close(direction["w"].norm(dim=1), states[0]["w"].norm(dim=1))


def _quartic(pairs):
    """Real and imaginary parts that curve each other."""
    return (pairs[..., 0] * pairs[..., 1]).square().sum() + (pairs.square().sum(-1) @ torch.arange(3.0)).sum()


def test_curvature():
    """Real and imaginary parts are the variables, also where autograd gives conjugates."""
    state, direction = complex_states(2)
    pairs, of_pairs = real(state), real(direction)
    product = hessian_product(lambda s: _quartic(torch.view_as_real(s["w"])), state, direction)
    close(product, hessian_product(lambda s: _quartic(s["w"]), pairs, of_pairs))
    squares = hessian_product(lambda s: (s["w"].conj() * s["w"]).real.sum() / 2, state, direction)
    close(squares, direction)
    for scales in (None, filter_norms(state)):
        of_real = None if scales is None else {"w": scales["w"][..., None].expand(4, 3, 2)}
        found, same = (
            largest_curvature(loss, weights, scales=lengths, tolerance=1e-4, steps=2000)
            for loss, weights, lengths in (
                (lambda s: _quartic(torch.view_as_real(s["w"])), state, scales),
                (lambda s: _quartic(s["w"]), pairs, of_real),
            )
        )
        assert found.eigenvalue == pytest.approx(same.eigenvalue, rel=1e-3)
        assert found.eigenvalue > 1
