"""Movement, linearisation, tangent kernels and the single step against closed forms."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

from lightning_robust.functional.linearization import (
    _slope,
    alignment,
    central_difference,
    changed_predictions,
    linearization_gap,
    neuron_movement,
    relative_movement,
    single_step,
    tangent_kernel,
)


def weights(module, scale=1.0):
    return {name: tensor.detach() * scale for name, tensor in module.named_parameters()}


def as_model(module, inputs):
    return lambda state: functional_call(module, state, (inputs,))


@pytest.mark.parametrize("factor", [1.0, 1.25, -1.0])
def test_movement_of_a_scaled_layer(factor):
    """|c W - W| / |W| = |c - 1|, per layer and together."""
    layer = nn.Linear(7, 5)
    start, now = weights(layer), weights(layer, factor)
    assert relative_movement(start, now, start) == pytest.approx(abs(factor - 1), abs=1e-6)
    assert relative_movement(start, now, ["bias"]) == pytest.approx(abs(factor - 1), abs=1e-6)
    longest = start["weight"].norm(dim=1).max().item()
    assert neuron_movement(start, now, start) == pytest.approx(math.sqrt(5) * abs(factor - 1) * longest, abs=1e-6)


def test_movement_of_what_began_at_zero_or_has_no_neurons():
    start, now = {"bias": torch.zeros(3)}, {"bias": torch.ones(3)}
    assert math.isnan(relative_movement(start, now, start))
    assert math.isnan(neuron_movement(start, now, start))


def test_neurons_of_a_convolution_are_its_output_channels():
    start = {"w": torch.zeros(4, 2, 1, 2)}
    now = {"w": torch.zeros(4, 2, 1, 2)}
    now["w"][2] = 1.0
    assert neuron_movement(start, now, ["w"]) == pytest.approx(2 * 2.0)


def test_a_linear_model_has_no_gap():
    layer = nn.Linear(6, 3).double()
    inputs = torch.randn(5, 6, dtype=torch.float64)
    found = linearization_gap(as_model(layer, inputs), weights(layer), weights(layer, 3.0))
    assert found.method == "jvp"
    assert found.gap < 1e-12


@pytest.mark.parametrize("step", [0.01, 1.0, 8.0])
def test_gap_of_a_quadratic_model(step):
    """f = w**2: moved by 2 w d + d**2, of which d**2 is not linear."""
    start, now = ({"w": torch.tensor([w], dtype=torch.float64)} for w in (2.0, 2.0 + step))
    found = linearization_gap(lambda state: state["w"] ** 2, start, now)
    assert found.gap == pytest.approx(step / (4 + step), rel=1e-9)


def test_gap_is_nan_where_nothing_moved():
    start = {"w": torch.ones(2)}
    assert math.isnan(linearization_gap(lambda state: state["w"] ** 2, start, start).gap)


class _Cube(torch.autograd.Function):
    """Has no forward mode."""

    @staticmethod
    def forward(ctx, w):
        return w**3

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError


def test_central_difference_takes_over_without_a_forward_mode():
    """f = w**3 from 1 to 2 moves by 7, of which 3 are linear; without forward mode to 1e-3 in fp32."""
    start, now = {"w": torch.ones(1)}, {"w": torch.full((1,), 2.0)}
    found = linearization_gap(lambda state: _Cube.apply(state["w"]), start, now)
    assert found.method == "difference"
    assert found.gap == pytest.approx(4 / 7, rel=3e-3)
    exact = linearization_gap(lambda state: state["w"] ** 3, start, now)
    assert (exact.method, exact.gap) == ("jvp", pytest.approx(4 / 7, rel=1e-6))


@pytest.mark.parametrize("length", [1e-3, 1.0, 1e3])
def test_central_difference_does_not_depend_on_how_far_the_weights_went(length):
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    start, inputs = weights(net), torch.randn(6, 4)
    direction = {name: length * torch.randn_like(tensor) for name, tensor in start.items()}
    model = as_model(net, inputs)
    _, exact = torch.func.jvp(model, (start,), (direction,))
    found = central_difference(model, start, direction)
    assert ((found.detach() - exact).norm() / exact.norm()).item() < 5e-3


def test_central_difference_along_nothing_is_zero():
    assert central_difference(lambda state: state["w"], {"w": torch.ones(2)}, {"w": torch.zeros(2)}).tolist() == [0, 0]


def hand_kernel(w, a, inputs):
    """Of sum_s a_s relu(w_s x): sum_s relu relu' + a_s**2 on on' x x'."""
    before = inputs @ w.T
    on = (before > 0).to(w)
    return before.relu() @ before.relu().T + (on * a**2) @ on.T * (inputs @ inputs.T)


