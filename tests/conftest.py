"""Shared by all tests: quiet torch threads, small modules and batches."""

import os
import sys

import pytest
import torch

RTX_EXPECTED = os.environ.get("EXPECT_RTX") == "1"
_RTX = {"selected": 0, "passed": 0}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pytest_configure(config):
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, os.cpu_count() or 1))


def pytest_runtest_logreport(report):
    """Count the tests of TensorRT-RTX; with several workers this happens in the process that started them."""
    if "rtx" in report.keywords:
        _RTX["selected"] += 1
        _RTX["passed"] += report.when == "call" and report.passed


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    """Where TensorRT-RTX is expected (CI on Linux x86-64), say how many of its tests ran."""
    if RTX_EXPECTED:
        terminalreporter.write_line(f"TensorRT-RTX tests run: {_RTX['passed']}")


def pytest_sessionfinish(session, exitstatus):
    """A whole run that was told to expect TensorRT-RTX fails if none of its tests ran."""
    if RTX_EXPECTED and not hasattr(session.config, "workerinput") and _RTX["selected"] and _RTX["passed"] < 5:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        sys.stderr.write("\nExpected at least 5 TensorRT-RTX tests to run and pass.\n")
