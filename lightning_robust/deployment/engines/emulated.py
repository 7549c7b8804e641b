"""Another precision's arithmetic, emulated on ONNX Runtime's CPU provider."""

from __future__ import annotations

from typing import cast

from lightning_robust.deployment.engines.base import HALF, Built, Runtime
from lightning_robust.deployment.engines.onnxruntime import open_session
from lightning_robust.deployment.engines.subject import Subject
from lightning_robust.deployment.numerics.emulate import emulate
from lightning_robust.deployment.numerics.rounding import Precision


class EmulatedRuntime(Runtime):
    """A graph that rounds the result of every node, see :mod:`~.numerics.emulate`."""

    def build(self, subject: Subject) -> Built:
        """Open a session on the graph with roundings."""
        exported = subject.exported
        nodes = subject.fp32_nodes() if self.precision in HALF else ()
        model = emulate(exported.model, cast(Precision, self.precision), nodes)
        if len(model.graph.node) == len(exported.model.graph.node) and not nodes:
            raise ValueError("Expected nodes to round, but none computes in fp32. Measure the fp32 graph.")
        note = f"emulated, every node rounded but the {len(nodes)} kept" if nodes else "emulated, every node rounded"
        return Built(open_session(model, exported), note=note)
