"""The files of a run, found in its folder."""

import re
import subprocess
import sys

import pytest
import torch
import yaml

from lightning_robust.harness.run_folder import find_config, locate_run, parity_arguments, with_run_arguments

PARITY = "lightning_robust.DeploymentParityCallback"


def make_run(folder, *names, config=True):
    (folder / "checkpoints").mkdir(parents=True)
    for name in names:
        torch.save({"state_dict": {}}, folder / "checkpoints" / name)
    if config:
        (folder / "config.yaml").write_text("model: {class_path: tests.boring.Boring}")
    return folder


def test_a_folder_and_a_file(tmp_path):
    run = make_run(tmp_path / "version_0", "2.ckpt")
    checkpoint = run / "checkpoints" / "2.ckpt"
    files = locate_run(str(run), None)
    assert files == (str(checkpoint), str(run / "config.yaml"), "the only one")
    assert str(files) == f"Checkpoint: {checkpoint} (the only one), configuration: {run / 'config.yaml'}"
    assert locate_run(str(run / "checkpoints"), None) == files
    assert locate_run(None, str(checkpoint)) == (str(checkpoint), str(run / "config.yaml"), "")
    (tmp_path / "other.yaml").write_text("a: 1")
    assert locate_run(str(run), "2", str(tmp_path / "other.yaml")).config == str(tmp_path / "other.yaml")


def test_the_newest_version_with_checkpoints(tmp_path):
    for number in (0, 2, 10):
        make_run(tmp_path / "runs" / "lanes" / f"version_{number}", "2.ckpt")
    make_run(tmp_path / "runs" / "lanes" / "version_11")
    newest = str(tmp_path / "runs" / "lanes" / "version_10" / "checkpoints" / "2.ckpt")
    assert locate_run(str(tmp_path / "runs" / "lanes"), None).checkpoint == newest
    assert locate_run(str(tmp_path / "runs"), None).checkpoint == newest
    (tmp_path / "runs" / "loop").symlink_to(tmp_path)
    make_run(tmp_path / "runs" / "other" / "version_0", "2.ckpt")
    told = "but .*runs has lanes/version_0, lanes/version_10, lanes/version_2, other/version_0. Name one."
    with pytest.raises(ValueError, match=told):
        locate_run(str(tmp_path / "runs"), None)


def test_a_stray_configuration_does_not_decide(tmp_path):
    """The run's own folder comes first; one above is taken where it has none, and the line says so."""
    run = make_run(tmp_path / "runs" / "version_0", "2.ckpt")
    for place in (tmp_path / "runs", tmp_path, run / "checkpoints"):
        (place / "config.yaml").write_text("stray: true")
    assert find_config(run / "checkpoints" / "2.ckpt") == run / "config.yaml"
    (run / "config.yaml").unlink()
    (run / "checkpoints" / "config.yaml").unlink()
    files = locate_run(str(run), None)
    assert str(files).endswith(f"configuration: {tmp_path / 'runs' / 'config.yaml'}")
    (tmp_path / "runs" / "config.yaml").unlink()
    with pytest.raises(
        ValueError, match=r"in one of the three folders above it, but found none\. Name it with --config"
    ):
        locate_run(str(run), None)


MISTAKES = {
    "nothing": ((None, None), "Expected --run or --ckpt, but got neither."),
    "no folder": (("absent", None), "Expected the folder of a run at absent, but there is no such folder."),
    "a file": (("run/config.yaml", None), "but it is a file. Give a checkpoint with --ckpt."),
    "no checkpoint": (("run", None), "Expected checkpoints in run/checkpoints, but there are none"),
    "another folder": (("pictures", None), "but pictures holds a.png. Give another folder"),
    "an empty folder": (("empty", None), "but empty is empty. Give another folder"),
    "a folder for a checkpoint": ((None, "run"), "but it is a folder. For the folder of a run give --run."),
    "no such checkpoint": ((None, "run/x.ckpt"), "Expected a checkpoint at run/x.ckpt, but there is no such file."),
    "no such configuration": (
        (None, "y/1.ckpt", "no.yaml"),
        "Expected a configuration at no.yaml, but there is no",
    ),
    "no configuration": ((None, "y/1.ckpt"), "but found none. Name it with --config."),
}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run")
    for name in ("pictures", "empty", "y"):
        (tmp_path / name).mkdir()
    (tmp_path / "pictures" / "a.png").write_text("")
    (tmp_path / "y" / "1.ckpt").write_text("")


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes_are_one_line(folders, kind):
    given, told = MISTAKES[kind]
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(told)) as caught:
        locate_run(*given)
    assert "\n" not in str(caught.value)


def test_answers_without_torch(tmp_path):
    """All that needs no look into a checkpoint."""
    make_run(tmp_path / "run", "2.ckpt")
    code = (
        "import sys; from lightning_robust.harness.run_folder import locate_run\n"
        "locate_run(sys.argv[1], None); locate_run(sys.argv[1], '2')\n"
        "try: locate_run('/nowhere', None)\n"
        "except FileNotFoundError: print(sorted({'torch', 'lightning'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"deployment_parity": True}, {}),
        ({"deployment_parity": False}, {}),
        ({}, {}),
        ({"deployment_parity": {"input_key": "image", "every_n_epochs": 2}}, {"input_key": "image"}),
        (
            {"deployment_parity": {"class_path": PARITY, "init_args": {"decode": None, "mean": [0.5], "std": [0.25]}}},
            {"decode": None, "mean": [0.5], "std": [0.25]},
        ),
        ({"trainer": {"callbacks": [{"class_path": "x.Y"}, {"class_path": PARITY}]}}, {}),
        (
            {
                "deployment_parity": False,
                "trainer": {"callbacks": [{"class_path": PARITY, "init_args": {"input_key": 1}}]},
            },
            {"input_key": 1},
        ),
        ({"trainer": {"callbacks": {"class_path": PARITY, "init_args": {"decode": "read"}}}}, {"decode": "read"}),
    ],
)
def test_what_a_run_says_to_parity(tmp_path, content, expected):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    assert parity_arguments(path) == expected


def test_the_command_line_wins(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"deployment_parity": {"input_key": "image", "decode": "read", "mean": 0.5}}))
    nothing = {"input_key": None, "decode": "auto", "mean": None, "std": None}
    assert with_run_arguments(path, **nothing) == {"input_key": "image", "decode": "read", "mean": 0.5, "std": None}
    given = {"input_key": 0, "decode": None, "mean": 0.0, "std": 1.0}
    assert with_run_arguments(path, **given) == given | {"decode": None}
    path.write_text("{}")
    assert with_run_arguments(path, **nothing)["decode"] == "decode"
    path.write_text("deployment_parity: {class_path: x, init_args: [1]}")
    with pytest.raises(ValueError, match=r"Expected arguments as keys and values in .*config\.yaml, but got \[1\]"):
        parity_arguments(path)
