"""Execution of an ONNX graph by ONNX Runtime on the CPU."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_robust.deployment.graph.batches import fixed_batches, run_in_fixed_batches


class Session:
    """An ONNX graph that ONNX Runtime has loaded. One that takes a batch of a fixed size runs once for each of it.

    Args:
        model: The graph.
        optimise: Whether ONNX Runtime fuses and folds nodes first. That costs more than it saves where a graph of very
            many small nodes runs once.
        record: Whether to read off what is executed.

    Attributes:
        executed: The graph after ONNX Runtime has fused and folded its nodes, empty where it was not recorded.

    Example:
        >>> from onnx import parser
        >>> text = '<ir_version: 10, opset_import: ["" : 20]> g (float[2] x) => (float[2] y) { y = Add(x, x) }'
        >>> Session(parser.parse_model(text)).run({"x": np.array([1, 2], np.float32)})
        [tensor([2., 4.])]
    """

    def __init__(self, model: onnx.ModelProto, *, optimise: bool = True, record: bool = False) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if not optimise:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        with tempfile.TemporaryDirectory(prefix="onnxruntime-") if record else contextlib.nullcontext() as folder:
            if folder is not None:
                options.optimized_model_filepath = str(Path(folder, "executed.onnx"))
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            self.executed = onnx.ModelProto() if folder is None else onnx.load(options.optimized_model_filepath)
        self._inputs = {value.name for value in self._session.get_inputs()}
        self._fixed = fixed_batches(model.graph)

    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> list[Tensor]:
        """Compute all outputs of the graph, in its order.

        Args:
            feeds: Input name -> array. Arrays for names that are no inputs of the graph are ignored: an export drops
                arguments that the module does not use.
        """
        known = {name: feeds[name] for name in feeds if name in self._inputs}
        fixed = self._fixed if self._fixed.keys() <= known.keys() else {}  # ONNX Runtime says what is missing
        return run_in_fixed_batches(self._run, known, fixed)

    def _run(self, feeds: Mapping[str, NDArray[np.generic]]) -> list[Tensor]:
        return [torch.from_numpy(np.asarray(array)) for array in self._session.run(None, dict(feeds))]
