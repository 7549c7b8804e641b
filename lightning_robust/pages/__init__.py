"""Self-contained HTML pages, rendered by Jinja with every value escaped: their common frame and its parts."""

from __future__ import annotations

import importlib.metadata
import io
import platform
import re
import shlex
import sys
import time
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup, escape

from lightning_robust.version import package_version

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NARROW = 7.0  # inches: wider figures are scrolled on a small screen, where their text would be too small to read
_BLACK = re.compile(r"\b(fill|stroke): #000000\b")
_PACKAGES = (
    "torch",
    "lightning",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "polygraphy",
)


def render(package: str, template: str, title: str, **values: Any) -> str:
    """A whole page that loads nothing from elsewhere.

    Args:
        package: Name of the package that holds the template.
        template: Its file name, ``*.html.j2``. It extends ``base.html.j2``, fills the block ``content``, and may call
            the macros of ``parts.html.j2``: ``parts.table(columns, rows, kind)``, ``parts.bullets(lines)`` and
            ``parts.breakable(name)``. Every value is escaped.
        title: Title of the window, and the first heading.
        values: The variables of the template, and ``facts`` (see :func:`environment_facts`), the last table.
    """
    loaders = [jinja2.PackageLoader(package, ""), jinja2.PackageLoader(__name__, "")]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["code"] = code
    environment.globals["parts"] = environment.get_template("parts.html.j2").module
    return environment.get_template(template).render(title=title, **values)


def code(line: str) -> Markup:
    """A sentence with what stands between backticks as code; everything is escaped.

    Example:
        >>> print(code("Write `a: <b>` there."))
        Write <code>a: &lt;b&gt;</code> there.
    """
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(line))))  # noqa: S704 - escaped before


def svg(figure: Figure) -> Markup:
    """A figure as part of the page: transparent, its black in the colour of the page's text, light or dark."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None}, transparent=True)
    text = stream.getvalue()
    text = _BLACK.sub(r"\1: currentColor", text[text.index("<svg") :])
    title = escape(figure.get_suptitle().replace("\n", " ").replace(r"\$", "$"))
    named = text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1) if title else text
    kind = ' class="wide"' if figure.get_figwidth() > _NARROW else ""
    return Markup(f"<figure{kind}>{named}</figure>")  # noqa: S704 - matplotlib escapes the text in it


def environment_facts() -> dict[str, str]:
    """The time, the command, the machine and the versions of packages that a page was written with."""
    facts = {
        "written": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "command": shlex.join(sys.argv),
        "machine": platform.platform(),
    }
    facts |= {"python": platform.python_version(), "lightning-robust": package_version()}
    for package in _PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return facts
