"""A machine with TensorRT's own bindings and stand-ins behind them, as the environment of child processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnx

from lightning_robust.deployment.engines import abilities

HERE = Path(__file__).parent
BINDINGS = Path(os.environ.get("TENSORRT_BINDINGS", HERE.parents[3] / ".venv" / "bindings"))
"""The folder of the unpacked bindings: `10` and `11`, one for each version, for both are named alike."""

DEVICE = "Stand-in of a GPU"
VERSIONS = {"10": ("12", "cuda_runtime"), "11": ("13", "cu13")}
"""Version of TensorRT -> the version of CUDA that its package is for, and where that puts its runtime."""


def missing(version):
    """Why this machine cannot stand in for one with this version; '' where it can."""
    if not (BINDINGS / version / "tensorrt_bindings").is_dir():
        return f"TensorRT's bindings are not in {BINDINGS / version}. Run: make bindings"
    return ""


def no_compiler():
    """Why the stubs cannot be compiled here; '' where they can."""
    return "" if shutil.which("cc") and sys.platform == "linux" else "the stubs are compiled on Linux with cc"


def compile_stubs(folder):
    """Compile each kind of library in the stubs' source; kind -> file."""
    libraries = {kind: folder / f"{kind}.so" for kind in ("NVINFER", "CUDART", "CUDA")}
    for kind, library in libraries.items():
        flags = ["-shared", "-fPIC", f"-D{kind}", "-o", str(library)]
        subprocess.run(["cc", *flags, str(HERE / "stubs.c")], check=True)
    return libraries


def place(library, *paths):
    """Put a library at these paths."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(library)


ANSWERS = {}
"""What the machines said of themselves, so that each is asked once."""


class Machine:
    """The environment of the children on a machine with one version of TensorRT.

    Args:
        version: "10" or "11".
        folder: A new folder.
        stubs: From :func:`compile_stubs`.
    """

    def __init__(self, version, folder, stubs):
        self.version, self.folder = version, folder
        self.site, libraries = folder / "site", folder / "libraries"
        place(stubs["NVINFER"], *(libraries / f"lib{n}.so.{version}" for n in NVINFER))
        place(stubs["CUDA"], libraries / "libcuda.so.1")
        cuda, wheel = VERSIONS[version]
        self.runtime = self.site / "nvidia" / wheel / "lib" / f"libcudart.so.{cuda}"
        place(stubs["CUDART"], self.runtime)
        package = self.site / "tensorrt"
        package.mkdir()
        for part in ("guard.py", "stand_in.py"):
            shutil.copy(HERE / part, package)
        (package / "__init__.py").write_text(PACKAGE)
        (bindings,) = (BINDINGS / version).glob("tensorrt_cu*_bindings-*.dist-info")
        self.library = bindings.stem.split("-")[1]
        known = self.site / f"tensorrt_cu{cuda}-{self.library}.dist-info"
        known.mkdir()
        (known / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tensorrt-cu{cuda}\nVersion: {self.library}\n")
        self.environment = {
            "PYTHONPATH": os.pathsep.join([str(self.site), str(BINDINGS / version)]),
            "LD_LIBRARY_PATH": str(libraries),
            "STAND_IN_DEVICE": DEVICE,
            "STAND_IN_DRIVER": "13000",
            "STAND_IN_CALLS": str(folder / "calls"),
        }

    def enter(self, monkeypatch):
        """Let children of this process start on this machine, and this process take it for its own."""
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.syspath_prepend(self.site)
        machine = (self.version, *(self.environment[f"STAND_IN_{name}"] for name in ("DEVICE", "DRIVER")))
        monkeypatch.setattr(abilities, "_answers", ANSWERS.setdefault(machine, {}))

    def become(self, monkeypatch, **changes):
        """Have another device, or another driver."""
        self.environment |= {f"STAND_IN_{name.upper()}": value for name, value in changes.items()}
        self.enter(monkeypatch)

    def plan(self, cache):
        """How the one engine in a folder was built, and the operators in it."""
        (engine,) = cache.glob("*.engine")
        head, _, model = engine.read_bytes().partition(b"\n")
        operators = [node.op_type for node in onnx.load_model_from_string(model).graph.node]
        return json.loads(head) | {"operators": operators}

    def calls(self):
        """What the children called since they were last asked for, as [name, arguments...]."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]


NVINFER = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
PACKAGE = """
import tensorrt_bindings
from tensorrt_bindings import *
from tensorrt_bindings import __version__
from . import stand_in
stand_in.replace(globals(), tensorrt_bindings)
"""
