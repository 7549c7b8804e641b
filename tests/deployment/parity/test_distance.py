import math

import numpy as np
import pytest
import torch

from lightning_robust.deployment.parity.distance import compare_decoded, compare_outputs, is_constant, per_output


def test_closed_form():
    reference = torch.tensor([[0.0, 2.0], [4.0, 6.0]])
    metrics = compare_outputs([reference], [reference + torch.tensor([[0.1, -0.1], [0.1, 0.5]])])
    assert metrics["rel_l2"] == pytest.approx(math.sqrt(0.28 / 20), rel=1e-6)
    assert metrics["max_abs"] == pytest.approx(0.5)
    assert metrics["p99_abs"] == pytest.approx(0.5)
    assert metrics["rmse"] == pytest.approx(math.sqrt(0.07), rel=1e-6)
    assert metrics["bias"] == pytest.approx(0.15, rel=1e-6)
    assert metrics["nonfinite"] == 0
    assert metrics["flip_rate"] == 0


def test_matches_numpy():
    r, d = torch.randn(5, 7, 11, dtype=torch.float64), torch.randn(5, 7, 11, dtype=torch.float64)
    a, b = r.numpy(), d.numpy()
    metrics = compare_outputs([r], [d])
    assert metrics["rel_l2"] == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a - a.mean()))
    assert metrics["p99_abs"] == pytest.approx(np.quantile(np.abs(b - a), 0.99, method="inverted_cdf"))
    assert "flip_rate" not in metrics


def test_equal_is_zero_also_for_constants():
    for value in (torch.randn(3, 2), torch.full((3, 2), 5.0)):
        assert all(v == 0 for v in compare_outputs([value], [value.clone()]).values())


@pytest.mark.parametrize("value", [0.1, -5.0, 3e8])
def test_constant_reference_is_measured_by_its_size(value):
    """0.1 has no exact binary form: subtracting the mean leaves 1e-17, which must not become the denominator."""
    reference = torch.full((7, 1), value, dtype=torch.float64)
    assert compare_outputs([reference], [reference * 1.001])["rel_l2"] == pytest.approx(1e-3)


def test_zero_reference_that_differs_is_infinitely_far():
    assert compare_outputs([torch.zeros(3, 1)], [torch.full((3, 1), 1e-3)])["rel_l2"] == math.inf


def test_small_spread_about_a_large_mean_is_centred():
    """Columns at 800 +- 1 px that move by 0.1 px are a tenth of their spread away, not 1e-4 of their size."""
    reference = torch.tensor([799.0, 801.0], dtype=torch.float64)
    assert compare_outputs([reference], [reference + 0.1])["rel_l2"] == pytest.approx(0.1)


@pytest.mark.parametrize("count", [1, 2, 99, 100, 101, 700, 12345])
def test_p99_matches_numpy(count):
    reference, deployed = torch.zeros(count), torch.randn(count)
    expected = np.sort(deployed.abs().double().numpy())[(99 * count + 99) // 100 - 1]
    assert compare_outputs([reference], [deployed])["p99_abs"] == expected


def test_a_network_that_gives_nan_only_is_no_perfect_deployment():
    broken = torch.full((4, 3), math.nan)
    for deployed in (broken, torch.ones(4, 3)):
        assert compare_outputs([broken], [deployed])["rel_l2"] == math.inf


def test_masked_infinities_on_both_sides_do_not_count():
    reference = torch.tensor([[1.0, -math.inf], [-math.inf, 3.0]])
    metrics = compare_outputs([reference], [reference.clone()])
    assert metrics["rel_l2"] == metrics["nonfinite"] == metrics["flip_rate"] == 0


def test_half_precision_is_compared_in_fp64():
    """Squares of 300 overflow fp16; the distance does not."""
    reference = torch.tensor([0.0, 600.0], dtype=torch.float64)
    assert compare_outputs([reference], [torch.tensor([300.0, 600.0]).half()])["rel_l2"] == pytest.approx(
        300 / math.sqrt(180000)
    )


def test_flips():
    reference = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.2, 0.1]])
    deployed = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.2, 0.1]])
    assert compare_outputs([reference], [deployed])["flip_rate"] == 0.25
    assert compare_outputs([reference > 0.5], [deployed > 0.5]) == {"flip_rate": 0.25}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_is_loud(value):
    reference = torch.arange(10.0).reshape(10, 1)
    deployed = reference.clone()
    deployed[3] = value
    metrics = compare_outputs([reference], [deployed])
    assert metrics["nonfinite"] == 0.1
    assert metrics["rel_l2"] == metrics["max_abs"] == metrics["p99_abs"] == metrics["rmse"] == math.inf
    assert metrics["bias"] == 0


