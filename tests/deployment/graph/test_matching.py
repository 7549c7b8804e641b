"""One graph in the place of another: names, order, shapes and types."""

import numpy as np
import pytest
import torch
from onnx import parser

from lightning_robust.deployment.graph.matching import Match, cast_arrays, check_outputs, match_graphs


def test_names_go_before_order():
    assert match_graphs(["b", "a"], ["z", "y"], ["a", "b"], ["y", "z"]) == Match({"b": "b", "a": "a"}, ("y", "z"))


def test_a_graph_may_take_less_and_give_more():
    match = match_graphs(["a"], ["debug", "y"], ["a", "unused"], ["y"])
    assert match == Match({"a": "a"}, ("y",))


def test_order_where_names_differ():
    match = match_graphs(["data", "scale"], ["out"], ["input.0", "input.1"], ["output"])
    assert match.inputs == {"data": "input.0", "scale": "input.1"}
    assert match.outputs == ("out",)
    assert match.notes == (
        "inputs by their order: data is input.0, scale is input.1",
        "outputs by their order: out is output",
    )


def test_rejects_another_number():
    with pytest.raises(ValueError, match=r"Expected the inputs \['input'\], but the file has \['a', 'b'\]"):
        match_graphs(["a", "b"], ["y"], ["input"], ["y"])
    with pytest.raises(ValueError, match=r"Expected the outputs \['y', 'z'\], but the file has \['out'\]"):
        match_graphs(["a"], ["out"], ["a"], ["y", "z"])


GRAPH = parser.parse_graph("g (float[1, 3, 8, 16] image, int32[1] tokens) => (float[1, 4] y, bool[1] z) {}")


def test_arrays_in_the_types_of_the_graph():
    arrays = {"image": np.ones((5, 3, 8, 16)), "tokens": np.arange(5)}
    found = cast_arrays(GRAPH, arrays)
    assert {name: (array.dtype.name, len(array)) for name, array in found.items()} == {
        "image": ("float32", 5),
        "tokens": ("int32", 5),
    }


@pytest.mark.parametrize(
    ("image", "tokens", "message"),
    [
        ((2, 8, 16, 3), 1, r"shape \(1, 3, 8, 16\).*as 'image', but the model takes \(2, 8, 16, 3\)\. Convert"),
        ((2, 3, 16, 16), 1, "Convert the file for the size that the model sees"),
        ((2, 3, 8, 16), 2**40, "fit int32, which the file takes as 'tokens', but the model takes int64"),
    ],
)
def test_rejects_arrays(image, tokens, message):
    with pytest.raises(ValueError, match=message):
        cast_arrays(GRAPH, {"image": np.ones(image, np.float32), "tokens": np.full(2, tokens)})


def test_rejects_a_file_with_channels_last():
    graph = parser.parse_graph("g (float[1, 8, 16, 3] image) => (float[1, 4] y) {}")
    with pytest.raises(ValueError, match="Its channels come last: convert the file so that it takes N x C x H x W"):
        cast_arrays(graph, {"image": np.ones((2, 3, 8, 16), np.float32)})


def test_rejects_pixels_for_a_file_that_preprocesses():
    graph = parser.parse_graph("g (uint8[n, 3] image) => (float[n, 4] y) {}")
    with pytest.raises(ValueError, match=r"fit uint8.*takes float32\. Convert the file without its preprocessing"):
        cast_arrays(graph, {"image": np.ones((2, 3), np.float32)})


def test_outputs():
    check_outputs([torch.ones(5, 4), torch.ones(5, dtype=torch.bool)], GRAPH)
    with pytest.raises(ValueError, match=r"Expected output 'y' of shape \(1, 4\), but the file gives \(5, 3\)"):
        check_outputs([torch.ones(5, 3), torch.ones(5, dtype=torch.bool)], GRAPH)
    with pytest.raises(ValueError, match="Expected output 'z' as BOOL, but the file gives torch"):
        check_outputs([torch.ones(5, 4), torch.ones(5)], GRAPH)


def test_names_that_agree_are_paired_before_the_others():
    found = match_graphs(["left", "right"], ["y"], ["right", "left_image"], ["y"])
    assert found.inputs == {"left": "left_image", "right": "right"}
    assert found.notes == ("inputs by their order: left is left_image",)
