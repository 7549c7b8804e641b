"""What goes into a graph: files of arrays, and what is refused."""

import numpy as np
import pytest

from lightning_robust.deployment.graph.inputs import check_inputs, read_inputs

from ..graphs import graph

MODEL = graph("g (float[n,3] a, int64[n] b) => (float[n,3] y) { y = Neg(a) }")
ARRAYS = {"a": np.ones((4, 3), np.float32), "b": np.zeros(4, np.int64)}


def test_reads_what_was_written(tmp_path):
    np.savez(tmp_path / "x.npz", **ARRAYS)
    found = read_inputs(tmp_path / "x.npz")
    assert found.keys() == ARRAYS.keys()
    assert all(np.array_equal(found[name], ARRAYS[name]) and found[name].dtype == ARRAYS[name].dtype for name in found)


def test_rejects_what_is_no_file_of_arrays(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"x\.npz"):
        read_inputs(tmp_path / "x.npz")
    (tmp_path / "x.npz").write_bytes(b"PK no zip")
    with pytest.raises(ValueError, match="cannot be read"):
        read_inputs(tmp_path / "x.npz")
    np.save(tmp_path / "x.npy", ARRAYS["a"])
    with pytest.raises(ValueError, match="no named arrays"):
        read_inputs(tmp_path / "x.npy")


def test_rejects_another_type():
    with pytest.raises(ValueError, match=r"Expected input 'b' as int64 of shape \(n\), but got int32"):
        check_inputs(MODEL, {**ARRAYS, "b": np.zeros(4, np.int32)})
