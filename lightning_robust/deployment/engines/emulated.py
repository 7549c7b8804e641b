"""Another precision's arithmetic, emulated on ONNX Runtime's CPU provider."""

from __future__ import annotations

from typing import cast

from lightning_robust.deployment.engines.base import HALF, Built, Runtime
from lightning_robust.deployment.engines.int8 import describe_int8
from lightning_robust.deployment.engines.onnxruntime import open_session
from lightning_robust.deployment.engines.subject import Subject
from lightning_robust.deployment.numerics.emulate import Emulation, to_model
from lightning_robust.deployment.numerics.precisions import Precision

_ACCUMULATED = "fp16acc"


class EmulatedRuntime(Runtime):
    """A graph that rounds the result of every node, see :mod:`~.numerics.emulate`.

    ``emulated-fp16acc`` also accumulates products in fp16, see :mod:`~.numerics.accumulate`: what an fp16 engine does
    lies between it and ``emulated-fp16``.
    """

    def build(self, subject: Subject) -> Built:
        """Open a session on the graph with roundings.

        Raises:
            ValueError: If there is nothing to round, for a distance of 0 would be no measurement.
        """
        exported = subject.exported
        accumulated = self.precision == _ACCUMULATED
        half = accumulated or self.precision in HALF
        nodes = subject.fp32_nodes() if half else ()
        emulation = Emulation(
            exported.model,
            "fp16" if accumulated else cast(Precision, self.precision),
            nodes,
            out_of_range=subject.settings.out_of_range,
            tf32=subject.settings.tf32,
            fp16_accumulators=accumulated,
        )
        model = to_model(emulation.build())
        if emulation.changes_nothing and not nodes and (half or emulation.is_blind):
            where = "".join(f"; {note}" for note in emulation.notes)
            raise ValueError(f"Expected nodes to round, but none computes in fp32{where}. Measure the fp32 graph.")
        notes = [_describe(emulation, len(nodes), half=half), *emulation.notes]
        return Built(open_session(model, exported), note=", ".join(notes))


class EmulatedInt8(Runtime):
    """The int8 graph executed as it is written, see :mod:`~.numerics.quantise`: rounded to int8, multiplied in fp32."""

    def build(self, subject: Subject) -> Built:
        """Open a session that fuses and folds nothing.

        Raises:
            ValueError: If the graph cannot be quantised, or nothing in it is.
        """
        note = describe_int8(subject.quantised, subject.calibrated)
        return Built(open_session(subject.quantised.model, subject.exported, optimise=False), note=f"emulated, {note}")


def _describe(emulation: Emulation, kept: int, *, half: bool) -> str:
    """What was rounded."""
    if emulation.changes_nothing and not half:
        return "nothing multiplies, so that TF32 changes nothing"
    return f"emulated, every node rounded but the {kept} kept" if kept else "emulated, every node rounded"
