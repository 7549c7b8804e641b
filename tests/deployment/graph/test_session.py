"""One way to execute a graph: values, feeds, and what the optimiser may not change."""

import numpy as np
import onnx.parser
import pytest
import torch
from onnx import helper

from lightning_robust.deployment.graph.export import export, frozen_copy
from lightning_robust.deployment.graph.session import Session

from ..models import SmallCNN, images


def graph(text):
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')


def test_closed_form():
    model = graph("g (float[2] x, int64[1] n) => (float[2] y, int64[1] m, bool[2] z) "
                  "{ y = Mul(x, x) m = Neg(n) z = IsNaN(x) }")  # fmt: skip
    square, negative, lost = Session(model).run({"n": np.array([3]), "x": np.array([2, np.nan], np.float32)})
    assert torch.equal(square[:1], torch.tensor([4.0]))
    assert torch.equal(negative, torch.tensor([-3]))
    assert lost.tolist() == [False, True]


@pytest.mark.parametrize("optimise", [True, False])
def test_matches_torch(optimise):
    """fp32 sums in another order: 1e-5 of outputs of size 1 is ten times the deviation seen."""
    module, x = frozen_copy(SmallCNN()), images(3)
    (output,) = Session(export(module, (images(2),)).model, optimise=optimise).run({"input": x.numpy()})
    torch.testing.assert_close(output, module(x), rtol=0, atol=1e-5)


def test_arrays_that_no_input_takes_are_ignored():
    model = graph("g (float[1] x) => (float[1] y) { y = Neg(x) }")
    one = np.ones(1, np.float32)
    assert Session(model).run({"x": one, "unused": one})[0].tolist() == [-1]


def test_model_is_not_changed():
    model = graph("g (float[1] x) => (float[1] y) { a = Identity(x) y = Neg(a) }")
    before = model.SerializeToString()
    Session(model).run({"x": np.ones(1, np.float32)})
    assert model.SerializeToString() == before


def test_rejects_a_missing_input():
    model = graph("g (float[1] x, float[1] b) => (float[1] y) { y = Add(x, b) }")
    with pytest.raises(ValueError, match="b"):
        Session(model).run({"x": np.ones(1, np.float32)})


def test_rejects_an_unknown_operator():
    model = graph("g (float[1] x) => (float[1] y) { y = Neg(x) }")
    model.graph.node[0].CopyFrom(helper.make_node("Nothing", ["x"], ["y"]))
    with pytest.raises(Exception, match="Nothing"):
        Session(model)


def test_a_fixed_batch_takes_many_samples_one_after_the_other():
    model = graph("g (float[2, 2] x, float[2] w) => (float[2, 2] y, float total) "
                  "{ y = Mul(x, w) total = ReduceSum <keepdims=0> (x) }")  # fmt: skip
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    product, total = Session(model).run({"x": x, "w": np.array([1, 10], np.float32)})
    assert product.tolist() == (x * [1, 10]).tolist()
    assert total == 6  # without rows: of the first batch
