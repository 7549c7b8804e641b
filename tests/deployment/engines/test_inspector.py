"""On small files in the formats of TensorRT 8.6, 10 and 11.

They are written after NVIDIA's documentation: "Engine Inspector" among the engine tools of the inference library
(10.16.1), and "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x" (11.3.0). No engine was inspected for them.
Without an execution context the inspector abbreviates formats to types ("Half"), with one it writes them out.
"""

import json
from pathlib import Path

import pytest

from lightning_robust.deployment.engines.inspector import count_precisions, read_layers

FILES = Path(__file__).parent / "inspector"


def layers_of(name):
    return read_layers((FILES / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("name", "counts", "precisions"),
    [
        ("tensorrt-8.6", {"fp16": 1, "tf32": 1, "fp32": 1}, ["", "fp16", "tf32", "fp32"]),
        ("tensorrt-10", {"int8": 1, "fp16": 1, "bf16": 1}, ["", "int8", "fp16", "bf16", ""]),
        ("tensorrt-11", {"fp16": 1, "fp32": 1, "fp8": 1}, ["fp16", "", "fp32", "fp8"]),
        ("names-only", {}, ["", "", ""]),
    ],
)
def test_layers_by_precision(name, counts, precisions):
    """What moves, casts or quantises has none; a kernel that rounds fp32 to TF32 says so in its name."""
    layers = layers_of(name)
    assert [layer.precision for layer in layers] == precisions
    assert count_precisions(layers) == counts


def test_fused_nodes_are_those_of_the_parser_or_else_of_the_name():
    assert layers_of("tensorrt-8.6")[1].nodes == ("stem", "PWN(stem_relu)")
    found = [layer.nodes for layer in layers_of("tensorrt-10")[1:4]]
    assert found == [("stem_weight_quantise", "node_stem", "node_relu"), ("node_mul", "node_sum"), ("node_linear",)]
    assert layers_of("names-only")[1].nodes == ("node_stem", "node_relu")
    assert [layer.kind for layer in layers_of("tensorrt-11")] == ["CaskConvolution", "cast", "kgen", "gemm"]


@pytest.mark.parametrize(
    ("told", "precision"),
    [
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("Row major linear BFloat16 format", "bf16"),
        ("Row major linear BF16", "bf16"),
        ("FP8E4M3", "fp8"),
        ("FP4E2M1", "fp4"),
        ("FLOAT", "fp32"),
        ("Int64", ""),
        ("Bool", ""),
    ],
)
@pytest.mark.parametrize("key", ["Format/Datatype", "DataType", "Datatype"])
def test_every_way_to_name_a_type(told, precision, key):
    layer = {"Name": "a", "LayerType": "kgen", "Inputs": [{"Name": "x", key: told}], "Outputs": []}
    (found,) = read_layers(json.dumps({"Layers": [layer]}))
    assert found.precision == precision


def test_an_engine_without_layers_or_with_a_source_layer():
    source = {"Name": "a", "LayerType": "kgen", "Inputs": [], "Outputs": [{"Name": "x", "Format/Datatype": "Half"}]}
    assert read_layers('{"Layers": [], "Bindings": []}') == ()
    assert read_layers(json.dumps({"Layers": [source]}))[0].precision == "fp16"


@pytest.mark.parametrize(
    "text",
    ["", "Layer 0: conv", '{"Layers": [{"Name"', "[]", "{}", '{"Layers": [{"LayerType": "kgen"}]}', '{"Layers": [7]}'],
)
def test_rejects_what_is_no_inspection(text):
    with pytest.raises(ValueError, match="Expected the JSON of TensorRT's engine inspector"):
        read_layers(text)
