"""ONNX Runtime as an engine."""

from __future__ import annotations

import onnx

from lightning_robust.deployment.engines.base import Built, Runner, Runtime, feed, host_clock
from lightning_robust.deployment.engines.subject import Subject
from lightning_robust.deployment.graph.export import Exported
from lightning_robust.deployment.graph.session import Session


class OnnxRuntime(Runtime):
    """ONNX Runtime on the CPU, in fp32."""

    def build(self, subject: Subject) -> Built:
        """Open a session on the exported graph."""
        model = subject.exported.model
        run = open_session(model, subject.exported)
        return Built(run, model.ByteSize(), clock=host_clock(run))


def open_session(model: onnx.ModelProto, exported: Exported) -> Runner:
    """A runner on a graph with the inputs and outputs of the exported one."""
    session = Session(model)
    return lambda args: session.run(feed(args, exported))
