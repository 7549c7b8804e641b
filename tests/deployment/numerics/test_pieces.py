import numpy as np
import onnx
import pytest
import torch
from onnx import parser

from lightning_robust.deployment.engines import Subject
from lightning_robust.deployment.graph.export import frozen_copy
from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.numerics.operators import MOVES
from lightning_robust.deployment.numerics.pieces import cut

from ..models import Attention

HEAD = '<ir_version: 10, opset_import: ["" : 20, "own" : 1]>'


def chained(pieces, arrays):
    for piece in pieces:
        onnx.checker.check_model(piece.model)
        outputs = Session(piece.model, optimise=False).run(arrays)
        names = [value.name for value in piece.model.graph.output]
        arrays = arrays | {name: output.numpy() for name, output in zip(names, outputs, strict=True)}
    return arrays


@pytest.mark.parametrize("seed", range(6))
def test_the_pieces_of_a_random_cut_compute_what_the_graph_computes(seed):
    """Bit for bit: the same kernels see the same numbers. Every node is in one piece, on its own side."""
    torch.manual_seed(0)
    x = torch.randn(2, 16, 32)
    model = Subject(frozen_copy(Attention()), (x,)).exported.model
    names = [node.name for node in model.graph.node]
    apart = set(np.random.default_rng(seed).choice(names, size=3 * seed + 1, replace=False))
    pieces = cut(model, apart)
    assert sorted(node.name for piece in pieces for node in piece.model.graph.node) == sorted(names)
    sides = [(node, piece.apart) for piece in pieces for node in piece.model.graph.node if node.op_type not in MOVES]
    assert all((node.name in apart) == side for node, side in sides)
    assert len(pieces) <= 2 * len(apart) + 1
    arrays = {model.graph.input[0].name: x.numpy()}
    whole = Session(model, optimise=False).run(arrays)[0]
    np.testing.assert_array_equal(chained(pieces, arrays)[model.graph.output[0].name], whole.numpy())


def test_the_whole_graph_stays_itself():
    model = parser.parse_model(f"{HEAD} g (float[2] x) => (float[2] y) {{ y = Exp(x) }}")
    (piece,) = cut(model, ())
    assert piece.model is model


def test_weights_and_inputs_go_where_they_are_read_and_branches_read_from_outside():
    text = """g (float[2] x, bool c) => (float[2] y, float[2] z) <float[2] w = {1, 2}, float[2] v = {3, 4}> {
        [a] s = Add(x, w)
        [b] t = Exp(s)
        [i] y = If (c) <then_branch = f () => (float[2] p) { p = Add(t, v) },
                        else_branch = h () => (float[2] q) { q = Identity(s) }>
        [d] z = Mul(s, w)
    }"""
    model = parser.parse_model(f"{HEAD} {text}")
    pieces = cut(model, ["b"])
    weights = [[tensor.name for tensor in piece.model.graph.initializer] for piece in pieces]
    inputs = [[value.name for value in piece.model.graph.input] for piece in pieces]
    assert weights == [["w"], [], ["v"]]
    assert inputs[:2] == [["x"], ["s"]]
    assert sorted(inputs[2]) == ["c", "s", "t"]
    for c in (True, False):
        arrays = {"x": np.array([0.5, 1], np.float32), "c": np.array(c)}
        found, (y, z) = chained(pieces, arrays), Session(model, optimise=False).run(arrays)
        assert (found["y"].tolist(), found["z"].tolist()) == (y.tolist(), z.tolist())


def test_outputs_and_inputs_that_are_left_out_hold_nothing_up():
    text = """g (float[2, 4] x) => (float[2, 2] y) <int64[1] n = {2}> {
        [a] values, = TopK (x, n)
        [b] c = Clip (values, , )
        [d] y = Exp (c)
    }"""
    model = parser.parse_model(f"{HEAD} {text}")
    model.graph.node[0].output.append("")
    assert [[node.name for node in piece.model.graph.node] for piece in cut(model, ["b"])] == [["a"], ["b"], ["d"]]


def test_rejects_a_type_that_is_not_known():
    model = parser.parse_model(f"{HEAD} g (float[2] x) => (float[2] y) {{ [a] s = own.Strange(x) [b] y = Exp(s) }}")
    with pytest.raises(ValueError, match="the type of 's' is known"):
        cut(model, ["a"])
