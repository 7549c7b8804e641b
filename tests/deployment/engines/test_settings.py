"""One set of settings for everything that builds engines: choices, numbers, and files of names."""

import json
from dataclasses import replace

import pytest

from lightning_robust.deployment.engines import BuildSettings
from lightning_robust.deployment.engines.settings import read_names


def test_names_are_read_from_what_parity_writes(tmp_path):
    file = tmp_path / "keep_fp32.json"
    file.write_text(json.dumps({"nodes": ["a", "b"], "nodes_to_exclude": ["^a$", "^b$"]}))
    plain = tmp_path / "plain.json"
    plain.write_text('["c"]')
    settings = BuildSettings(keep_fp32=str(file), exclude_int8=str(plain))
    assert (settings.keep_fp32, settings.exclude_int8) == (["a", "b"], ["c"])
    assert replace(settings, tf32=True).keep_fp32 == ["a", "b"]
    assert BuildSettings().keep_fp32 is None
    assert BuildSettings(keep_fp32="head").keep_fp32 == BuildSettings(keep_fp32=("head",)).keep_fp32 == ["head"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "in the file of `exclude_int8`, but got FileNotFoundError"),
        ("{", "JSONDecodeError"),
        ('{"modules": ["a"]}', "KeyError: 'nodes'"),
        ('{"nodes": "a"}', "str where the names should be"),
        ("[1]", "list where the names should be"),
    ],
)
def test_rejects_files_without_names(tmp_path, content, message):
    file = tmp_path / "names.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_names("exclude_int8", str(file))


@pytest.mark.parametrize("command", ["ssh orin python3", ["ssh", ""]])
def test_rejects_a_command_that_is_no_list_of_words(command):
    with pytest.raises(ValueError, match="Expected argument `command` to be a list of words"):
        BuildSettings(command=command)
