"""The version is known where the package is installed, in a source tree, and in a bare folder."""

import importlib.metadata
import tomllib
from pathlib import Path

import pytest

from lightning_robust import version

DECLARED = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["version"]


@pytest.fixture
def not_installed(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)


def test_installed(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: {"lightning-robust": "7.1"}[name])
    assert version.package_version() == "7.1"


def test_a_source_tree_that_is_not_installed(not_installed):
    assert version.package_version() == DECLARED


@pytest.mark.parametrize("content", [None, "[project]\nname = 'x'\n", "not = [toml"])
def test_a_bare_folder(not_installed, monkeypatch, tmp_path, content):
    if content is not None:
        (tmp_path / "pyproject.toml").write_text(content)
    monkeypatch.setattr(version, "_PROJECT", tmp_path / "pyproject.toml")
    assert version.package_version() == "unknown"
