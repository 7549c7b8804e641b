"""Commands and YAML of README and pages run as they are written, on files that the demo wrote, with less to do."""

import contextlib
import inspect
import re
import shlex
import sys
import tomllib
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from lightning_robust.cli import main
from lightning_robust.commands.choose import choose
from lightning_robust.commands.sweep import sweep
from lightning_robust.demo.fashion_mnist.idx_files import DEBIAN
from lightning_robust.deployment.graph.export import export
from lightning_robust.deployment.numerics.convert import to_half

from ..deployment.recordings import save_video, stripes
from .pages import PAGES, ROOT, blocks, lines, pages_with

MAKEFILE = (ROOT / "Makefile").read_text()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
FIT = [
    *("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
    *("--trainer.limit_val_batches=1", "--trainer.limit_train_batches=2"),
]
LANES = [
    *("--data.height=64", "--data.width=96", "--data.num_train=64", "--data.num_val=8", "--data.batch_size=16"),
    *("--model.height=64", "--model.width=96", "--model.channels=8", "--model.hidden=16"),
]
PARITY = ["--deployment_parity.targets=[emulated-fp16]", "--deployment_parity.num_samples=4"]
SHORT = ["--deployment_parity.perturbations=none", "--deployment_parity.localise=false"]  # which leaves out the page
QUICK = {
    "parity": ["--targets=[emulated-fp16]", "--samples=4", "--perturbations=none"],
    "golden": ["--samples=4"],
    "replay": ["--targets=[torch-bf16]", "--perturbations=[bgr]"],
    "soup": ["--trainer.limit_val_batches=1", "--trainer.accelerator=cpu", "--bn_samples=64"],
}
ON_RAY = {"choose": choose, "sweep": sweep}
VERDICTS = {"fingerprint": 1}  # pictures that differ
OWN_DATA = """
class Frames(pl.LightningDataModule):
    def train_dataloader(self):
        return torch.utils.data.DataLoader({}, batch_size=16)

    val_dataloader = train_dataloader
"""


def fit(*arguments, epochs=1):
    """A training as it is written somewhere, with less to do."""
    quick = [*FIT, f"--trainer.max_epochs={epochs}"]
    if "configs/lanes.yaml" in arguments:
        quick += LANES
    files = [arguments[place + 1] for place, word in enumerate(arguments) if word == "-c"]
    if any("deployment_parity" in text for text in [*arguments, *(Path(file).read_text() for file in files)]):
        quick += PARITY + (SHORT if "configs/lanes.yaml" in arguments else [])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*will be overridden by")
        main(["fit", *arguments, *quick])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands are typed: what make demo and others leave, and files of the deployed side."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "configs").symlink_to(ROOT / "configs")
    with contextlib.chdir(folder):
        (demo,) = re.findall(r"lightning-robust fit (.*) \$\(DEMO_ARGS\)", MAKEFILE)
        fit(*shlex.split(demo), epochs=2)
        for seed in range(2 if DEBIAN.is_dir() else 0):
            fit("-c", "configs/fashion_mnist_sgd.yaml", f"--seed_everything={seed}", "--data.num_train=256")
    pictures = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    np.save(folder / "train.npy", pictures.numpy())
    np.save(folder / "deployed.npy", 0.9 * pictures.flip(1).numpy())
    np.savez(folder / "samples.npz", input=pictures.numpy())
    exported = export(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten()).eval(), (pictures,))
    (folder / "model.onnx").write_bytes(exported.model.SerializeToString())
    (folder / "model_fp16.onnx").write_bytes(to_half(exported.model).SerializeToString())
    save_video(folder / "drive.mp4", stripes(range(30, 54, 4), range(110, 134, 4), height=90, width=160))
    return folder


def with_own_module(page):
    """The page's first module as my.py in the working folder, and a data module of its samples beside it."""
    module, rest = blocks(page, "python")[0].split("frames = ")
    Path("my.py").write_text(f"{module}{OWN_DATA.format(rest.splitlines()[0])}")
    sys.modules.pop("my", None)


