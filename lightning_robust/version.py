"""The version of this package, installed or not."""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path

_PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def package_version() -> str:
    """The version that is installed; in a source tree that is not installed, its pyproject.toml's, else "unknown".

    Example:
        >>> package_version()[0].isdigit()
        True
    """
    try:
        return importlib.metadata.version("lightning-robust")
    except importlib.metadata.PackageNotFoundError:
        return _source_version()


def _source_version() -> str:
    try:
        return str(tomllib.loads(_PROJECT.read_text(encoding="utf-8"))["project"]["version"])
    except (OSError, KeyError, ValueError):
        return "unknown"
