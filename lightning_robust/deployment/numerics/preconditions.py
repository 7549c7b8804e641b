"""What a graph must be so that the precision of its nodes can be changed."""

from __future__ import annotations

from collections.abc import Collection

import onnx
from onnx import TensorProto

from lightning_robust.suggest import did_you_mean


def check_graph(graph: onnx.GraphProto) -> None:
    """Refuse what neither the emulation nor the conversion can follow.

    Raises:
        ValueError: For sparse weights, and weights outside of the model.
    """
    if graph.sparse_initializer:
        raise ValueError(
            f"Expected dense weights, but {graph.sparse_initializer[0].values.name!r} is sparse. Write them as dense "
            "tensors."
        )
    for tensor in graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            raise ValueError(
                f"Expected the weights inside the model, but {tensor.name!r} lies in a file of its own. Export with "
                "external_data=False, or load with onnx.load(path, load_external_data=True)."
            )


def check_names(graph: onnx.GraphProto, keep_fp32: Collection[str]) -> None:
    """Refuse names that no node has.

    Raises:
        ValueError: For the first such name; the message has those that look like it.
    """
    names = {node.name for node in graph.node}
    for name in keep_fp32:
        if name not in names:
            raise ValueError(
                f"Expected `keep_fp32` to name nodes of the graph, but got {name!r}.{did_you_mean(name, names)}"
            )
