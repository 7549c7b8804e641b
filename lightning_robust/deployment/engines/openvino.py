"""OpenVINO as an engine: fp32, bf16 and int8 that a CPU really executes."""

from __future__ import annotations

import importlib.util
from collections import Counter
from typing import Any

import onnx
from torch import Tensor

from lightning_robust.deployment.engines.abilities import Ability
from lightning_robust.deployment.engines.base import Built, Runtime, feed, host_clock
from lightning_robust.deployment.engines.child.process import EngineError
from lightning_robust.deployment.engines.int8 import describe_int8
from lightning_robust.deployment.engines.openvino_int8 import with_unsigned_activations
from lightning_robust.deployment.engines.openvino_model import Hint, OpenVINOModel, openvino_core, run_parts
from lightning_robust.deployment.engines.settings import DEFAULTS, BuildSettings
from lightning_robust.deployment.engines.subject import Subject
from lightning_robust.deployment.graph.batches import Arrays, fixed_batches, run_in_fixed_batches
from lightning_robust.deployment.numerics.pieces import cut
from lightning_robust.processor import processor_flags

_SATURATES_WITHOUT = {"avx512_vnni", "avx_vnni", "asimddp"}
"""Instructions that add int8 products in 32 bits: VNNI, and those of ARM."""
_CAPABILITIES = {"fp32": "FP32", "bf16": "BF16", "int8": "INT8"}


class OpenVINORuntime(Runtime):
    """OpenVINO on the CPU, static in the batch that is deployed.

    ``int8`` is the graph with Q/DQ that all int8 engines take, with the rest in fp32. OpenVINO loses the mark of most
    nodes that are to stay fp32 in ``bf16``, so that such a graph is cut in pieces that run one after the other, each in
    one precision.
    """

    def can_build(self, settings: BuildSettings = DEFAULTS) -> Ability:
        """Whether the package is here, and the CPU executes the precision."""
        if importlib.util.find_spec("openvino") is None:
            return Ability(
                False, 'the package openvino is not installed. Run: pip install "lightning-robust[openvino]"'
            )
        known = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if _CAPABILITIES[self.precision] in known:
            return Ability(True)
        return Ability(
            False, f"OpenVINO does not execute {self.precision} on this CPU, only {', '.join(sorted(known))}"
        )

    def build(self, subject: Subject) -> Built:
        """Compile the graph, and read off what its layers compute in.

        Raises:
            EngineError: If OpenVINO refuses the graph, or no layer computes in the precision.
            ValueError: If the graph cannot be quantised.
        """
        exported = subject.exported
        kept = subject.fp32_nodes() if self.precision == "bf16" else ()
        model, note = _quantised(subject) if self.precision == "int8" else (exported.model, "")
        parts = self._compile(model, kept, subject.settings.batch)
        layers = self._check_layers(parts)
        fixed = parts[0].fixed if len(parts) == 1 else fixed_batches(model.graph)

        def run_once(arrays: Arrays) -> list[Tensor]:
            return run_parts(parts, arrays, exported.outputs)

        def run(args: tuple[Any, ...]) -> list[Tensor]:
            return run_in_fixed_batches(run_once, feed(args, exported), fixed)

        note = f"{len(kept)} nodes kept, in {len(parts)} pieces" if kept else note
        return Built(run, model.ByteSize(), note, layers=layers, clock=host_clock(run))

    def _compile(self, model: onnx.ModelProto, kept: tuple[str, ...], batch: int) -> list[OpenVINOModel]:
        """The graph, or its pieces; only a whole one is static."""
        hint: Hint = "bf16" if self.precision == "bf16" else "f32"
        pieces = cut(model, kept)
        size = batch if len(pieces) == 1 else None
        return [OpenVINOModel(piece, "f32" if apart else hint, size) for piece, apart in pieces]

    def _check_layers(self, parts: list[OpenVINOModel]) -> dict[str, int]:
        """Precision -> number of layers, if there are any in the precision that was asked for."""
        layers = sum((Counter(part.layers) for part in parts), Counter[str]())
        if not layers[self.precision]:
            ran = ", ".join(f"{count} in {precision}" for precision, count in layers.items()) or "none computes at all"
            raise EngineError("unavailable", f"No layer computes in {self.precision} on this CPU: {ran}.", advice="")
        return dict(layers.most_common())


def _quantised(subject: Subject) -> tuple[onnx.ModelProto, str]:
    """The subject's int8 graph as OpenVINO is given it, and what a reader should know of it."""
    note = describe_int8(subject.quantised, subject.calibrated)
    model, joined = with_unsigned_activations(subject.quantised.model)
    if joined:
        note += f", {joined} joined activations given as unsigned, since OpenVINO loses the zero points of signed ones"
    if _SATURATES_WITHOUT.isdisjoint(processor_flags()):
        note += ", on a processor without VNNI, where sums of two products end at 16 bits: one with VNNI gives others"
    return model, note
