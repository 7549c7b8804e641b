"""Pages are whole, escaped and self-contained, and a template that names an unknown variable fails."""

import re
import sys

import jinja2
import pytest
from matplotlib.figure import Figure

from lightning_robust.pages import environment_facts, render, svg
from lightning_robust.version import package_version

TEMPLATE = """{% extends "base.html.j2" %}
{% block content %}
{{ parts.table(["name", "px"], rows, "noted") }}{{ parts.bullets(lines) }}<b>{{ parts.breakable(tag) }}</b>
{% endblock %}
"""


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A package with one template."""
    (tmp_path / "room_of_pages").mkdir()
    (tmp_path / "room_of_pages" / "__init__.py").touch()
    (tmp_path / "room_of_pages" / "page.html.j2").write_text(TEMPLATE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "room_of_pages"
    sys.modules.pop("room_of_pages", None)


def page(room, **changes):
    values = {"rows": [["a<b", 0.5]], "lines": ["x & y"], "tag": "val/acc_<i>", "facts": {"command": "<script>"}}
    return render(room, "page.html.j2", "A & B", **(values | changes))


def test_every_value_is_escaped(room):
    text = page(room)
    assert "<title>A &amp; B</title>" in text
    assert "<h1>A &amp; B</h1>" in text
    assert '<table class="noted">' in text
    assert "<td>a&lt;b</td><td>0.5</td>" in text
    assert "<ul><li>x &amp; y</li></ul>" in text
    assert "<b>val/<wbr>acc_<wbr>&lt;i&gt;</b>" in text
    assert "<td>command</td><td>&lt;script&gt;</td>" in text


def test_nothing_is_loaded_from_elsewhere(room):
    assert not re.findall(r"(?:src|href|@import|url\()", page(room))


def test_no_bullets_without_lines(room):
    assert "<ul>" not in page(room, lines=[])


def test_rejects_an_unknown_variable(room):
    with pytest.raises(jinja2.UndefinedError, match="'rows' is undefined"):
        render(room, "page.html.j2", "A", facts={})


def test_a_figure_keeps_its_text_escaped(room):
    figure = Figure(figsize=(1, 1))
    figure.text(0.5, 0.5, "a < b")
    drawn = svg(figure)
    assert drawn.startswith("<figure><svg ")
    assert drawn.endswith("</figure>")
    assert "a < b" not in drawn
    assert drawn in page(room, rows=[[drawn, 1]])  # Markup is not escaped again


def test_a_figure_has_the_colours_of_the_page_and_a_name(room):
    """Nothing white or black is left in it: its paper is transparent, its ink is the text's."""
    figure = Figure(figsize=(3, 2))
    axes = figure.subplots()
    axes.plot([0, 1], color="black")
    axes.set_title("a")
    figure.suptitle("Costs in \\$ <b>")
    drawn = str(svg(figure))
    assert 'role="img" aria-label="Costs in $ &lt;b&gt;"' in drawn
    assert not re.findall("#ffffff|#000000|white|black", drawn)
    assert drawn.count("stroke: currentColor") > 4
    assert 'class="wide"' in svg(Figure(figsize=(11, 2)))


def test_facts_name_what_wrote_the_page():
    facts = environment_facts()
    assert list(facts)[:4] == ["written", "command", "machine", "python"]
    assert facts["python"] == sys.version.split()[0]
    assert facts["lightning-robust"] == package_version()
    assert {"torch", "lightning", "onnx"} <= facts.keys()
