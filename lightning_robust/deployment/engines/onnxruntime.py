"""ONNX Runtime as an engine."""

from __future__ import annotations

from typing import Any

import onnx
from torch import Tensor

from lightning_robust.deployment.engines.base import Built, Runner, Runtime, feed, host_clock
from lightning_robust.deployment.engines.int8 import describe_int8
from lightning_robust.deployment.engines.subject import Subject
from lightning_robust.deployment.graph.export import Exported
from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.numerics.integers import count_products, in_integers


class OnnxRuntime(Runtime):
    """ONNX Runtime on the CPU, in fp32."""

    def build(self, subject: Subject) -> Built:
        """Open a session on the exported graph."""
        model = subject.exported.model
        run = open_session(model, subject.exported)
        return Built(run, model.ByteSize(), clock=host_clock(run))


class OnnxRuntimeInt8(Runtime):
    """ONNX Runtime on the CPU, its products in integers, see :mod:`~.numerics.integers`.

    It is for exact numbers, and takes 0.8 to 2 times as long as fp32: the sums go through fp32 between two products.
    """

    def build(self, subject: Subject) -> Built:
        """Open a session on the int8 graph with its products written as integer arithmetic.

        Raises:
            ValueError: If the graph cannot be quantised, or no product ran in int8.
        """
        note = describe_int8(subject.quantised, subject.calibrated)
        model = in_integers(subject.quantised.model)
        session = Session(model, record=True)
        layers = count_products(session.executed)
        if not layers.get("int8"):
            raise ValueError(f"Expected products that run in int8, but ONNX Runtime runs none; {note}.")
        exported = subject.exported

        def run(args: tuple[Any, ...]) -> list[Tensor]:
            return session.run(feed(args, exported))

        return Built(run, model.ByteSize(), note, layers=layers, clock=host_clock(run))


def open_session(model: onnx.ModelProto, exported: Exported, *, optimise: bool = True) -> Runner:
    """A runner on a graph with the inputs and outputs of the exported one."""
    session = Session(model, optimise=optimise)
    return lambda args: session.run(feed(args, exported))
