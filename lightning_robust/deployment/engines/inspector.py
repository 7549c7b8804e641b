"""What TensorRT's engine inspector says of the layers that it executes: their names, fused nodes and precisions.

The text is that of ``IEngineInspector`` in JSON, as ``trtexec --exportLayerInfo`` writes it too. It tells names alone
of an engine that was not built with ``ProfilingVerbosity.DETAILED``. TensorRT 8 to 10 join format and type of a tensor
in ``"Format/Datatype"``, TensorRT 11 has a key for each.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_TYPES = (
    ("bf16", r"BF16|BFloat16"),
    ("fp16", r"FP16|Half"),
    ("fp8", r"FP8"),
    ("fp4", r"FP4"),
    ("int8", r"Int8"),
    ("fp32", r"FP32|Float"),
)  # BFloat16 before the Float in it
_NARROWEST = ("fp4", "fp8", "int8", "bf16", "fp16", "fp32")
_TYPE_KEYS = ("Format/Datatype", "DataType", "Datatype", "Format")
_MOVES = frozenset({
    "reformat", "shuffle", "noop", "constant", "concat", "concatenation", "slice", "gather", "padding", "shape",
    "shape_call", "signal", "wait", "copy", "cast", "devicetoshapehostnode", "hosttodevice", "condition",
})  # fmt: skip
_CONVERTS = "QDQ"  # the origin of a layer that only quantises or dequantises
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine after fusion.

    Args:
        name: As TensorRT names it.
        kind: Its type, e.g. ``"CaskConvolution"``; empty where the engine tells names only.
        precision: The narrowest type that it reads, ``"tf32"`` where its kernel rounds fp32 so; empty where it only
            moves or converts values, reads integers alone, or the engine tells names only.
        nodes: The nodes of the network that it was fused from.
    """

    name: str
    kind: str = ""
    precision: str = ""
    nodes: tuple[str, ...] = ()


def read_layers(text: str) -> tuple[EngineLayer, ...]:
    """The layers of an engine, from what its inspector says of it.

    Args:
        text: JSON.

    Raises:
        ValueError: If it is something else.

    Example:
        >>> text = '{"Layers": ["conv1 + relu1", "fc"], "Bindings": ["image", "scores"]}'
        >>> [layer.nodes for layer in read_layers(text)]
        [('conv1', 'relu1'), ('fc',)]
    """
    try:
        layers = json.loads(text)["Layers"]
        return tuple(_read_layer(layer) for layer in layers)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"Expected the JSON of TensorRT's engine inspector, with its layers under 'Layers', but got {text[:60]!r}. "
            "Ask for it with LayerInformationFormat.JSON."
        ) from error


def count_precisions(layers: Iterable[EngineLayer]) -> dict[str, int]:
    """Precision -> how many layers compute in it, most first; empty for an engine that tells names only.

    Example:
        >>> count_precisions([EngineLayer("a", "gemm", "fp16"), EngineLayer("b", "Reformat")])
        {'fp16': 1}
    """
    return dict(Counter(layer.precision for layer in layers if layer.precision).most_common())


def executed_precisions(text: str) -> dict[str, int]:
    """:func:`count_precisions` of what an inspector says; empty where it says nothing, or nothing that can be read.

    Example:
        >>> executed_precisions('{"Layers": [{"Name": "a", "LayerType": "gemm", "Inputs": [{"DataType": "Half"}]}]}')
        {'fp16': 1}
        >>> executed_precisions("")
        {}
    """
    try:
        return count_precisions(read_layers(text))
    except ValueError:
        return {}


def _read_layer(layer: Mapping[str, Any] | str) -> EngineLayer:
    if isinstance(layer, str):
        return EngineLayer(layer, nodes=_nodes(layer, ""))
    name, kind = str(layer["Name"]), str(layer.get("LayerType", ""))
    return EngineLayer(name, kind, _layer_precision(layer, kind), _nodes(name, str(layer.get("Metadata", ""))))


def _nodes(name: str, metadata: str) -> tuple[str, ...]:
    """What the parser has noted of the nodes, else the parts of the name."""
    return tuple(dict.fromkeys(_NODE.findall(metadata))) or tuple(name.split(" + "))


def _layer_precision(layer: Mapping[str, Any], kind: str) -> str:
    if kind.lower() in _MOVES or layer.get("Origin") == _CONVERTS:
        return ""
    found = set(_types(layer.get("Inputs", ()))) or set(_types(layer.get("Outputs", ())))
    precision = next((each for each in _NARROWEST if each in found), "")
    rounds = precision == "fp32" and "tf32" in str(layer.get("TacticName", "")).lower()
    return "tf32" if rounds else precision


def _types(tensors: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The types of tensors, but for integers wider than int8."""
    for tensor in tensors:
        told = next((str(tensor[key]) for key in _TYPE_KEYS if key in tensor), "")
        yield from [name for name, pattern in _TYPES if re.search(pattern, told, re.IGNORECASE)][:1]
