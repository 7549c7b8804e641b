"""The version is known where the package is installed, in a source tree, in a bare folder; what is too old is said."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import lightning_robust
from lightning_robust import version
from lightning_robust.cli import main

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARED = PROJECT["version"]
NEEDED = {(each := Requirement(line)).name: each.specifier for line in PROJECT["dependencies"]}


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


def test_the_package_and_its_command_say_which_version_they_are(capsys):
    assert lightning_robust.__version__ == version.package_version()
    main(["--version"])
    assert capsys.readouterr().out == f"lightning-robust {lightning_robust.__version__}\n"


@pytest.fixture
def with_versions(monkeypatch):
    def install(**versions):
        monkeypatch.setattr(version, "_installed", {"torch": "2.13.0", "lightning": "2.6.6", **versions}.get)
        return version.what_is_too_old()

    return install


TOO_OLD = {
    "torch 2.8 or newer, and 2.7.1+cu126 is installed: pip install -U 'torch>=2.8'": {"torch": "2.7.1+cu126"},
    "torch 2.8 or newer, and 1.13.1 is installed: pip install -U 'torch>=2.8'": {"torch": "1.13.1"},
    "lightning 2.6 or newer, and 2.5.6 is installed: pip install -U 'lightning>=2.6'": {"lightning": "2.5.6"},
}


@pytest.mark.parametrize(("told", "versions"), TOO_OLD.items(), ids=lambda value: "".join(value)[:15])
def test_too_old_is_one_line_that_says_what_to_install(with_versions, told, versions):
    assert with_versions(**versions) == f"lightning_robust needs {told}"


@pytest.mark.parametrize("release", ["2.6.2", "2.6.3"])
def test_a_malicious_upload_is_refused(with_versions, release):
    told = with_versions(lightning=release)
    assert told.startswith(f"lightning {release} was a malicious upload (GHSA-w37p-236h-pfx3): pip install -U")
    remedy = re.search("'(.*)'", told)[1]
    assert not Requirement(remedy).specifier.contains(release)
    assert "\n" not in told


@pytest.mark.parametrize(
    "versions",
    [
        {},
        {"torch": "2.8.0", "lightning": "2.6.0"},
        {"torch": "2.8.0a0+34c6371d24.nv25.08"},
        {"torch": "2.10.0.dev20251101+cpu"},
        {"torch": "3.0.0"},
        {"torch": None, "lightning": None},
        {"torch": "of my own"},
    ],
    ids=str,
)
def test_new_enough_or_unknown_is_let_through(with_versions, versions):
    assert with_versions(**versions) is None


def test_what_is_refused_is_what_the_package_declares():
    assert version._OLDEST.keys() <= NEEDED.keys()
    for name, oldest in version._OLDEST.items():
        assert f">={'.'.join(map(str, oldest))}" in map(str, NEEDED[name])
    refused = {str(each)[2:] for each in NEEDED["lightning"] if each.operator == "!="}
    assert refused == {*version._MALICIOUS["lightning"]}
    assert PROJECT["requires-python"] == f">={'.'.join(map(str, version._OLDEST_PYTHON))}"


def test_an_old_python_is_told(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 13, "final", 0))
    told = "lightning_robust needs Python 3.11 or newer, and this is 3.10.13: install it in a newer one."
    assert version.what_is_too_old() == told


def test_every_import_asks(tmp_path):
    """A library sees an ImportError, the command prints one line; neither imports what is too old."""
    metadata = tmp_path / "torch-2.7.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.7.0\n")
    start = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; "
    imports, command = "import lightning_robust", "import runpy; runpy.run_module('lightning_robust', alter_sys=True)"
    programs = [imports, f"sys.argv[:] = ['/bin/lightning-robust']; {imports}", f"sys.argv[0] = '-m'; {command}"]
    ended = []
    for program in programs:
        done = subprocess.run([sys.executable, "-c", start + program], capture_output=True, text=True, check=False)
        ended.append((done.returncode, done.stderr.splitlines()[-1]))
        assert done.returncode == 1 or len(done.stderr.splitlines()) == 1
    told = f"lightning_robust needs {next(iter(TOO_OLD))}".replace("2.7.1+cu126", "2.7.0")
    assert ended == [(1, f"ImportError: {told}"), (2, f"error: {told}"), (2, f"error: {told}")]
