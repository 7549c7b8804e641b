"""The page of the helpers: its code runs, and its table of metrics is what a parity pass has."""

import re
from pathlib import Path

import lightning_robust.decoding as decoding

PAGE = (Path(decoding.__file__).parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_python_runs_and_metrics_are_those_of_the_table(tmp_path, monkeypatch):
    """The blocks go on from one another; the last one has boxes and a mask, and labels of them were not given."""
    monkeypatch.chdir(tmp_path)
    assert len(BLOCKS) == 3
    names = {}
    for block in BLOCKS:
        assert len(re.search(r"class .*?(?=\n\n\n)", block, re.DOTALL)[0].splitlines()) <= 20
        exec(block, names)
    rows = re.findall(r"^\| (`(?:boxes|mask)_.*?) \|", PAGE, re.MULTILINE)
    told = {name for row in rows for name in re.findall(r"`((?:boxes|mask)_\w+)`", row)}
    by_labels = {"boxes_map", "boxes_map_worse", "mask_miou", "mask_miou_worse"}
    points = re.compile(r"_(mean|p99|max|bias|lost)$")
    stems = {points.sub("", name) for name in names["found"] if name.startswith(("boxes", "mask"))}
    assert told - by_labels == (stems - {"boxes"}) | {"boxes_lost"}


def test_every_helper_is_named():
    public = {name for name in vars(decoding) if name[0] != "_" and callable(getattr(decoding, name))}
    assert {name for name in public if f"`{name}" not in PAGE} == {"Alignment", "Decoded"}
