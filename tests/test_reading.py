"""What others wrote is read within bounds, and what is damaged is one sentence that names the file."""

import csv
import json
import os
import time
import tracemalloc
from itertools import pairwise

import pytest
import yaml

from lightning_robust.reading import read_json, read_last_cells, read_yaml


def chain(names, form, count):
    """A value under the first name, and under each further one `count` aliases of the one before it."""
    lines = [f"{new}: &{new} " + form.format(", ".join([f"*{old}"] * count)) for old, new in pairwise(names)]
    return "\n".join([f"{names[0]}: &{names[0]} [{', '.join('x' * count)}]", *lines])


BOMB = chain("abcdefghi", "[{}]", 9)
DEEP = "\n".join(" " * level + "a:" for level in range(1500))


@pytest.mark.parametrize("content", [{"a": [1, 2.5, None, True, "x"], "b": {"c": []}}, ["a"], 3, None, {}])
def test_reads_what_is_right(tmp_path, content):
    """As PyYAML and json do."""
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert read_yaml(tmp_path / "a.yaml") == content
    assert read_json(tmp_path / "a.json") == content


def test_aliases_are_expanded_where_that_is_little(tmp_path):
    text = "a: &a {x: [1, 2]}\nb: [*a, *a]\nc: {<<: *a, y: 3}\n"
    (tmp_path / "a.yaml").write_text(text)
    assert read_yaml(tmp_path / "a.yaml") == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (BOMB, "it stands for more than 50000 values"),
        (BOMB + "\n" + "j: {<<: *i}", "it stands for more than 50000 values"),
        ("\n".join(f"- {n}" for n in range(60_000)), "more than 50000 values"),
        (DEEP, "nested more than 64 levels deep"),
        ("[" * 100_000, "nest"),  # libyaml has a bound of its own
        (chain("abcdefghijkl", "[[[[[[{}]]]]]]", 1), "nested more than 64 levels deep"),
        ("a: &a {b: *a}", "the alias *a stands inside of what it names"),
        ("a: [", "node content"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: 2001-99-99", "but month must be in 1..12"),
        ("? [a]\n: b", "unhashable"),
        ("a: " + "9" * 5000, "Exceeds the limit"),
        ("a: b\0", "it holds NUL bytes"),
        (b"\xff\xfe\x00a", "it is no UTF-8 text"),
        (b"\x80\x02}q\x00.", "it is no UTF-8 text"),
        ("#" * 5 * 2**20, "of at most 4 MiB"),
        ("a: 1\n---\na: 2", "but found another document, in line 2"),
    ],
)
def test_damaged_yaml(tmp_path, content, told):
    path = tmp_path / "config.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    begun = time.monotonic()
    with pytest.raises(ValueError, match="Expected YAML") as caught:
        read_yaml(path)
    assert time.monotonic() - begun < 5
    assert told in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bomb_takes_no_memory(tmp_path):
    """Nine ninefold aliases stand for 3.5 GB; a thousandth of that is allowed."""
    (tmp_path / "bomb.yaml").write_text(BOMB)
    tracemalloc.start()
    with pytest.raises(ValueError, match="50000 values"):
        read_yaml(tmp_path / "bomb.yaml")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3.5e6


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' * 50_000, "nested too deeply"),
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        ("[" + "9" * 5000 + "]", "Exceeds the limit"),
        ('{"a": 1}\0', "NUL bytes"),
        (b"\x80abc", "no UTF-8 text"),
    ],
)
def test_damaged_json(tmp_path, content, told):
    path = tmp_path / "parity.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match="Expected JSON in") as caught:
        read_json(path)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"epoch,val/acc\n0," + b"9" * 200_000, "field larger than field limit"),
        (b"epoch,val/acc\n0,0.5\n\x00\x00", "NUL bytes"),
        (b"epoch,val/acc\n0,\xff\n", "no UTF-8 text"),
        (b"a" * (2**24 + 1), "a line is longer than 16 MiB"),
    ],
)
def test_damaged_csv(tmp_path, content, told):
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"Expected CSV in .*metrics\.csv, but .*" + told):
        read_last_cells(tmp_path / "metrics.csv")


def test_last_cells_against_the_whole_table(tmp_path):
    rows = [{"a": str(n), "b": str(n) if n % 3 == 0 else "", "c": "nan" if n == 7 else " "} for n in range(20)]
    with (tmp_path / "metrics.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["a", "b", "c", "d"])
        writer.writeheader()
        writer.writerows(rows)
    assert read_last_cells(tmp_path / "metrics.csv") == {"a": "19", "b": "18", "c": "nan"}
    (tmp_path / "empty.csv").write_text("")
    assert read_last_cells(tmp_path / "empty.csv") == {}


@pytest.mark.parametrize("reader", [read_yaml, read_json, read_last_cells])
def test_what_is_no_file(tmp_path, reader):
    os.mkfifo(tmp_path / "pipe")  # which a reader would wait for
    with pytest.raises(ValueError, match=r"pipe, but it is no regular file"):
        reader(tmp_path / "pipe")
    with pytest.raises(ValueError, match="but it is a folder"):
        reader(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError, match="loop"):
        reader(tmp_path / "loop")
    with (tmp_path / "huge").open("wb") as stream:
        stream.truncate(2**40)  # sparse
    with pytest.raises(ValueError, match=r"Expected .* of at most \d+ MiB in .*huge, but it has 1048576"):
        reader(tmp_path / "huge")


@pytest.mark.parametrize("text", ['a: !!int ""', "a: !!bool x", "a: !!timestamp x", "a: !!float x"])
def test_a_value_that_is_not_of_its_tag_is_named_with_the_file(tmp_path, text):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"Expected YAML in .*settings\.yaml"):
        read_yaml(path)
