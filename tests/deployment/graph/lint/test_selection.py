"""Rule A9."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from ...models import images
from .graphs import Apply, of_module, of_nodes, parser_accepts, rules, written


def test_a9_hard_selection():
    def best(self, x):
        x = x.flatten(2)
        return x.gather(2, x.abs().argmax(2, keepdim=True))

    assert rules(of_module(Apply(best), images())) == ["A9"]
    node = helper.make_node("NonMaxSuppression", ["b", "s"], ["y"], "nms")
    shapes = (
        [("b", TensorProto.FLOAT, [1, 6, 4]), ("s", TensorProto.FLOAT, [1, 1, 6])],
        [("y", TensorProto.INT64, None)],
    )
    assert rules(of_nodes([node], *shapes)) == ["A9"]

    def soft(self, x):
        """As the lane detector: weights around the best cell."""
        x = x.flatten(2)
        places = torch.arange(x.shape[2]).float()
        near = ((places - x.argmax(2, keepdim=True).float()).abs() <= 3).float()
        return (x.softmax(2) * near * places).sum(2)

    assert of_module(Apply(soft), images()) == []
    # the class itself is the output
    assert of_module(Apply(lambda self, x: x.mean((2, 3)).argmax(1)), images()) == []


@pytest.mark.parametrize(("count", "expected"), [(3840, []), (3841, ["A15"])])
def test_a15_topk(count, expected):
    node = helper.make_node("TopK", ["x", "k"], ["values", "places"], "top")
    outputs = [("values", TensorProto.FLOAT, [1, count]), ("places", TensorProto.INT64, [1, count])]
    model = written([node], [("x", TensorProto.FLOAT, [1, 10000])], outputs, {"k": np.array([count], np.int64)})
    assert rules(model) == expected
    # the parser takes both, the builder one
    assert parser_accepts(model)
    assert builder_accepts(model) == (not expected)


def builder_accepts(model):
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model.SerializeToString())
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    return builder.build_serialized_network(network, config) is not None
