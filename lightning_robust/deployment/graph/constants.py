"""The array of a Constant node, in whichever of its attributes it stands."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def read_constant(node: ir.Node) -> NDArray[Any] | None:
    """The numbers of a Constant node; None for a sparse one, strings, a tensor in another file, and other nodes."""
    if node.op_type != "Constant":
        return None
    tensor = node.attributes.get_tensor("value")  # not ir.convenience.get_const_tensor, which names the caller's values
    if tensor is not None:
        return None if isinstance(tensor, ir.ExternalTensor) else tensor.numpy()
    for stem, dtype in (("value_float", np.float32), ("value_int", np.int64)):
        values = node.attributes.get(stem, node.attributes.get(f"{stem}s"))
        if values is not None:
            return np.array(values.value, dtype)
    return None
