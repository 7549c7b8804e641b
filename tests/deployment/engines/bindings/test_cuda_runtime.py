"""The CUDA runtime of wheels is found wherever they put it; Polygraphy itself knows the folder of CUDA 12's alone."""

import subprocess
import sys

import pytest

from lightning_robust.deployment.engines.abilities import CHILD_SCRIPT

from .machine import place

SCRIPT = """
import runpy, sys
find = runpy.run_path(sys.argv[1])["find_cuda_runtime"]
if sys.argv[2] == "found":
    find()
from polygraphy import cuda
print("\\n" + cuda.wrapper().handle._name)
"""


def loaded(monkeypatch, tmp_path, sites, found):
    """The CUDA runtime that Polygraphy loads in a process of its own, '' for none."""
    monkeypatch.setenv("PYTHONPATH", ":".join(map(str, sites)))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "elsewhere"))
    command = [sys.executable, "-P", "-c", SCRIPT, str(CHILD_SCRIPT), found]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return run.stdout.splitlines()[-1] if run.returncode == 0 else ""


@pytest.mark.parametrize(
    ("wheel", "name"),
    [
        ("cu13", "libcudart.so.13"),
        ("cu13", "libcudart.so.13.0.48"),
        ("cu14", "libcudart.so.14"),
        ("cuda_runtime", "libcudart.so.12"),
    ],
)
def test_the_runtime_of_a_wheel_is_loaded(monkeypatch, tmp_path, stubs, wheel, name):
    site = tmp_path / "site"
    runtime = site / "nvidia" / wheel / "lib" / name
    place(stubs["CUDART"], runtime)
    assert loaded(monkeypatch, tmp_path, [tmp_path, site], "found") == str(runtime)
    if wheel != "cuda_runtime":  # which Polygraphy takes where /usr/local/cuda has none
        assert loaded(monkeypatch, tmp_path, [tmp_path, site], "not found") != str(runtime)


def test_of_several_the_newest_is_taken(monkeypatch, tmp_path, stubs):
    """A user's own libraries stay behind them, and a folder without a runtime is none of them."""
    sites = [tmp_path / name for name in ("first", "second")]
    old = sites[0] / "nvidia" / "cuda_runtime" / "lib" / "libcudart.so.12"
    new = sites[1] / "nvidia" / "cu13" / "lib" / "libcudart.so.13"
    place(stubs["CUDART"], old, new, sites[0] / "nvidia" / "cublas" / "lib" / "libcublas.so.13")
    assert loaded(monkeypatch, tmp_path, sites, "found") == str(new)


def test_without_wheels_nothing_changes(monkeypatch, tmp_path, stubs):
    own = tmp_path / "elsewhere" / "libcudart.so.12"
    place(stubs["CUDART"], own)
    assert loaded(monkeypatch, tmp_path, [tmp_path], "found") == str(own)
