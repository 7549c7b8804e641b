"""The version of this package, and those that it needs; asked for before anything heavy, or too old, is imported."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path

_PROJECT = Path(__file__).parents[1] / "pyproject.toml"
_OLDEST = {"torch": (2, 8), "lightning": (2, 6)}
_OLDEST_PYTHON = (3, 11)
_MALICIOUS = {"lightning": ("2.6.2", "2.6.3")}
_ADVISORY = "GHSA-w37p-236h-pfx3"


def package_version() -> str:
    """The version that is installed; in a source tree that is not installed, its pyproject.toml's, else "unknown".

    Example:
        >>> package_version()[0].isdigit()
        True
    """
    return _installed("lightning-robust") or _source_version()


def what_is_too_old() -> str | None:
    """One line about Python, torch or Lightning where it is too old or a malicious upload, with what to install.

    Only metadata is read. What is missing is left to its import, and a preview of a release (``2.8.0a0`` in containers)
    counts as that release.
    """
    if sys.version_info < _OLDEST_PYTHON:
        needed, running = (".".join(map(str, version[:3])) for version in (_OLDEST_PYTHON, sys.version_info))
        return f"lightning_robust needs Python {needed} or newer, and this is {running}: install it in a newer one."
    for name, oldest in _OLDEST.items():
        installed = _installed(name) or ""
        if installed in _MALICIOUS.get(name, ()):
            return (
                f"{name} {installed} was a malicious upload ({_ADVISORY}): pip install -U '{name}>=2.6.4,<2.7', and "
                "replace every password and token that this machine held."
            )
        release = re.match(r"(?:\d+!)?(\d+)\.(\d+)", installed)
        if release and (int(release[1]), int(release[2])) < oldest:
            least = ".".join(map(str, oldest))
            return (
                f"lightning_robust needs {name} {least} or newer, and {installed} is installed: "
                f"pip install -U '{name}>={least}'"
            )
    return None


def require_versions() -> None:
    """Raise ImportError with :func:`what_is_too_old`; in the ``lightning-robust`` command print it and exit with 2."""
    complaint = what_is_too_old()
    if complaint is None:
        return
    program = sys.argv[0] if sys.argv else ""
    if Path(program).stem == "lightning-robust" or program == "-m":  # "-m" while python -m imports the package it runs
        sys.stderr.write(f"error: {complaint}\n")
        raise SystemExit(2)
    raise ImportError(complaint)


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _source_version() -> str:
    import tomllib  # of Python 3.11; this module answers older ones too

    try:
        return str(tomllib.loads(_PROJECT.read_text(encoding="utf-8"))["project"]["version"])
    except (OSError, KeyError, ValueError):
        return "unknown"
