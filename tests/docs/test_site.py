"""What pages say of the code is so, and the files of the project say one thing."""

import re
import tomllib

import yaml

import lightning_robust
from lightning_robust import functional
from lightning_robust.cli import TECHNIQUES
from lightning_robust.cli.entrance import TRAINING
from lightning_robust.commands import COMMANDS
from lightning_robust.deployment.engines import TARGETS
from lightning_robust.deployment.pixels.catalogue import CATALOGUE, perturbations
from lightning_robust.deployment.pixels.names import FAMILIES

from ..test_architecture import ROOMS
from ..test_configs import SHOWS
from .pages import PAGES, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()


def first_cells(page):
    return re.findall(r"^\| (.+?) \|", PAGES[page], re.MULTILINE)


def test_every_target_is_in_the_table():
    named = set()
    for cell in first_cells("docs/measure/targets.md"):
        stem = ""
        for name in re.findall(r"`([^`]+)`", cell):
            stem = name.split("-")[0] or stem
            named.add(name if not name.startswith("-") else stem + name)
    assert named == set(TARGETS)


def test_perturbations_are_counted_and_families_named():
    page = PAGES["docs/measure/perturbations.md"]
    assert f"a catalogue of {len(CATALOGUE)} in eleven families, {len(perturbations())} of them" in page
    assert [cell.strip("`") for cell in first_cells("docs/measure/perturbations.md")[2:]] == [*FAMILIES]
    assert len(FAMILIES) == 11


def test_every_command_and_key_is_in_its_table():
    commands = TRAINING | COMMANDS
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGES["docs/commands.md"], re.MULTILINE))
    assert rows == commands
    keys = dict(
        re.findall(r"^\| `(\w+)` \| \{py:class\}`~lightning_robust\.(\w+)` \|$", PAGES["docs/yaml.md"], re.MULTILINE)
    )
    assert keys == {slot.key: slot.cls.__name__ for slot in TECHNIQUES}
    assert [*keys] == [slot.key for slot in TECHNIQUES], "their order is that of instantiation"
    order = re.search(r"in this order: (.*?)\.\n", PAGES["docs/techniques/index.md"], re.DOTALL)[1]
    assert re.findall(r"`(\w+)`", order) == [*keys]


def test_tags_that_runs_log_are_explained():
    told = " ".join(re.findall(r"`([^`]+)`", " ".join(first_cells("docs/tags.md"))))
    for tag in {*SHOWS.values()} - {"adversarial/val_loss@0.1", "datapath/pgd/parting_depth", "train/loss"}:
        assert tag in told, tag


def test_every_public_name_is_in_the_api():
    pages = "".join(text for page, text in PAGES.items() if page.startswith("docs/api/"))
    documented = {*re.findall(r"^\.\. auto\w+:: (\S+)$", pages, re.MULTILINE)}
    assert documented >= {f"lightning_robust.{name}" for name in lightning_robust.__all__}
    public = {
        name
        for name, value in vars(functional).items()
        if getattr(value, "__module__", "").startswith("lightning_robust.functional.")
    }
    assert len(public) > 100
    assert documented >= {f"lightning_robust.functional.{name}" for name in public}


def test_architecture_names_every_room():
    """And no other; the order of imports is that which test_architecture.py asserts."""
    (tree,) = re.findall(r"```text\n(.*?)```", PAGES["docs/architecture.md"], re.DOTALL)
    inside = tree.split("configs/  notebooks/")[0]
    rooms = {name.rstrip("/").removesuffix(".py") for name in re.findall(r"(?<![\w/])(\w+(?:/|\.py))(?=\s)", inside)}
    assert {*ROOMS} <= rooms
    package = ROOT / "lightning_robust"
    inner = {path.name for path in package.rglob("*") if path.is_dir() or path.suffix == ".py"}
    assert {name for name in rooms if not {name, f"{name}.py"} & inner} <= {"lightning_robust"}


def test_every_extra_is_in_the_table():
    extras = [cell.strip("`") for cell in first_cells("docs/install.md")[2:]]
    assert {*extras} == {*PROJECT["optional-dependencies"]}


def test_bounds_are_those_of_the_project():
    bounds = dict(re.findall(r"^\| (\w+) \| (\d+\.\d+)", PAGES["docs/versions.md"].partition("\n## ")[0], re.MULTILINE))
    least = dict(re.findall(r"^(torch|lightning)>=([\d.]+)", "\n".join(PROJECT["dependencies"]), re.MULTILINE))
    assert {name.lower(): bound for name, bound in bounds.items()} == {
        "python": PROJECT["requires-python"].removeprefix(">="),
        **least,
    }


def test_lint_and_hooks_run_the_same():
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[1]
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in lint.splitlines()]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["entry"] for hook in hooks] == commands
    assert all(hook["language"] == "system" and not hook["pass_filenames"] for hook in hooks)


def test_ci_runs_what_contributing_says():
    script = (ROOT / ".ci" / "run").read_text()
    commands = re.findall(r"^make (\w+)", PAGES["CONTRIBUTING.md"], re.MULTILINE)
    assert commands == ["test", "lint", "docs"]
    assert all(f"\nmake {name}\n" in script for name in commands)
    assert "--fail-on-warning" in MAKEFILE


def test_citation_has_the_version_and_the_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert {"cff-version", "message", "title", "authors"} <= {*citation}


def test_templates_are_forms():
    forms = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))]
    assert [form["name"] for form in forms] == ["Something is wrong", "A technique, a runtime, a perturbation"]
    assert all(part["attributes"]["label"] for form in forms for part in form["body"])
    assert "make test" in (ROOT / ".github/PULL_REQUEST_TEMPLATE.md").read_text()


def test_changelog_keeps_its_form():
    """Keep a Changelog: versions with their day as second headings, kinds of change as third ones, in its order."""
    text = (ROOT / "CHANGELOG.md").read_text()
    unreleased, *versions = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert unreleased.startswith("[Unreleased]\n")
    days = [re.match(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)\n", version).groups() for version in versions]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert days[0] == (PROJECT["version"], str(citation["date-released"]))
    kinds = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    for version in [unreleased, *versions]:
        headings = re.findall(r"^### (.*)$", version, re.MULTILINE)
        assert headings == [kind for kind in kinds if kind in headings]
    assert all(line.startswith(("#", "- ", "  ")) for line in text.partition("## [")[2].splitlines()[1:] if line)
