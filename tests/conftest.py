"""Shared by all tests: quiet torch threads; what CI expects to have run is counted."""

import copy
import functools
import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

SLOW = (
    "tests/docs/",
    "tests/foreign/",
    "tests/reliability/",
    "tests/sweeps/",
    "tests/commands/test_choose.py",
    "tests/commands/test_sweep.py",
    "tests/test_benchmark",
    "tests/test_every_figure.py",
    "tests/test_distributed.py",
    "tests/test_notebooks.py",
)


@dataclass
class Expected:
    """Tests of one marker, which skip where a library is missing: CI asserts that they ran all the same."""

    name: str
    variable: str
    least: int
    selected: int = 0
    passed: int = 0

    @property
    def wanted(self):
        return os.environ.get(self.variable) == "1"

    @property
    def missing(self):
        """Whether a run that selected them has too few."""
        return self.wanted and self.selected > 0 and self.passed < self.least


EXPECTED = {
    "rtx": Expected("TensorRT-RTX tests", "EXPECT_RTX", 5),
    "bindings": Expected("tests on TensorRT's own bindings", "EXPECT_BINDINGS", 30),
    "foreign": Expected("tests of foreign modules", "EXPECT_FOREIGN", 250),
}


def pytest_addoption(parser):
    parser.addoption("--fast", action="store_true", help="one case of each test, and none of the files in SLOW")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _translations_are_read_once():
    """torch reads the sources of its translations to ONNX in every export, half of the time of a small one."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    read = functools.cache(ONNXRegistry.from_torchlib)

    def from_torchlib(*args, **settings):
        registry = copy.copy(read(*args, **settings))
        registry.functions = {name: [*found] for name, found in registry.functions.items()}
        return registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(from_torchlib))
        yield


@pytest.fixture(scope="module")
def benchmark():
    """Imports a benchmark as it is imported when one is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
        yield importlib.import_module


def pytest_configure(config):
    # else Ray's workers give way to all other tests, and those that wait for them take minutes
    os.environ.setdefault("RAY_worker_niceness", "0")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, os.cpu_count() or 1))


def pytest_collection_modifyitems(config, items):
    """The fast part: of each test function the first of its cases, without the files that take most of the time."""
    if not config.getoption("--fast"):
        return
    kept, left = {}, []
    for item in items:
        path, _, name = item.nodeid.partition("::")
        function = (path, name.partition("[")[0])
        if path.startswith(SLOW) or function in kept:
            left.append(item)
        else:
            kept[function] = item
    config.hook.pytest_deselected(items=left)
    items[:] = kept.values()


def pytest_runtest_logreport(report):
    """Count the tests of each marker; with several workers this happens in the process that started them."""
    for marker, expected in EXPECTED.items():
        if marker in report.keywords:
            expected.selected += 1
            expected.passed += report.when == "call" and report.passed


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    """Where tests are expected to run, as in CI, say how many did."""
    for expected in EXPECTED.values():
        if expected.wanted:
            terminalreporter.write_line(f"{expected.name} run: {expected.passed}")


def pytest_sessionfinish(session, exitstatus):
    """A whole run that was told to expect them fails if hardly any of them ran."""
    if hasattr(session.config, "workerinput"):
        return
    for expected in EXPECTED.values():
        if expected.missing:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            sys.stderr.write(f"\nExpected at least {expected.least} {expected.name} to run and pass.\n")
