"""The ranges that int8 covers: of every tensor that a product reads, found on data.

`numerics/quantise.py` makes scales of them. Nothing here depends on which products are quantised in the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from lightning_robust.deployment.graph.batches import Arrays, fixed_batches
from lightning_robust.deployment.graph.session import Session
from lightning_robust.progress import track

Ranges = Mapping[str, float]
"""Tensor -> the largest magnitude that int8 covers; NaN or infinite where the data made the tensor so."""

_CHUNK = 8  # samples at a time, whose intermediate tensors are in memory at once
_BINS, _LEVELS = 2048, 128  # of a histogram of magnitudes; of int8 on one side of zero
_STRIDE = 8  # bins between two ranges that entropy tries
_SHARE = 0.99999  # that percentile keeps


def calibrate(
    model: onnx.ModelProto, arrays: Arrays, tensors: Sequence[str], method: str = "minmax"
) -> dict[str, float]:
    """Run a graph on data and find the range of some of its tensors.

    ``"minmax"`` takes the largest magnitude. ``"percentile"`` leaves out the largest 0.001 %, and ``"entropy"`` takes
    the range whose 128 levels lose the least information: both by a histogram, in a second run over the data. They are
    not ONNX Runtime's: its entropy is the largest magnitude at its default of 128 bins, and with more of them the
    range that it finds for the ReLU of a normal variable is 0.25 to 0.75 of that, depending on their number.

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
    arrays = _checked(model, arrays)
    if not tensors:
        return {}
    batches = list(_batches(model, arrays))
    session = Session(_with_outputs(model, tensors))
    ranges = dict.fromkeys(tensors, 0.0)
    for batch in track(batches, "Ranges for int8"):
        for name, array in _values_of(session, batch, tensors):
            if array.size:
                ranges[name] = float(np.maximum(ranges[name], max(array.max(), -array.min())))  # NaN stays NaN
    if method == "minmax":
        return ranges
    bins = _entropy_bins if method == "entropy" else _percentile_bins
    counts = _histograms(session, batches, ranges, tensors)
    return ranges | {name: ranges[name] * bins(histogram) / _BINS for name, histogram in counts.items()}


def _checked(model: onnx.ModelProto, arrays: Arrays) -> dict[str, NDArray[np.generic]]:
    """The arrays that the graph takes, if they can be calibrated on."""
    read = {value.name for value in model.graph.input}
    taken = {name: array for name, array in arrays.items() if name in read}
    if not taken or not all(len(array) for array in taken.values() if array.ndim):
        raise ValueError("Expected samples to calibrate int8 on, but got none. Give at least one, better a hundred.")
    for name, array in taken.items():
        _check_finite(name, array)
    return taken


def _check_finite(name: str, array: NDArray[np.generic]) -> None:
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


def _values_of(session: Session, batch: Arrays, tensors: Sequence[str]) -> list[tuple[str, NDArray[np.float32]]]:
    outputs = session.run(batch)[-len(tensors) :]
    return [(name, output.numpy()) for name, output in zip(tensors, outputs, strict=True)]


def _histograms(
    session: Session, batches: Sequence[Arrays], ranges: Ranges, tensors: Sequence[str]
) -> dict[str, NDArray[np.int64]]:
    """Counts of the magnitudes up to its range, of each tensor that is finite and not zero everywhere.

    Zeros are left out: they are as exact in one range as in another, and a ReLU makes more of them than of all else.
    """
    counts = {name: np.zeros(_BINS, np.int64) for name in tensors if 0 < ranges[name] < np.inf}
    for batch in track(batches, "Histograms for int8"):
        for name, array in _values_of(session, batch, tensors):
            if name in counts:
                counts[name] += np.histogram(np.abs(array[array != 0]), _BINS, (0, ranges[name]))[0]
    return counts


def _percentile_bins(counts: NDArray[np.int64]) -> int:
    """How many bins hold all but a hundred-thousandth of the values."""
    return int(np.searchsorted(np.cumsum(counts), counts.sum() * _SHARE)) + 1


def _entropy_bins(counts: NDArray[np.int64]) -> int:
    """How many bins to keep so that 128 levels lose the least information, as TensorRT does (Migacz, GTC 2017)."""
    candidates = range(_LEVELS, _BINS + 1, _STRIDE)
    return min(candidates, key=lambda count: _divergence(counts, count))


def _divergence(counts: NDArray[np.int64], kept: int) -> float:
    r"""What is lost by keeping some bins: :math:`\sum p \log (p / q)`.

    p has what lies beyond in its last bin that is not empty; q spreads what lies within evenly over the bins of a level
    that are not empty.
    """
    inside = counts[:kept].astype(np.float64)
    level = np.arange(kept) * _LEVELS // kept
    filled = inside > 0
    shares = np.bincount(level, inside) / np.maximum(np.bincount(level, filled), 1)
    if not filled.any():
        return np.inf
    p, q = inside[filled], shares[level[filled]]
    p[-1] += counts[kept:].sum()
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())
