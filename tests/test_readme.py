"""The README's code runs, and what it points to exists."""

import re
from pathlib import Path

import pytest
import yaml

from lightning_robust.callbacks import DeploymentParityCallback
from lightning_robust.deployment.preprocessing import CATALOGUE, FAMILIES, perturbations
from lightning_robust.deployment.runtimes import TARGETS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)


def test_blocks_are_found():
    assert [language for language, _ in BLOCKS] == ["python", "yaml", "python", "python"]


@pytest.mark.parametrize("index", [0, 2, 3])
def test_python_runs(index):
    names = {}
    exec(BLOCKS[index][1], names)
    assert {"parity", "report", "module"} & names.keys()


def test_yaml_is_understood():
    settings = yaml.safe_load(BLOCKS[1][1])["deployment_parity"]
    assert DeploymentParityCallback(**settings).on_violation == "warn"


def test_links_and_files_exist():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if not link.startswith("http")]
    assert len(links) >= 3
    assert all((ROOT / link).exists() for link in links)
    assert "@" not in TEXT


def test_every_target_is_in_the_table():
    table = re.findall(r"^\| (`.+?) \|", TEXT, re.MULTILINE)
    named = set()
    for cell in table:
        stem = ""
        for name in re.findall(r"`([^`]+)`", cell):
            stem = name.split("-")[0] or stem
            named.add(name if not name.startswith("-") else stem + name)
    assert named >= set(TARGETS)
    assert f"{len(CATALOGUE)} in eleven families, {len(perturbations())} of them" in TEXT
    assert len(FAMILIES) == 11
    assert all(f"`{family}`" in TEXT for family in FAMILIES)
