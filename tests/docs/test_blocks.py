"""README and pages: their Python runs, their links lead somewhere, and every block is of a kind that is tested."""

import re

import pytest

from .pages import DOCS, FENCE, PAGES, ROOT, blocks, pages_with

TESTED = {"python", "yaml", "sh"}  # here, and in test_commands.py
SHOWN = {"text", "toml"}
OF_THE_SITE = {"{include}", "{literalinclude}", "{toctree}", "{eval-rst}"}


def test_all_are_found():
    assert {"README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/index.md", "docs/api/functional.md"} <= {*PAGES}
    assert len(PAGES) >= 45
    assert {name for text in PAGES.values() for name, _ in FENCE.findall(text)} == TESTED | SHOWN | OF_THE_SITE
    assert len(pages_with("python")) >= 6
    assert len(PAGES["README.md"].splitlines()) <= 135


@pytest.mark.filterwarnings("ignore::lightning_robust.NoEffectWarning")
@pytest.mark.parametrize("page", pages_with("python"))
def test_python_runs(page, tmp_path, monkeypatch):
    """In their order, each going on from those before."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for text in blocks(page, "python"):
        exec(text, names)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    text = FENCE.sub("", PAGES[page])
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    for link in links:
        assert link.startswith("https://") or ((ROOT / page).parent / link).exists(), link
    assert "@" not in re.sub(r"@(?:<|v?\d)", "", text)


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/")])
def test_files_that_pages_name_are_there(page):
    """A place in the repository, as ``lightning_robust/...`` or ``tests/...``."""
    for place in re.findall(r"`((?:lightning_robust|tests|configs|benchmarks|notebooks|docs)/[\w./]+)`", PAGES[page]):
        assert (ROOT / place).exists(), place


def test_every_card_is_a_page():
    cards = set((ROOT / "lightning_robust").rglob("README.md"))
    included = {
        (DOCS / page.removeprefix("docs/")).parent.joinpath(target).resolve()
        for page, text in PAGES.items()
        for target in re.findall(r"^```\{include\} (\S+)", text, re.MULTILINE)
    }
    assert cards <= included
    assert {ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")} < included
