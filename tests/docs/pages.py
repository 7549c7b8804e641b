"""The pages of the documentation and their blocks; cards, which pages include, have tests of their own."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [*ROOT.glob("*.md"), *sorted(DOCS.rglob("*.md"))]
    if "_build" not in path.parts and path.name != "CHANGELOG.md"
}
FENCE = re.compile(r"^```(\S*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    """The texts of a page's blocks of one language."""
    return [text for name, text in FENCE.findall(PAGES[page]) if name == language]


def pages_with(language):
    return [page for page in PAGES if blocks(page, language)]


def lines(page):
    """The commands of a page, one a line."""
    return [line for text in blocks(page, "sh") for line in text.splitlines() if line.strip()]
