"""How Sphinx builds the site: Markdown by MyST, the cards where they stand, the API from docstrings.

CONTRIBUTING.md says why these tools. ``make docs`` builds with warnings as errors.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

from lightning_robust.version import package_version

HERE = Path(__file__).parent
ROOT = HERE.parent
INCLUDE = re.compile(r"^```\{include\} (\S+)\n(?::relative-images:\n)?```", re.MULTILINE)
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#|/|mailto:)([^)#\s]+)(#[^)\s]*)?\)")

project = "lightning_robust"
copyright = "the authors of lightning_robust, Apache-2.0"  # noqa: A001 - Sphinx reads this name
version = release = package_version()
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
# from Markdown of other files, whose headings begin where theirs do
suppress_warnings = ["myst.header"]
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 100
copybutton_prompt_text = "$ "
html_theme = "furo"
html_title = "lightning_robust"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False


def included() -> dict[Path, str]:
    """A file of the repository that is a page, or all of one -> that page, as MyST links to it."""
    pages = {}
    for page in HERE.rglob("*.md"):
        for target in INCLUDE.findall(page.read_text(encoding="utf-8")):
            pages[(page.parent / target).resolve()] = f"/{page.relative_to(HERE).as_posix()}"
    return pages


def rewrite_links(app: Sphinx, relative_path: Path, parent: str, content: list[str]) -> None:
    """Point links of an included file at the site's pages, and name what is no page by its place in the repository."""
    folder = Path(os.path.normpath(HERE / relative_path)).parent
    pages = included()

    def rewritten(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        if target in pages:
            return f"[{link[1]}]({pages[target]}{link[3] or ''})"
        if HERE in target.parents and target.suffix == ".md":
            return f"[{link[1]}](/{target.relative_to(HERE).as_posix()}{link[3] or ''})"
        if not target.exists():
            raise FileNotFoundError(f"Expected {link[2]} beside {relative_path}, but there is no such file.")
        place = target.relative_to(ROOT).as_posix()
        return link[1] if place in link[1] else f"{link[1]} (`{place}`)"

    content[0] = LINK.sub(rewritten, content[0])


def find_public_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.TextElement
) -> nodes.reference | None:
    """Resolve what a docstring names by the file that it stands in: pages name it where users import it."""
    target = str(node.get("reftarget", ""))
    if node.get("refdomain") != "py" or not re.match(r"\.|lightning_robust\b", target):
        return None
    python: Any = env.get_domain("py")
    last = target.rsplit(".", 1)[-1]
    names = [
        name for name in python.objects if name.rsplit(".", 1)[-1] == last and name.startswith("lightning_robust.")
    ]
    if len(names) != 1:
        return None
    found = python.objects[names[0]]
    uri = app.builder.get_relative_uri(node["refdoc"], found.docname)
    return nodes.reference("", "", text, internal=True, refuri=f"{uri}#{found.node_id}")


def setup(app: Sphinx) -> None:
    """Connect what this file adds to Sphinx."""
    app.connect("include-read", rewrite_links)
    app.connect("missing-reference", find_public_name)
