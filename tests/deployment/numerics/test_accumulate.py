"""fp16 accumulators: against a simulation in NumPy, block by block, and how much more they err."""

import numpy as np
import pytest
import torch

from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.numerics.emulate import emulate

from .operators import normal, one


def half(values):
    return values.astype(np.float16).astype(np.float32)


def accumulate(left, right, block=16):
    """(M, K) times (K, N) with an fp16 sum that is rounded after each block; exact products within a block."""
    total = np.zeros((left.shape[0], right.shape[1]), np.float32)
    for start in range(0, left.shape[1], block):
        part = left[:, start : start + block].astype(np.float64) @ right[start : start + block].astype(np.float64)
        total = half((total + part).astype(np.float32))
    return total


def run(model, feeds, **settings):
    return Session(emulate(model, "fp16", **settings)).run(feeds)[0].numpy()


def positions_first(x, kernel):
    """The patches of a picture, (N * H * W, positions * channels)."""
    n, c, h, w = x.shape
    rows, columns = h - kernel + 1, w - kernel + 1
    patches = [x[:, :, i : i + rows, j : j + columns] for i in range(kernel) for j in range(kernel)]
    return np.stack(patches, 1).transpose(0, 3, 4, 1, 2).reshape(n * rows * columns, kernel * kernel * c)


@pytest.mark.parametrize("depth", [7, 16, 48, 53, 288])
def test_matrix_products_match_the_simulation(depth):
    """Equal but where a sum within a block lies on the edge between two numbers of fp16: less than one in a hundred."""
    x, w = half(normal(20, depth)), half(normal(depth, 9))
    model, _ = one("[op] y = MatMul(x, w)", inputs=f"float[n,{depth}] x", outputs="float[n,9] y", w=w)
    got, expected = run(model, {"x": x}, fp16_accumulators=True), accumulate(x, w)
    assert (got != expected).mean() < 0.01
    np.testing.assert_allclose(got, expected, atol=2**-10 * np.abs(expected).max())


@pytest.mark.parametrize(("channels", "kernel"), [(32, 3), (16, 1), (40, 2), (3, 5), (1, 7)])
def test_convolutions_match_the_simulation(channels, kernel):
    """Position by position; with few channels as many positions as fill a block."""
    x, w = half(normal(2, channels, 8, 8)), half(normal(6, channels, kernel, kernel))
    model, _ = one("[op] y = Conv(x, w)", inputs=f"float[2,{channels},8,8] x", outputs="float[a,b,c,d] y", w=w)
    got = run(model, {"x": x}, fp16_accumulators=True)
    flat = w.transpose(2, 3, 1, 0).reshape(-1, 6)
    size = max(1, 16 // channels) * channels if channels < 16 else 16
    patches, blocks = positions_first(x, kernel), []
    for position in range(0, flat.shape[0], channels if channels >= 16 else size):
        end = position + (channels if channels >= 16 else size)
        blocks += [(start, min(start + size, end, flat.shape[0])) for start in range(position, end, size)]
    total = np.zeros((len(patches), 6), np.float32)
    for start, end in blocks:
        total = half(total + patches[:, start:end].astype(np.float64) @ flat[start:end].astype(np.float64))
    expected = total.reshape(2, 9 - kernel, 9 - kernel, 6).transpose(0, 3, 1, 2)
    assert (got != expected).mean() < 0.01
    np.testing.assert_allclose(got, expected, atol=2**-10 * np.abs(expected).max())


CASES = {
    "depth-wise": ("[op] y = Conv<group = 4, pads = [2, 2, 2, 2]>(x, w, b)", (4, 1, 5, 5), 4),
    "grouped": ("[op] y = Conv<group = 2, strides = [2, 2], dilations = [2, 2]>(x, w, b)", (6, 2, 3, 3), 6),
    "padded as before": ('[op] y = Conv<auto_pad = "SAME_UPPER">(x, w, b)', (6, 4, 3, 3), 6),
    "transposed": ("[op] y = ConvTranspose<strides = [2, 2]>(x, w, b)", (4, 6, 4, 4), 6),
    "transposed, grouped": ("[op] y = ConvTranspose<group = 2>(x, w, b)", (4, 3, 3, 3), 6),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("channels", [4, 80])
def test_every_product_is_taken_once(name, channels):
    """Small integers: no sum of theirs is rounded in fp16, so that the answer is exact whatever the blocks are."""
    text, shape, outputs = CASES[name]
    wide = list(shape)
    axis = 0 if "transposed" in name else 1
    wide[axis] = shape[axis] * channels // 4
    if name == "depth-wise":
        wide, outputs = [channels, 1, *shape[2:]], channels
        text = text.replace("group = 4", f"group = {channels}")
    rng = np.random.default_rng(0)
    x, w, b = (rng.integers(-1, 2, s).astype(np.float32) for s in ((2, channels, 9, 9), wide, (outputs,)))
    model, _ = one(text, inputs=f"float[2,{channels},9,9] x", outputs="float[a,b,c,d] y", w=w, b=b)
    assert np.array_equal(run(model, {"x": x}, fp16_accumulators=True), Session(model).run({"x": x})[0].numpy())


def test_gemm_closed_form():
    rng = np.random.default_rng(0)
    x, w, b = (rng.integers(-2, 3, s).astype(np.float32) for s in ((40, 5), (7, 40), (7,)))
    model, _ = one("[op] y = Gemm<transA = 1, transB = 1, alpha = 0.5, beta = 2.0>(x, w, b)", inputs="float[40,5] x",
                   outputs="float[5,7] y", w=w, b=b)  # fmt: skip
    assert np.array_equal(run(model, {"x": x}, fp16_accumulators=True), 0.5 * x.T @ w.T + 2 * b)


@pytest.mark.parametrize(("depth", "times"), [(288, 2.9), (1152, 6.2), (4608, 11.8)])
def test_how_much_more_they_err(depth, times):
    """A simulation of blocks of 16 gave 2.9, 6.2 and 11.8 times the error with fp32 accumulators: within 25 %."""
    torch.manual_seed(0)
    x, w = torch.randn(64, depth).numpy(), (torch.randn(depth, 32) / depth**0.5).numpy()
    model, _ = one("[op] y = MatMul(x, w)", inputs=f"float[n,{depth}] x", outputs="float[n,32] y", w=w)
    exact = half(x).astype(np.float64) @ half(w).astype(np.float64)
    errors = [np.linalg.norm(run(model, {"x": x}, fp16_accumulators=f) - exact) for f in (False, True)]
    assert errors[1] / errors[0] == pytest.approx(times, rel=0.25)


def test_computed_kernels_and_old_operator_sets_keep_fp32_accumulators():
    computed, _ = one("[k] k = Exp(w) [op] y = Conv(x, k)", w=normal(4, 3, 3, 3))
    old, _ = one("[op] y = MatMul(x, w)", 9, w=normal(8, 5))
    for model in (computed, old):
        assert "Loop" not in {node.op_type for node in emulate(model, "fp16", fp16_accumulators=True).graph.node}


def test_kept_products_accumulate_in_fp32():
    model, feeds = one("[op] y = MatMul(x, w)", w=normal(8, 5))
    assert np.array_equal(run(model, feeds, keep_fp32=["op"], fp16_accumulators=True), Session(model).run(feeds)[0])