def test_kernel_and_alignment_of_two_layers_by_hand():
    inputs = torch.randn(5, 3, dtype=torch.float64)
    states = [{"w": torch.randn(7, 3).double(), "a": torch.randn(7).double()} for _ in range(2)]

    def model(state):
        return (inputs @ state["w"].T).relu() @ state["a"][:, None]

    ones = torch.ones(5, 1, dtype=torch.float64)
    kernels = [tangent_kernel(model, state, ones) for state in states]
    expected = [hand_kernel(state["w"], state["a"], inputs) for state in states]
    for found, known in zip(kernels, expected, strict=True):
        torch.testing.assert_close(found, known)
    cosine = torch.nn.functional.cosine_similarity(*(k.flatten() for k in expected), dim=0).item()
    assert alignment(*kernels) == pytest.approx(cosine, rel=1e-12)
    assert 0 < cosine < 1


def test_signs_of_one_output_do_not_matter_for_the_alignment():
    inputs, signs = torch.randn(4, 3), torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 1))
    model, pair = as_model(net, inputs), (weights(net), {n: t + 0.3 for n, t in weights(net).items()})
    plain, signed = ([tangent_kernel(model, state, v) for state in pair] for v in (torch.ones(4, 1), signs))
    torch.testing.assert_close(signed[0], plain[0] * (signs @ signs.T))
    assert alignment(*signed) == pytest.approx(alignment(*plain), rel=1e-5)


def test_kernel_of_the_same_weights_is_aligned_and_touches_no_gradient():
    net, inputs = nn.Linear(3, 2), torch.randn(4, 3)
    kernel = tangent_kernel(as_model(net, inputs), weights(net), torch.ones(4, 2))
    assert alignment(kernel, 5 * kernel) == pytest.approx(1.0)
    assert net.weight.grad is None


@pytest.mark.parametrize("shape", [(3, 8), (3, 2, 4, 4)])
def test_single_step_has_the_length_of_a_typical_coordinate(shape):
    inputs, slope = torch.randn(shape), torch.randn(shape[1:])
    moved = single_step(lambda x: (x * slope).flatten(1).sum(1), inputs, 0.5) - inputs
    d = slope.numel()
    lengths = moved.flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, 0.5 * inputs.flatten(1).norm(dim=1) / math.sqrt(d), rtol=1e-4, atol=0)
    direction = torch.nn.functional.cosine_similarity(moved.flatten(1), slope.flatten().expand(len(inputs), d))
    torch.testing.assert_close(direction, torch.ones(len(inputs)))


def test_single_step_flips_a_linear_classifier_exactly_where_the_margin_says():
    """x = (t, 1), weight (1, 0): a step of beta |x| / sqrt(2) passes the boundary if it is longer than t."""
    inputs = torch.tensor([[0.1, 1.0], [0.6, 1.0], [0.9, 1.0], [-0.2, 1.0]])
    targets = torch.tensor([1, 1, 1, 1])
    logits = lambda x: torch.stack([torch.zeros(len(x)), x[:, 0]], 1)  # noqa: E731
    moved = single_step(lambda x: nn.functional.cross_entropy(logits(x), targets, reduction="none"), inputs, 1.0)
    beyond = inputs.norm(dim=1) / math.sqrt(2) > inputs[:, 0]
    assert beyond[:3].tolist() == [True, True, True]
    assert changed_predictions(logits(inputs), logits(moved), targets) == 1.0
    short = single_step(lambda x: nn.functional.cross_entropy(logits(x), targets, reduction="none"), inputs, 0.5)
    assert changed_predictions(logits(inputs), logits(short), targets) == pytest.approx(1 / 3)


def test_changed_predictions_counts_right_ones_only():
    before, after = torch.eye(4), torch.eye(4)[[1, 1, 3, 3]]
    assert changed_predictions(before, after, torch.tensor([0, 1, 0, 3])) == pytest.approx(1 / 3)
    assert math.isnan(changed_predictions(before, after, torch.tensor([3, 3, 3, 0])))


def test_out_of_memory_is_not_taken_for_a_missing_forward_mode():
    def full(state):
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        _slope(full, {"w": torch.ones(1)}, {"w": torch.ones(1)})
