"""Graphs that take one size of batch: which inputs, the parts, and what is left over."""

import numpy as np
import pytest
from onnx import parser

from lightning_robust.deployment.graph.batches import fixed_batches, split_batches, whole_batches


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


def test_parts_hold_every_sample_once_and_in_order():
    arrays = {"x": np.arange(12).reshape(6, 2), "scale": np.arange(6), "whole": np.arange(2), "grid": np.arange(6)}
    parts = split_batches(arrays, {"x": 2, "scale": 2, "whole": 2})
    assert [part["x"].tolist() for part in parts] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]]
    assert [part["scale"].tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
    assert all(part["whole"].tolist() == [0, 1] and len(part["grid"]) == 6 for part in parts)


@pytest.mark.parametrize("rows", [2, 3, 1])
def test_what_fits_or_cannot_be_divided_stays_whole(rows):
    arrays = {"x": np.zeros((rows, 2))}
    assert split_batches(arrays, {"x": 2}) == [arrays]


def test_samples_that_fill_no_batch_are_left_out_and_said():
    arrays = {"x": np.arange(7), "scale": np.arange(7), "whole": np.arange(3), "grid": np.arange(7)}
    filled, (note,) = whole_batches(arrays, {"x": 3, "scale": 3, "whole": 3})
    assert {name: len(array) for name, array in filled.items()} == {"x": 6, "scale": 6, "whole": 3, "grid": 7}
    assert note == (
        "The graph takes 3 samples at a time: it was run 2 times, and the last 1 of 7 samples were left out."
    )
    assert whole_batches({"x": np.zeros(3)}, {"x": 3})[1] == ()
    assert whole_batches({"x": np.zeros(5)}, {})[1] == ()


@pytest.mark.parametrize("rows", [(2, 2), (6, 4)])
def test_rejects_too_few_samples_and_unequal_numbers(rows):
    arrays = {name: np.zeros(count) for name, count in zip("xy", rows, strict=True)}
    with pytest.raises(ValueError, match=r"same number of samples, 3 or a multiple of it, but got \{'x'"):
        whole_batches(arrays, {"x": 3, "y": 3})