def lightning_robust(page, name, *arguments):
    """Run one command in this process; its status, None where it only returned."""
    if (
        name in ON_RAY
    ):  # many trainings; their files are built in test_configs.py, others run beside the commands' tests
        given = {word[2:].split("=")[0] for word in arguments if word.startswith("--")}
        assert given <= set(inspect.signature(ON_RAY[name]).parameters)
        assert Path(arguments[0]).is_file()
        return None
    if name == "soup" and not DEBIAN.is_dir():
        return None
    if "my.Steering" in arguments:
        with_own_module(page)
    if "--check" in arguments:  # the deployed side dumps golden.npz with other outputs
        with np.load("golden.npz") as golden:
            np.savez("deployed.npz", **{key: golden[key] + 0.125 for key in golden if key.startswith("output/")})
    try:
        if name == "fit":
            fit(*arguments)
        else:
            main([name, *arguments, *QUICK.get(name, [])])
    except SystemExit as stop:
        return stop.code
    return None


def test_demo_leaves_the_names_that_are_documented(folder):
    run = folder / "runs" / "lanes" / "version_0"
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    named = {line.split("--run ")[1].split()[0] for page in PAGES for line in lines(page) if "--run " in line}
    assert named == {"runs/lanes/version_0"}
    assert not any(re.search(r"\S+/\d+\.ckpt", text) for text in PAGES.values())


def emitted(output):
    """The settings that train against what was planted: a gain of 0.9 beside BGR."""
    settings = yaml.safe_load(Path("preprocessing.yaml").read_text())["model"]
    return settings["preprocessing_entries"] == ["brightness"] and settings["preprocessing_ranges"] == {
        "gain": [0.85, 1.0]
    }


SAYS = {  # part of a command -> what its output or its files have to say
    "robust parity": lambda output: "parity.html" in output,
    "robust precision": lambda output: Path("precision/precision.html").is_file(),
    "robust fingerprint": lambda output: "the deployed side feeds channels as BGR" in output,
    "--check": lambda output: "come from the engine" in output,
    "--junit": lambda output: "verdict: within parity.yaml" in output,
    "--deployed ": lambda output: re.search(r"deployed-fp16 .* measured", output),
    "robust replay": lambda output: "frames, 0 skipped" in output,
    "--emit": emitted,
    "my.Steering": lambda output: list(Path("lightning_logs").rglob("parity.html")),
}


def of_other_programs(line, program, arguments):
    """What pip and make are asked for is there to install and to make, and scripts for several machines exist."""
    if program == "pip":
        extras = {name for names in re.findall(r"\[([\w,]+)\]", line) for name in names.split(",")}
        return extras <= {*EXTRAS}
    if program == "make":
        return re.search(rf"^{arguments[0]}:", MAKEFILE, re.MULTILINE)
    return all((ROOT / script).exists() for script in re.findall(r"configs/cluster/\w+\.sh", line) or ["missing"])


@pytest.mark.filterwarnings("ignore::lightning_robust.NoEffectWarning", "ignore:.*will be overridden by")
@pytest.mark.parametrize("page", pages_with("sh"))
def test_commands_run(page, folder, monkeypatch, capsys):
    """In their order, none with the budget of another page."""
    monkeypatch.chdir(folder)
    Path("parity.yaml").unlink(missing_ok=True)
    for line in lines(page):
        program, *arguments = shlex.split(line, comments=True)
        if program != "lightning-robust":
            assert of_other_programs(line, program, arguments), line
            continue
        status = lightning_robust(page, *arguments)
        assert status == VERDICTS.get(arguments[0], 0 if "--help" in arguments else None), line
        output = capsys.readouterr().out
        assert [part for part, says in SAYS.items() if part in line and not says(output)] == []


YAML = [(page, place) for page in pages_with("yaml") for place in range(len(blocks(page, "yaml")))]


@pytest.mark.filterwarnings("ignore::lightning_robust.NoEffectWarning")
@pytest.mark.parametrize(("page", "place"), YAML, ids=lambda value: str(value))
def test_yaml_runs(page, place, folder, monkeypatch):
    """By the command in its first line."""
    monkeypatch.chdir(folder)
    text = blocks(page, "yaml")[place]
    program, name, *arguments = shlex.split(text.splitlines()[0].removeprefix("# "))
    assert (program, name) == ("lightning-robust", "fit")
    assert "this.yaml" in arguments
    (folder / "this.yaml").write_text(text)
    fit(*arguments)
