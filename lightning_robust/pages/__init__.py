"""Self-contained HTML pages: the frame that they share, rendered by Jinja with everything escaped."""

from __future__ import annotations

import importlib.metadata
import io
import platform
import sys
import time
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PACKAGES = (
    "lightning-robust",
    "torch",
    "lightning",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "polygraphy",
)


def render(package: str, template: str, title: str, **values: Any) -> str:
    """A whole page without anything from outside of it.

    Args:
        package: Name of the package that holds the template.
        template: Its file name, ``*.html.j2``. It extends ``base.html.j2``, fills the block ``content``, and may call
            the macros ``parts.table(columns, rows, kind)`` and ``parts.bullets(lines)``. Every value is escaped.
        title: Of the window and of the first heading.
        values: What the template names, besides ``facts`` (see :func:`environment_facts`), the last table of the page.
    """
    loaders = [jinja2.PackageLoader(package, ""), jinja2.PackageLoader(__name__, "")]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.globals["parts"] = environment.get_template("parts.html.j2").module
    return environment.get_template(template).render(title=title, **values)


def svg(figure: Figure) -> Markup:
    """A figure inside of the page."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return Markup(f"<figure>{text[text.index('<svg') :]}</figure>")  # noqa: S704 - matplotlib escapes the text in it


def environment_facts() -> dict[str, str]:
    """When, by which command, on which machine and with which packages a page was written."""
    facts = {
        "written": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "command": " ".join(sys.argv),
        "machine": platform.platform(),
    }
    facts["python"] = platform.python_version()
    for package in _PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return facts
