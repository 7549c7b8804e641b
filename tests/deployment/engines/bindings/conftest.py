"""Machines with the bindings of TensorRT 10 and 11, or the reason why this one cannot stand in for them."""

import pytest

from .machine import VERSIONS, Machine, compile_stubs, missing, no_compiler


@pytest.fixture(scope="session")
def stubs(tmp_path_factory):
    """The libraries behind the bindings, compiled once."""
    if no_compiler():
        pytest.skip(no_compiler())
    return compile_stubs(tmp_path_factory.mktemp("stubs"))


@pytest.fixture(params=VERSIONS)
def version(request):
    """10 and 11, each where its bindings are."""
    if missing(request.param):
        pytest.skip(missing(request.param))
    return request.param


@pytest.fixture
def machine(version, tmp_path, stubs, monkeypatch):
    """A machine with that version, on which the children of this process start."""
    made = Machine(version, tmp_path / "machine", stubs)
    made.enter(monkeypatch)
    return made
