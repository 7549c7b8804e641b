"""The ranges that int8 covers: of every tensor that a product reads, found on data.

`numerics/quantise.py` makes scales of them. Nothing here depends on which products are quantised in the end.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from lightning_robust.deployment.graph.batches import Arrays, fixed_batches
from lightning_robust.deployment.graph.session import Session

Ranges = Mapping[str, float]
"""Tensor -> the largest magnitude that int8 covers; NaN or infinite where the data made the tensor so."""
_CHUNK = 8  # samples at a time, whose intermediate tensors are in memory at once
_BINS = {"entropy": 1024, "percentile": 2048}  # of both signs, and of magnitudes
_LEVELS, _PERCENTILE = 255, 99.999  # of int8; ONNX Runtime's default


def calibrate(
    model: onnx.ModelProto, arrays: Arrays, tensors: Sequence[str], method: str = "minmax"
) -> dict[str, float]:
    """Run a graph on data and find the range of some of its tensors.

    ``"minmax"`` takes the largest magnitude. ``"percentile"`` leaves out the largest 0.001 %, and ``"entropy"`` takes
    the range whose 255 levels lose the least information: both from histograms of ONNX Runtime's quantiser, in a second
    run over the data. Entropy takes half a second for each tensor.

    Args:
        model: The fp32 graph.
        arrays: Input name -> samples, which run a few at a time.
        tensors: Names of float tensors of the graph.
        method: One of :data:`~.engines.settings.Calibration`.

    Returns:
        Tensor -> range. The range of a tensor that is not finite on the data is not finite either.

    Raises:
        ValueError: If there are no samples, or an input holds NaN or infinity.

    Example:
        >>> from onnx import parser
        >>> text = '<ir_version: 10, opset_import: ["" : 20]> g (float[n] x) => (float[n] y) { h = Neg(x) y = Abs(h) }'
        >>> calibrate(parser.parse_model(text), {"x": np.array([1, -3, 2], np.float32)}, ["h"])
        {'h': 3.0}
    """
    _check(arrays)
    batches = list(_batches(model, arrays))
    session = Session(_with_outputs(model, tensors)) if tensors else None
    ranges = dict.fromkeys(tensors, 0.0)
    for batch in batches if session else ():
        for name, array in _values(session, batch, tensors):
            if array.size:
                ranges[name] = float(np.maximum(ranges[name], max(array.max(), -array.min())))  # NaN stays NaN
    return ranges if method == "minmax" or session is None else ranges | _thresholds(session, batches, ranges, method)


def _check(arrays: Arrays) -> None:
    if not arrays or not all(len(array) for array in arrays.values() if array.ndim):
        raise ValueError("Expected samples to calibrate int8 on, but got none. Give at least one, better a hundred.")
    for name, array in arrays.items():
        wrong = int(array.size - np.isfinite(array).sum()) if np.issubdtype(array.dtype, np.floating) else 0
        if wrong:
            raise ValueError(
                f"Expected finite numbers to calibrate int8 on, but {wrong} of input {name!r} are NaN or infinite. "
                "Leave those samples out."
            )


def _with_outputs(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """The graph with these tensors, under other names, as its last outputs."""
    wider = onnx.ModelProto()
    wider.CopyFrom(model)
    for index, name in enumerate(tensors):
        copy = f"{name}__calibrated_{index}"
        wider.graph.node.append(onnx.helper.make_node("Identity", [name], [copy], name=copy))
        wider.graph.output.append(onnx.helper.make_tensor_value_info(copy, onnx.TensorProto.FLOAT, None))
    return wider


def _batches(model: onnx.ModelProto, arrays: Arrays) -> Iterator[Arrays]:
    """A few samples at a time; where the graph takes batches of a fixed size, one of these, the last filled up."""
    size = next(iter(fixed_batches(model.graph).values()), _CHUNK)
    count = next((len(array) for array in arrays.values() if array.ndim), 1)
    for start in range(0, count, size):
        window = slice(start, start + size)
        yield {name: array[window] if array.ndim and len(array) == count else array for name, array in arrays.items()}


def _values(session: Session, batch: Arrays, tensors: Sequence[str]) -> list[tuple[str, NDArray[np.float32]]]:
    outputs = session.run(batch)[-len(tensors) :]
    return [(name, output.numpy()) for name, output in zip(tensors, outputs, strict=True)]


def _thresholds(session: Session, batches: Sequence[Arrays], ranges: Ranges, method: str) -> dict[str, float]:
    """What a histogram says of each tensor that is finite and not zero everywhere."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    histograms = HistogramCollector(method, True, _BINS[method], _LEVELS, _PERCENTILE, "same")
    empty = {name: _empty(limit, method) for name, limit in ranges.items() if 0 < limit < np.inf}
    if not empty:
        return {}
    # the range is known: bins that grow with the data would depend on its order, and on its first batch their number
    histograms.histogram_dict.update(empty)
    with _silence():
        for batch in batches:
            histograms.collect({name: array for name, array in _values(session, batch, [*ranges]) if name in empty})
        found = histograms.compute_collection_result()
    return {name: max(abs(float(low)), abs(float(high))) for name, (low, high, *_) in found.items()}


def _empty(limit: float, method: str) -> tuple[Any, ...]:
    """An empty histogram of ONNX Runtime's: counts, edges, least and largest value, and for entropy the range."""
    top, bins = np.float32(limit), _BINS[method]
    edges = np.linspace(-top if method == "entropy" else 0, top, bins + 1, dtype=np.float32)
    return np.zeros(bins, np.int64), edges, -top, top, *([top] if method == "entropy" else [])


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the quantiser's lines of progress off the user's screen."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
