"""`replay --cases`: the exit status, the page and its JSON, what was measured before, and what is refused."""

import json
from pathlib import Path

import pytest
import yaml

from lightning_robust.cli import main

from ..deployment.recordings import save_pictures, stripes
from .test_replay import run  # noqa: F401 - a fixture

FAST = ["--targets=[torch-bf16]", "--keep_fp32=[]"]


@pytest.fixture
def book(tmp_path):
    """One case that bf16 keeps, for a line moves by less than the frame is wide."""
    save_pictures(tmp_path / "drive", stripes(range(30, 54, 4), range(110, 134, 4), height=90, width=160))
    (tmp_path / "cases").mkdir()
    write(tmp_path / "cases", "calm", {"torch-bf16/p99": 960})
    return tmp_path / "cases"


def write(book, name, bounds, **more):
    content = {"why": f"{name} went wrong.", "recording": "../drive", "bounds": bounds, **more}
    (book / f"{name}.yaml").write_text(yaml.safe_dump(content))


def judge(run, book, *more):  # noqa: F811
    """The exit status."""
    options = [f"--ckpt={run / 'lanes.ckpt'}", f"--cases={book}", f"--output={book.parent / 'out'}", *FAST, *more]
    try:
        main(["replay", *options])
    except SystemExit as stop:
        return stop.code
    return 0


def written(book):
    return json.loads((book.parent / "out/cases.json").read_text())["cases"]


def test_within_beyond_and_not_measured(run, book, capsys):  # noqa: F811
    assert judge(run, book) == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("verdict: within the bounds of 1 case: calm: torch-bf16/p99_px is ")
    write(book, "missing", {"tensorrt-fp16/p99": 1})
    (book.parent / "broken.mp4").write_bytes(b"broken" * 99)
    write(book, "unreadable", {"lost": 1}, recording="../broken.mp4")
    assert judge(run, book) == 2
    said = capsys.readouterr()
    assert said.out.splitlines()[-1].startswith("verdict: could not measure missing: tensorrt-fp16/p99_px (it was not")
    assert "error" not in said.err
    write(book, "tight", {"p99": 0})
    assert judge(run, book) == 1
    assert list(written(book)) == ["tight", "missing", "unreadable", "calm"]


def test_before_is_a_checkpoint_or_the_json_of_an_earlier_run(run, book):  # noqa: F811
    """The same checkpoint twice gives the same numbers twice; a case that is new has none before."""
    assert judge(run, book, f"--before={run / 'lanes.ckpt'}") == 0
    both = written(book)["calm"]
    assert both["before"]["numbers"] == both["now"]["numbers"] != {}
    kept = (book.parent / "out/cases.json").rename(book.parent / "earlier.json")
    write(book, "new", {"p99": 960}, before={"p99": 3.5})
    assert judge(run, book, f"--before={kept}") == 0
    found = written(book)
    assert found["calm"]["before"] == both["now"]
    assert found["new"]["checks"][0]["before"] == 3.5


def test_perturbations_are_those_that_bounds_name(run, book):  # noqa: F811
    write(book, "swapped", {"bgr/max": 960, "torch-fp32/bend": 960})
    assert judge(run, book) == 0
    subjects = {name.split("/")[0] for name in written(book)["swapped"]["now"]["numbers"]}
    assert subjects == {"torch-fp32", "torch-bf16", "bgr"}
    subjects = {name.split("/")[0] for name in written(book)["calm"]["now"]["numbers"]}
    assert subjects == {"torch-fp32", "torch-bf16"}


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--stride=2"], "Expected `stride` and `limit` with --frames alone"),
        (["--limit=5"], "Expected `stride` and `limit` with --frames alone"),
        (["--frames=drive"], "--cases), but got both"),
        (["--before=nowhere.ckpt"], "Expected an earlier checkpoint or cases.json at nowhere.ckpt"),
        (["--output=/dev/null/x"], "/dev/null is no folder"),
        (["--batch_size=0"], "`batch_size` to be positive"),
    ],
)
def test_rejects_before_the_work(run, book, capsys, more, complaint):  # noqa: F811
    assert judge(run, book, *more) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert not (book.parent / "out").exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"recording": "../drvie"}, "bad.yaml: recording: expected"),
        ({"window": {"last": 6}}, "bad.yaml: window: expected frames out of 0 to 5, but got 0 to 6"),
        ({"windw": {}}, "Did you mean 'window'"),
    ],
)
def test_rejects_bad_cases_by_file_and_key(run, book, capsys, content, complaint):  # noqa: F811
    write(book, "bad", {"p99": 1}, **content)
    assert judge(run, book) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1
    assert not (book.parent / "out").exists()


def test_rejects_other_json_as_before(run, book, capsys, tmp_path):  # noqa: F811
    Path(tmp_path / "replay.json").write_text('{"runtimes": {}}')
    assert judge(run, book, f"--before={tmp_path / 'replay.json'}") == 2
    assert "Expected the cases.json of an earlier run" in capsys.readouterr().err