def test_non_finite_in_the_reference_does_not_count():
    reference = torch.tensor([[1.0], [math.nan], [3.0]])
    assert compare_outputs([reference], [torch.tensor([[1.0], [7.0], [3.0]])])["rel_l2"] == 0


def test_the_worst_output_counts_with_its_sign():
    reference = [torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0])]
    deployed = [torch.tensor([0.1, 1.1]), torch.tensor([-0.2, 0.8])]
    assert compare_outputs(reference, deployed)["bias"] == pytest.approx(-0.2, rel=1e-6)
    assert [row["bias"] for row in per_output(reference, deployed)] == pytest.approx([0.1, -0.2], rel=1e-6)


def test_decoded_closed_form():
    nan = math.nan
    reference = {"x_px": torch.tensor([[100.0, 200.0, nan, 400.0, nan]]), "present": torch.tensor([True, False])}
    deployed = {"x_px": torch.tensor([[101.0, 197.0, nan, nan, 5.0]]), "present": torch.tensor([True, True])}
    assert compare_decoded(reference, deployed) == {
        "x_px_mean": 2.0,
        "x_px_p99": 3.0,
        "x_px_max": 3.0,
        "x_px_bias": -1.0,
        "x_px_lost": 0.4,
        "present_flips": 0.5,
    }


def test_decoded_infinity_stays_infinite_and_all_absent_is_zero():
    assert compare_decoded({"x": torch.tensor([1.0])}, {"x": torch.tensor([math.inf])})["x_max"] == math.inf
    empty = torch.full((2, 2), math.nan)
    assert compare_decoded({"x": empty}, {"x": empty})["x_p99"] == 0


def test_decoded_losing_every_value_is_infinitely_far():
    nothing, something = torch.full((4,), math.nan), torch.arange(4.0)
    lost = compare_decoded({"x": something}, {"x": nothing})
    assert lost == {"x_mean": math.inf, "x_p99": math.inf, "x_max": math.inf, "x_bias": 0.0, "x_lost": 1.0}
    invented = compare_decoded({"x": nothing}, {"x": something})
    assert (invented["x_max"], invented["x_lost"]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("reference", "deployed", "match"),
    [
        ([torch.zeros(2)], [], "as many outputs as the reference's 1.*got 0"),
        ([], [], "at least one"),
        ([torch.zeros(2)], [torch.zeros(3)], r"shape \(2,\), but got \(3,\)"),
        ([torch.zeros(0)], [torch.zeros(0)], "with elements"),
    ],
)
def test_rejects_what_cannot_be_compared(reference, deployed, match):
    with pytest.raises(ValueError, match=match):
        compare_outputs(reference, deployed)


def test_rejects_other_names():
    with pytest.raises(ValueError, match=r"\['a'\], but got \['b'\]"):
        compare_decoded({"a": torch.zeros(1)}, {"b": torch.zeros(1)})


def test_a_constant_output_is_not_divided_by_its_rounding():
    """A probability of 1 everywhere, but for the last digit: fp16 makes it a rounding of 1 and not of its spread."""
    torch.manual_seed(0)
    reference = 1 - 1e-6 * torch.rand(16, 30).double()
    metrics = compare_outputs([reference], [reference.half()], "fp16")
    assert is_constant(reference, "fp16")
    assert metrics["rel_l2"] < 1e-6
    assert compare_outputs([reference], [reference.half()], "fp64")["rel_l2"] > 1
    assert not is_constant(torch.rand(16, 30), "fp16")


def test_decoded_infinity_on_both_sides_is_no_deviation():
    depth = torch.tensor([1.0, math.inf, -math.inf, 2.0])
    metrics = compare_decoded({"depth_m": depth}, {"depth_m": depth + torch.tensor([0.0, 0.0, 0.0, 0.5])})
    assert {key: metrics[f"depth_m_{key}"] for key in ("max", "lost", "bias")} == {"max": 0.5, "lost": 0, "bias": 0.125}
    far = compare_decoded({"depth_m": depth}, {"depth_m": -depth})
    assert far["depth_m_max"] == math.inf
