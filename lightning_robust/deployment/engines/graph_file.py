"""An engine that TensorRT builds from the user's own ONNX file, as it is deployed."""

from __future__ import annotations

from pathlib import Path

import onnx

from lightning_robust.deployment.engines.abilities import Ability
from lightning_robust.deployment.engines.base import Built
from lightning_robust.deployment.engines.deployed import as_exported, read_stated
from lightning_robust.deployment.engines.settings import DEFAULTS, BuildSettings
from lightning_robust.deployment.engines.subject import Subject
from lightning_robust.deployment.engines.tensorrt import TensorRTRuntime


class GraphFileRuntime(TensorRTRuntime):
    """TensorRT or TensorRT-RTX on an ONNX file that other tools converted, strongly typed in the types that it states.

    Args:
        runtime: Which library builds.
        precision: Of the file.
        file: The file.
    """

    def __init__(self, runtime: str, precision: str, file: str) -> None:
        super().__init__(runtime, precision)
        self.file = file

    def can_build(self, settings: BuildSettings = DEFAULTS) -> Ability:
        """Whether there is a file, and something that builds its engine."""
        there = Path(self.file).is_file()
        return super().can_build(settings) if there else Ability(False, f"there is no file at {self.file}")

    def build(self, subject: Subject) -> Built:
        """Build the engine of the file.

        Raises:
            ValueError: If it is no ONNX file, is in another precision, or its inputs and outputs are others.
        """
        graph = read_stated(self.file, "fp32" if self.precision == "tf32" else self.precision)
        own = as_exported(graph, subject.exported)
        values = {value.name: value for value in graph.graph.output}
        del graph.graph.output[:]
        graph.graph.output.extend(values[name] for name in own.outputs)
        return super().build(Subject(subject.module, subject.example, subject.settings, exporter=lambda *_, **__: own))

    def _typed(self, subject: Subject) -> tuple[onnx.ModelProto, list[str]]:
        return subject.exported.model, [f"built from {Path(self.file).name}", *subject.exported.notes]
