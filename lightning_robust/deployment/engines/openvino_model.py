"""A graph that OpenVINO has compiled for the CPU in one precision, and what its layers really compute in."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_robust.deployment.engines.child.process import EngineError
from lightning_robust.deployment.graph.batches import Arrays, fixed_batches

Hint = Literal["f32", "bf16"]
_PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}
_INT8 = ("i8", "u8")
_MADE_OF = "originalLayersNames"
_MOVES = frozenset({
    "Input", "Output", "Const", "Reorder", "Convert", "FakeQuantize", "Reshape", "Transpose", "ShapeOf",
    "Concatenation", "Split", "StridedSlice", "Gather", "Broadcast", "Tile", "Pad", "MemoryInput", "MemoryOutput",
})  # fmt: skip
_BOILERPLATE = ("Exception from", "Check '", "FrontEnd API failed", "Summary:", "To facilitate", "While validating")


class OpenVINOModel:
    """One compiled graph: one stream, as many threads as PyTorch has here.

    ``bf16`` reaches the outputs, which are stored in it, as in the other engines; OpenVINO by itself would leave what
    follows the last convolution or product of matrices in fp32.

    Args:
        model: The graph.
        hint: What it is to compute in; what is quantised computes in int8 all the same.
        batch: Samples that the compiled graph takes, where the graph takes any number; None leaves it that.

    Attributes:
        fixed: Input name -> the batch that it is fixed to; empty where any number goes in.
        layers: Precision -> how many layers compute in it, most first. What only moves, converts or quantises values
            is not counted.

    Raises:
        EngineError: If OpenVINO refuses the graph.
    """

    def __init__(self, model: onnx.ModelProto, hint: Hint, batch: int | None) -> None:
        core = openvino_core()
        settings = {
            "INFERENCE_PRECISION_HINT": hint,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,  # which would bind threads to cores that PyTorch trains on
        }
        try:
            read = core.read_model(model.SerializeToString())
            self.fixed = {} if batch is None else _fix_batch(read, batch) or fixed_batches(model.graph)
            self._stored = _store_in_bf16(read) if hint == "bf16" else frozenset[int]()
            compiled = core.compile_model(read, "CPU", settings)
        except RuntimeError as error:
            raise EngineError("refused", f"OpenVINO does not take the graph: {_reason(error)}", advice="") from error
        self.layers = _executed_layers(compiled)
        self._request = compiled.create_infer_request()
        self._inputs = [value.name for value in model.graph.input]
        self._outputs = [value.name for value in model.graph.output]

    def run(self, arrays: Mapping[str, NDArray[np.generic]]) -> dict[str, Tensor]:
        """Output name -> values.

        Args:
            arrays: Input name -> array; others are left alone.
        """
        self._request.infer({name: arrays[name] for name in self._inputs})
        outputs = {}
        for index, name in enumerate(self._outputs):
            tensor = _to_torch(self._request.get_output_tensor(index))
            outputs[name] = tensor.float() if index in self._stored else tensor
        return outputs


@functools.cache
def openvino_core() -> Any:
    """OpenVINO's core, one for the life of the process.

    Its CPU plugin gives the thread that makes it a stack for signals. Where the plugin goes before the thread does, the
    stack is gone, and the next signal, as that of a loader's worker that ends, kills the process.
    """
    import openvino

    return openvino.Core()


def run_parts(parts: Sequence[OpenVINOModel], arrays: Arrays, outputs: Sequence[str]) -> list[Tensor]:
    """Run the parts of a graph one after the other.

    Args:
        parts: In an order in which they can run.
        arrays: What goes into the graph.
        outputs: What is wanted of it.
    """
    arrays, found = dict(arrays), dict[str, Tensor]()
    for part in parts:
        arrays |= {name: tensor.numpy() for name, tensor in found.items()}
        found |= part.run(arrays)
    return [found[name] for name in outputs]


def _to_torch(tensor: Any) -> Tensor:
    """A copy of a tensor of OpenVINO's, which shows bf16 to numpy as fp16."""
    data = np.array(tensor.data)
    if tensor.element_type.get_type_name() == "bf16":
        return torch.from_numpy(data.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(data)


def _fix_batch(read: Any, batch: int) -> dict[str, int]:
    """Fix the first size of every input that leaves it open; the inputs and the batch that they take now."""
    shapes, fixed = {}, {}
    for value in read.inputs:
        shape = value.get_partial_shape()
        if len(shape) and shape[0].is_dynamic:
            shape[0] = batch
            shapes[value], fixed[value.get_any_name()] = shape, batch
    if shapes:
        read.reshape(shapes)
    return fixed


def _store_in_bf16(read: Any) -> frozenset[int]:
    """Let bf16 reach the outputs in fp32 and store these in it; which these are.

    An OpenVINO that does not know the mark leaves the layers before the outputs in fp32, and its layers say so.
    """
    from openvino import Type
    from openvino.preprocess import PrePostProcessor

    single = frozenset(index for index, value in enumerate(read.outputs) if value.get_element_type() == Type.f32)
    processor = PrePostProcessor(read)
    for index in single:
        processor.output(index).tensor().set_element_type(Type.bf16)
    processor.build()
    for operation in read.get_ops():
        operation.get_rt_info()["enforceBF16evenForGraphTail"] = "true"
    return single


def _executed_layers(compiled: Any) -> dict[str, int]:
    """Precision -> number of layers, read off what OpenVINO will really run."""
    ran = (_layer_type(operation) for operation in compiled.get_runtime_model().get_ops())
    return dict(Counter(_PRECISIONS[kind] for kind in ran if kind in _PRECISIONS).most_common())


def _layer_type(operation: Any) -> str:
    """What a layer computes in; empty for one that only moves, converts or quantises values."""
    told = operation.get_rt_info()
    info = {key: str(getattr(told[key], "value", told[key])) for key in ("layerType", "runtimePrecision", _MADE_OF)}
    ran = info["runtimePrecision"]
    if info["layerType"] in _MOVES:
        return ""
    quantises = ran not in _INT8 and operation.get_output_element_type(0).get_type_name() in _INT8
    return "" if quantises and "," not in info[_MADE_OF] else ran


def _reason(error: RuntimeError) -> str:
    """What an error of OpenVINO's says beside the places in its source."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(_BOILERPLATE)]
    return " ".join(told[:5]) or "it gives no reason"
