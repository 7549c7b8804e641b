"""Other machines, as it were: environments of their own, a shell that joins arguments as ssh does, a CUDA driver."""

import importlib.util
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_robust.deployment.engines.child.supervisor import PREFIX

DRIVER = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static int number(const char *name, int usual) { const char *v = getenv(name); return v ? atoi(v) : usual; }
int cuDriverGetVersion(int *version) { *version = number("CUDA_OF_DRIVER", 13000); return 0; }
int cuInit(unsigned flags) { return number("CUDA_ERROR", 0); }
int cuDeviceGetCount(int *count) { *count = number("CUDA_DEVICES", 1); return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "Stand-in %d", device); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  int capability = number("CAPABILITY", 89);
  *value = attribute == 75 ? capability / 10 : capability % 10; return attribute < 75 || attribute > 76;
}
int cuGetErrorName(int error, const char **name) { *name = "CUDA_ERROR_NO_DEVICE"; return error != 100; }
"""
LIBRARY = """
import enum
class ComputeCapability(enum.IntEnum):
    NONE, CURRENT, SM75, SM89, SM120 = 0, 1, 75, 89, 120
"""
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="a stand-in for the CUDA driver needs gcc")


def make_environment(folder, *packages):
    """An interpreter in an environment that has these packages of this one and no others."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for package in packages:
        home = Path(importlib.util.find_spec(package).origin).parent
        for path in home.parent.glob(f"{package}*"):
            (site / path.name).symlink_to(path)
    return [shutil.which("env"), "-i", f"TMPDIR={make_tmp(folder)}", str(folder / "bin/python")]


def make_target(folder):
    """A machine with numpy, Polygraphy, and stand-ins for both libraries; that for RTX knows three capabilities."""
    command = make_environment(folder, "numpy", "polygraphy")
    site = next(folder.glob("lib/python*/site-packages"))
    for name, version in (("tensorrt_rtx", "1.9"), ("tensorrt", "11.4")):
        (site / f"{name}.py").write_text(LIBRARY if name == "tensorrt_rtx" else "")
        (site / f"{name}_cu13-{version}.dist-info").mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {name}_cu13\nVersion: {version}\n"
        (site / f"{name}_cu13-{version}.dist-info" / "METADATA").write_text(metadata)
    return command


def make_tmp(folder):
    """A folder for temporary files of another machine."""
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    return folder / "tmp"


def leftovers(folder):
    """What was left in it."""
    return list(make_tmp(folder).glob(f"{PREFIX}*"))


def make_ssh(path, body='exec sh -c "$*"'):
    """A command that joins its arguments with spaces for a shell, as ssh does; the first is the name of the host."""
    path.write_text(f"#!/bin/sh\nshift\n{body}\n")
    path.chmod(0o700)
    return [str(path), "orin"]


def with_driver(folder, command, **settings):
    """The same command on a machine whose CUDA driver has such a device."""
    if not (folder / "libcuda.so.1").exists():
        (folder / "driver.c").write_text(DRIVER)
        library = ["-o", str(folder / "libcuda.so.1"), str(folder / "driver.c")]
        subprocess.run(["gcc", "-shared", "-fPIC", *library], check=True)
    variables = [f"LD_LIBRARY_PATH={folder}", *(f"{name}={value}" for name, value in settings.items())]
    return [*command[:2], *variables, *command[2:]]


def find_interpreters(*minors):
    """Pythons of these versions that are on this machine: on the PATH, or beside this one; one of each."""
    found = []
    for minor in minors:
        beside = sorted(Path(sys.base_prefix).parent.glob(f"3.{minor}.*/bin/python3"))
        paths = [*map(str, beside), shutil.which(f"python3.{minor}") or ""]
        starts = (
            path for path in paths if path and not subprocess.run([path, "-c", ""], capture_output=True).returncode
        )
        found += [path for path in [next(starts, "")] if path]
    return found


def wait_for(path, seconds=60.0):
    """Whether a file is there, now or soon."""
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return path.exists()


def is_gone(pid, seconds=10.0):
    """Whether a process has ended, or does so soon; one that nobody has waited for has ended."""
    state, deadline = Path(f"/proc/{pid}/stat"), time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if state.read_text().split()[2] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False
