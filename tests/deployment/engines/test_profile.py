"""Profiles: of a subject, and checked against a model."""

import json
import textwrap

import numpy as np
import onnx.parser
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from lightning_robust.deployment.engines import BuildSettings, Subject
from lightning_robust.deployment.engines.profile import complete_profile, make_profile
from lightning_robust.deployment.graph.export import frozen_copy
from lightning_robust.deployment.graph.files import GraphSubject

from ..models import SmallCNN, images
from .builds import GOOD, PROFILE, build, make_model, script


@pytest.mark.parametrize("batch", [1, 4])
def test_profile_is_static_in_the_batch_as_it_is_deployed(batch):
    """Whatever the number of samples: an engine with a range of batches is another engine, of other tactics."""
    subject = Subject(frozen_copy(SmallCNN()), (images(6),), BuildSettings(batch=batch))
    assert make_profile(subject.exported, subject) == {"input": ((batch, 3, 16, 16),) * 3}


def test_profile_of_a_fixed_batch_has_its_size_whatever_the_number_of_samples():
    class Unrolled(nn.Module):
        def forward(self, x):
            return torch.stack([row * 2 for row in x])

    subject = Subject(Unrolled(), (images(6),))
    assert make_profile(subject.exported, subject) == {"input": ((1, 3, 16, 16),) * 3}


def test_completed_profile_closed_form():
    """A static input is its own smallest, usual and largest shape; weights among the inputs are no inputs."""
    text = """<ir_version: 10, opset_import: ["" : 20]>
        g (float[n,3] x, float[2,3] fixed, float[3] w) => (float[n,3] y) <float[3] w = {1, 2, 3}> { y = Add(x, w) }"""
    model = onnx.parser.parse_model(text).SerializeToString()
    profile = {"x": ((1, 3), (4, 3), (8, 3))}
    assert complete_profile(model, profile) == profile | {"fixed": ((2, 3),) * 3}


def test_rejects_other_bytes():
    with pytest.raises(ValueError, match="serialised ONNX model"):
        build(b"no model")


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ({}, r"none came for 'image' of shape \['batch', 64, 8, 8\]"),
        ({"picture": PROFILE["image"]}, r"inputs \['image'\], but got one for \['picture'\]"),
        ({"image": ((1, 64), (2, 64), (4, 64))}, "shapes of 4 dimensions"),
        ({"image": ((4, 64, 8, 8), (2, 64, 8, 8), (1, 64, 8, 8))}, "smallest <= usual <= largest"),
        ({"image": ((1, 64, 8, 8), (2, 64, 8, 8), (4, 64, 8, 16))}, r"static sizes of \(None, 64, 8, 8\)"),
    ],
)
def test_rejects_profiles_that_do_not_fit(profile, message):
    with pytest.raises(ValueError, match=message):
        build(profile=profile)


def test_static_inputs_need_no_profile(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch, "print(json.dumps(spec['profile']))" + textwrap.dedent(GOOD))
    model = make_model()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    log = build(model.SerializeToString(), profile={}, directory=tmp_path / "cache").log
    assert json.loads(log) == {"image": [[2, 64, 8, 8]] * 3}


@pytest.mark.parametrize("batch", ["n", -1, None])
def test_a_batch_is_dynamic_whether_it_has_a_name_or_not(batch):
    """Paddle2ONNX writes -1, others nothing at all."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], "r")], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    subject = GraphSubject(model, {"x": np.ones((2, 3), np.float32)})
    profile = make_profile(subject.exported, subject)
    assert profile == {"x": ((1, 3),) * 3}
    assert complete_profile(model.SerializeToString(), profile) == profile
    with pytest.raises(ValueError, match="none came for 'x' of shape"):
        complete_profile(model.SerializeToString(), {})
    with pytest.raises(ValueError, match=r"static sizes of \(None, 3\)"):
        complete_profile(model.SerializeToString(), {"x": ((1, 4), (2, 4), (8, 4))})
