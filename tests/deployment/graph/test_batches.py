"""Graphs that take one size of batch: which inputs, and what comes of samples that fill several."""

import numpy as np
import pytest
import torch
from onnx import parser

from lightning_robust.deployment.graph.batches import fixed_batches, run_in_fixed_batches


def fixed(inputs):
    return fixed_batches(parser.parse_graph(f"g ({inputs}) => (float[1] y) {{}}"))


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ("float[1, 3, 8, 8] x", {"x": 1}),
        ("float[4, 3] x, float[4] scale, float[3] mean, int64 rate", {"x": 4, "scale": 4}),
        ("float[n, 3] x, float[1, 3] y", {}),
        ("float[16000] audio, float[1, 2] state", {}),
        ("float x", {}),
    ],
)
def test_the_batch_is_the_first_inputs_first_dimension(inputs, expected):
    assert fixed(inputs) == expected


@pytest.mark.parametrize("samples", [1, 2, 3, 4, 6, 7])
def test_every_sample_goes_in_once_and_in_order(samples):
    """Batches of three: rows come back as they went in, whole arrays go into each, constants and scalars come once."""
    seen = []

    def run(arrays):
        seen.append({name: array.tolist() for name, array in arrays.items()})
        x = torch.from_numpy(arrays["x"])
        return [x + 1, torch.tensor(7.0)]

    arrays = {"x": np.arange(samples), "scale": 10 * np.arange(samples), "whole": np.arange(3), "grid": np.arange(5)}
    shifted, scalar = run_in_fixed_batches(run, arrays, {"x": 3, "scale": 3, "whole": 3})
    assert shifted.tolist() == list(range(1, samples + 1))
    assert scalar == 7
    assert len(seen) == -(-samples // 3)
    padded = [sample for part in seen for sample in part["x"]]
    assert padded == [*range(samples), *[samples - 1] * (len(padded) - samples)]
    assert all(part["scale"] == [10 * value for value in part["x"]] for part in seen)
    assert all((part["whole"], part["grid"]) == ([0, 1, 2], [0, 1, 2, 3, 4]) for part in seen)


@pytest.mark.parametrize("rows", [(2, 2), (4, 6)])
def test_what_fits_or_cannot_fit_goes_in_as_it_is(rows):
    arrays = {name: np.zeros(count) for name, count in zip("xy", rows, strict=True)}
    seen = []
    run_in_fixed_batches(lambda given: seen.append(given) or [], arrays, {"x": 2, "y": 2})
    assert seen == [arrays]
