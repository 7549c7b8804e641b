"""Ranges against numpy's own, on data whose answer is known."""

import itertools

import numpy as np
import pytest
from scipy.stats import entropy

from lightning_robust.deployment.numerics.calibration import _divergence, calibrate

from ..graphs import graph

NEGATED = graph("g (float[n,64] x) => (float[n,64] y) { h = Neg(x) y = Relu(h) }")


def rows(count=40, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal((count, 64))).astype(np.float32)


def find(x, method, model=NEGATED, tensors=("h",)):
    return calibrate(model, {"x": x}, tensors, method)


def test_minmax_is_the_largest_magnitude_of_all_samples():
    x = rows()
    x[37, 5] = 11.0  # in the last of several batches, on the side that ends negative
    assert find(x, "minmax", tensors=("x", "h", "y")) == {"x": 11.0, "h": 11.0, "y": float(max(0, -x.min()))}


def test_percentile_matches_numpy_within_a_bin():
    x = rows(2000)
    x[7, 7] = 60.0
    exact = np.percentile(np.abs(x), 99.999, method="inverted_cdf")
    assert 0 <= find(x, "percentile")["h"] - exact <= 60 / 2048
    assert find(x, "minmax")["h"] == 60.0


def test_percentile_leaves_nothing_out_of_few_values():
    x = rows(4)
    assert find(x, "percentile")["h"] == pytest.approx(float(np.abs(x).max()))


def test_entropy_cuts_an_outlier_and_keeps_a_uniform_range():
    x = rows(400)
    x[3, 3] = 100.0
    assert 3 < find(x, "entropy")["h"] < 10
    uniform = np.random.default_rng(0).random((400, 64)).astype(np.float32)
    assert find(uniform, "entropy")["h"] > 0.99


def test_entropy_does_not_count_the_zeros_of_a_relu():
    x = rows(400)
    ranges = find(x, "entropy", tensors=("h", "y"))
    assert 0.8 < ranges["y"] / ranges["h"] < 1.25


@pytest.mark.parametrize("kept", [128, 160, 1000, 2048])
def test_divergence_matches_the_formula_level_by_level(kept):
    """Kullback-Leibler by scipy, on distributions that loops make as the paper says."""
    counts = np.histogram(np.random.default_rng(1).exponential(1, 5000), 2048)[0]
    p, q = counts[:kept].astype(float), np.zeros(kept)
    edges = [-(-level * kept // 128) for level in range(129)]
    for start, end in itertools.pairwise(edges):
        filled = p[start:end] > 0
        if filled.any():
            q[start:end][filled] = p[start:end].sum() / filled.sum()
    p[np.flatnonzero(p)[-1]] += counts[kept:].sum()
    filled = p > 0
    assert _divergence(counts, kept) == pytest.approx(entropy(p[filled], q[filled]), rel=1e-9)


def test_does_not_depend_on_the_order_of_the_samples():
    x = np.concatenate([rows(16, scale=1e-3), rows(16, seed=1, scale=1e3)])
    for method in ("minmax", "percentile", "entropy"):
        assert find(x, method) == find(x[::-1], method)


def test_a_graph_of_one_sample_runs_on_all():
    model = graph("g (float[1,64] x) => (float[1,64] y) { h = Neg(x) y = Relu(h) }")
    x = rows(21)
    assert find(x, "minmax", model)["h"] == float(np.abs(x).max())


def test_inputs_without_rows_go_in_whole():
    model = graph("g (float[n,64] x, float s) => (float[n,64] y) { h = Mul(x, s) y = Relu(h) }")
    x = rows(20)
    found = calibrate(model, {"x": x, "s": np.array(3, np.float32)}, ["h"])
    assert found["h"] == float(np.abs(x * np.float32(3)).max())


def test_what_is_not_finite_is_said_to_be():
    model = graph("g (float[n,64] x) => (float[n,64] y) { h = Log(x) y = Relu(h) k = Exp(x) z = Mul(k, k) }")
    x = np.abs(rows())
    x[0, 0], x[1, 1] = -1.0, 88.0
    ranges = calibrate(model, {"x": x}, ["h", "z"], "entropy")
    assert np.isnan(ranges["h"])
    assert np.isinf(ranges["z"])


def test_zeros_alone_have_no_range():
    for method in ("minmax", "percentile", "entropy"):
        assert find(np.zeros((3, 64), np.float32), method)["h"] == 0.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rejects_inputs_that_are_not_finite(value):
    x = rows()
    x[3, :2] = value
    with pytest.raises(ValueError, match=r"but 2 of input 'x' are NaN or infinite"):
        find(x, "minmax")


def test_rejects_no_samples():
    with pytest.raises(ValueError, match="Expected samples to calibrate int8 on, but got none"):
        find(rows(0), "minmax")
    with pytest.raises(ValueError, match="but got none"):
        calibrate(NEGATED, {}, ["h"])


def test_says_nothing_on_the_screen(capfd):
    for method in ("minmax", "percentile", "entropy"):
        find(rows(), method)
    assert capfd.readouterr() == ("", "")
