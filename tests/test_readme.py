"""The README's code and commands run, and what it points to exists."""

import contextlib
import inspect
import re
import shlex
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from lightning_robust.callbacks import DeploymentParityCallback
from lightning_robust.cli import main
from lightning_robust.commands.sweep import sweep
from lightning_robust.demo.fashion_mnist.idx_files import DEBIAN
from lightning_robust.deployment.engines import TARGETS
from lightning_robust.deployment.graph.export import export
from lightning_robust.deployment.numerics.convert import to_half
from lightning_robust.deployment.pixels.catalogue import CATALOGUE, perturbations
from lightning_robust.deployment.pixels.names import FAMILIES

from .deployment.recordings import save_video, stripes

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
LINES = re.findall(r"^    lightning-robust (.*)$", TEXT, re.MULTILINE)
# a demo that takes seconds
DEMO = [
    *("--trainer.max_epochs=2", "--deployment_parity.targets=[emulated-fp16]", "--deployment_parity.num_samples=4"),
    *("--deployment_parity.perturbations=none", "--deployment_parity.localise=false"),
    *("--data.height=64", "--data.width=96", "--data.num_train=64", "--data.num_val=8", "--data.batch_size=16"),
    *("--model.height=64", "--model.width=96", "--model.channels=8", "--model.hidden=16"),
]
OWN_DATA = """
class Frames(pl.LightningDataModule):
    def train_dataloader(self):
        return torch.utils.data.DataLoader({}, batch_size=16)

    val_dataloader = train_dataloader
"""
SGD = ["--trainer.max_epochs=1", "--data.num_train=256"]
# so that it takes seconds
QUICK = {
    "fit": ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--deployment_parity.targets=[emulated-fp16]"],
    "parity": ["--targets=[emulated-fp16]", "--samples=4", "--perturbations=none"],
    "golden": ["--samples=4"],
    "replay": ["--targets=[torch-bf16]", "--perturbations=[bgr]"],
    "soup": ["--trainer.limit_val_batches=1", "--trainer.accelerator=cpu", "--bn_samples=64"],
}

VERDICTS = {"fingerprint": 1}  # pictures that differ


def test_blocks_are_found():
    assert [language for language, _ in BLOCKS] == ["python", "yaml", "python", "python"]


@pytest.mark.parametrize("index", [0, 2, 3])
def test_python_runs(index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(BLOCKS[index][1], names)
    assert {"parity", "report", "module"} & names.keys()


def test_yaml_is_understood():
    settings = yaml.safe_load(BLOCKS[1][1])["deployment_parity"]
    assert DeploymentParityCallback(**settings).on_violation == "warn"


def test_links_and_files_exist():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if not link.startswith("http")]
    assert len(links) >= 3
    assert all((ROOT / link).exists() for link in links)
    assert "@" not in TEXT


def test_every_target_is_in_the_table():
    table = re.findall(r"^\| (`.+?) \|", TEXT, re.MULTILINE)
    named = set()
    for cell in table:
        stem = ""
        for name in re.findall(r"`([^`]+)`", cell):
            stem = name.split("-")[0] or stem
            named.add(name if not name.startswith("-") else stem + name)
    assert named >= set(TARGETS)
    assert f"{len(CATALOGUE)} in eleven families, {len(perturbations())} of them" in TEXT
    assert len(FAMILIES) == 11
    assert all(f"`{family}`" in TEXT for family in FAMILIES)


def fit(*arguments):
    """A training as it is written somewhere, with less to do."""
    quick = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=1"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*will be overridden by")
        main(["fit", *arguments, *quick, "--trainer.enable_model_summary=false"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the README's commands are typed: what make demo and others leave, and files of the deployed side."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "configs").symlink_to(ROOT / "configs")
    module, rest = BLOCKS[0][1].split("frames = ")
    (folder / "my.py").write_text(f"{module}{OWN_DATA.format(rest.splitlines()[0])}")
    with contextlib.chdir(folder):
        (demo,) = re.findall(r"lightning-robust fit (.*) \$\(DEMO_ARGS\)", (ROOT / "Makefile").read_text())
        fit(*shlex.split(demo), *DEMO)
        for seed in range(2 if DEBIAN.is_dir() else 0):
            fit("-c", "configs/fashion_mnist_sgd.yaml", f"--seed_everything={seed}", *SGD)
    pictures = torch.rand(8, 3, 32, 32)
    np.save(folder / "train.npy", pictures.numpy())
    np.save(folder / "car.npy", 0.9 * pictures.flip(1).numpy())
    np.savez(folder / "samples.npz", input=pictures.numpy())
    exported = export(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten()).eval(), (pictures,))
    (folder / "model.onnx").write_bytes(exported.model.SerializeToString())
    (folder / "model_fp16.onnx").write_bytes(to_half(exported.model).SerializeToString())
    save_video(folder / "drive.mp4", stripes(range(30, 54, 4), range(110, 134, 4), height=90, width=160))
    return folder


def test_the_demo_leaves_the_names_that_are_documented(folder):
    run = folder / "runs" / "lanes" / "version_0"
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    named = {line.split("--run ")[1].split()[0] for line in LINES if "--run " in line}
    assert named == {"runs/lanes/version_0"}
    assert not re.search(r"\S+/\d+\.ckpt", TEXT)


@pytest.mark.filterwarnings("ignore::lightning_robust.NoEffectWarning", "ignore:.*will be overridden by")
def test_commands_run(folder, monkeypatch, capsys):
    """In their order, as they are written, with less to do; what is for a cluster is run in test_sweep.py."""
    monkeypatch.chdir(folder)
    said = {}
    for line in LINES:
        name, *arguments = shlex.split(line, comments=True)
        if name == "sweep":
            assert set(re.findall(r"--(\w+)", line)) <= set(inspect.signature(sweep).parameters)
            continue
        if name == "soup" and not DEBIAN.is_dir():
            continue
        if "--check" in arguments:  # the car dumps golden.npz with other outputs
            with np.load("golden.npz") as golden:
                np.savez("car.npz", **{key: golden[key] + 0.125 for key in golden if key.startswith("output/")})
        code = None
        try:
            main([name, *arguments, *QUICK.get(name, [])])
        except SystemExit as stop:
            code = stop.code
        assert code == VERDICTS.get(name), line
        said[line] = capsys.readouterr().out
    assert "the deployed side feeds channels as BGR" in next(out for line, out in said.items() if "fingerprint" in line)
    settings = yaml.safe_load((folder / "preprocessing.yaml").read_text())["model"]
    assert settings["preprocessing_entries"] == ["brightness"]
    assert settings["preprocessing_ranges"] == {"gain": [0.85, 1.0]}
    assert "come from the engine" in next(out for line, out in said.items() if "--check" in line)
    assert sum("parity.html" in out for out in said.values()) == 5
    assert list((folder / "lightning_logs").rglob("parity.html")), "of the module in my.py"
    assert "emulated-fp16/lateral_px" in (folder / "parity.yaml").read_text()
    assert "verdict: within parity.yaml" in next(out for line, out in said.items() if "--junit" in line)
    assert re.search(r"deployed-fp16 .* measured", next(out for line, out in said.items() if "--deployed" in line))
    written = {path.name for path in (folder / "precision").iterdir()}
    assert written >= {"model_fp16.onnx", "model_int8.onnx", "keep_fp32.json", "exclude_int8.json", "precision.html"}
    assert "frames, 0 skipped" in next(out for line, out in said.items() if line.startswith("replay"))
    assert not DEBIAN.is_dir() or (folder / "soup" / "soup.json").is_file()
