"""The subject: one export, and the nodes that stay in fp32."""

import pytest
import torch
from torch import nn

from lightning_robust.deployment.engines import BuildSettings, Subject
from lightning_robust.deployment.graph.export import ExportError, frozen_copy

from ..models import SmallCNN, images


def test_a_failed_export_is_tried_once():
    calls = []

    def refuse(*_, **__):
        calls.append(1)
        raise ExportError("planted")

    subject = Subject(nn.Identity(), (torch.zeros(2, 1),), exporter=refuse)
    for _ in range(3):
        with pytest.raises(ExportError, match="planted"):
            _ = subject.exported
    assert len(calls) == 1


def test_fp32_nodes_are_named_by_node_and_by_module():
    """A module's path means the nodes in it and in its children; the order is the graph's, whatever the settings'."""
    subject = Subject(frozen_copy(SmallCNN()), (images(2),))
    origins = subject.exported.origins
    nodes = [node.name for node in subject.exported.model.graph.node]
    stem = [name for name in nodes if name in origins and origins[name].module.split(".")[0] == "stem"]
    head = [name for name in nodes if name in origins and origins[name].module == "head"]
    assert len(stem) >= 2
    assert len(head) == 1
    both = subject.keeping_only(["head", "stem"])
    assert both.fp32_nodes() == tuple(name for name in nodes if name in {*stem, *head})
    assert subject.keeping_only([head[0]]).fp32_nodes() == (head[0],)
    assert subject.keeping_only([]).fp32_nodes() == ()


def test_rejects_unknown_fp32_nodes():
    subject = Subject(frozen_copy(SmallCNN()), (images(2),), BuildSettings(keep_fp32=["stemm"]))
    with pytest.raises(ValueError, match=r"modules in `keep_fp32`, but got 'stemm'.*Did you mean 'stem"):
        subject.fp32_nodes()


def test_nothing_is_exported_for_findings():
    subject = Subject(frozen_copy(SmallCNN()), (images(2),))
    assert subject.findings() == ()
    _ = subject.exported
    assert isinstance(subject.findings(), tuple)


def test_notes_are_those_of_the_graph_once_it_is_there():
    class Baked(nn.Module):
        def forward(self, x):
            return torch.stack([row * 2 for row in x])

    subject = Subject(Baked(), (torch.rand(3, 2),))
    assert subject.notes == ()
    assert subject.exported.batch == 1
    assert subject.notes[0].startswith("Exported for one sample, and run sample by sample.")
