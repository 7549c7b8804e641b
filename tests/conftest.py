"""Shared by all tests: quiet torch threads, small modules and batches."""

import os
import sys

import pytest
import torch

RTX_EXPECTED = os.environ.get("EXPECT_RTX") == "1"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pytest_configure(config):
    torch.set_num_threads(min(2, os.cpu_count() or 1))


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    """Where TensorRT-RTX is expected (CI on Linux x86-64), say how many of its tests ran."""
    if RTX_EXPECTED:
        terminalreporter.write_line(f"TensorRT-RTX tests run: {config.stash.get(_RAN, 0)}")


_RAN = pytest.StashKey[int]()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if item.get_closest_marker("rtx") and report.when == "call" and report.passed:
        item.config.stash[_RAN] = item.config.stash.get(_RAN, 0) + 1


def pytest_sessionfinish(session, exitstatus):
    """A whole run that was told to expect TensorRT-RTX fails if none of its tests ran."""
    selected = any(item.get_closest_marker("rtx") for item in session.items)
    if RTX_EXPECTED and selected and session.config.stash.get(_RAN, 0) < 5:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        sys.stderr.write("\nExpected at least 5 TensorRT-RTX tests to run and pass.\n")
