"""Commands on the folder of a run: its files, and what its own configuration says to them."""

import json

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from lightning_robust.cli import main

from ..boring import make_trainer

HERE = "tests.commands.test_run_option"
PARITY = "lightning_robust.DeploymentParityCallback"
OWN = {"input_key": "front", "decode": "angle", "mean": 0.25, "std": 0.5}
CHEAP = ["--targets=[emulated-fp16]", "--perturbations=[gamma_09]", "--samples=4"]


class Steering(pl.LightningModule):
    """What it takes is not called as the parts of a batch, and its reading is not called decode."""

    def __init__(self, width: int = 4):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Conv2d(3, width, 3), torch.nn.Flatten(), torch.nn.Linear(width * 36, 2))

    def forward(self, picture):
        return self.net(picture)

    def angle(self, outputs):
        return {"degrees": outputs[:, 0]}

    def training_step(self, batch, _):
        return self(batch["front"]).square().mean()

    def validation_step(self, batch, _):
        self.log("val/loss", self(batch["front"]).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Drives(pl.LightningDataModule):
    def samples(self):
        generator = torch.Generator().manual_seed(0)
        pictures = torch.rand(8, 2, 3, 8, 8, generator=generator)
        return DataLoader([{"rear": rear, "front": front} for rear, front in pictures], 4)

    train_dataloader = val_dataloader = samples


def configuration(**keys):
    return {"model": {"class_path": f"{HERE}.Steering"}, "data": {"class_path": f"{HERE}.Drives"}, **keys}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that trained three epochs and kept the best and the last."""
    folder = tmp_path_factory.mktemp("runs") / "steering" / "version_0"
    torch.manual_seed(0)
    keepers = [
        ModelCheckpoint(folder / "checkpoints", "best", "val/loss", auto_insert_metric_name=False),
        ModelCheckpoint(folder / "checkpoints", "last"),
    ]
    trainer = make_trainer(folder, keepers, enable_checkpointing=True, max_epochs=3)
    trainer.fit(Steering(), datamodule=Drives())
    (folder / "config.yaml").write_text(yaml.safe_dump(configuration(deployment_parity=OWN)))
    return folder


SLOTS = {
    "class": {"deployment_parity": {"class_path": PARITY, "init_args": OWN}},
    "list": {"deployment_parity": False, "trainer": {"callbacks": [{"class_path": PARITY, "init_args": OWN}]}},
}


@pytest.mark.parametrize("slot", SLOTS)
def test_parity_takes_what_the_run_says(run, tmp_path, capsys, slot):
    config = tmp_path / "own.yaml"
    config.write_text(yaml.safe_dump(configuration(**SLOTS[slot])))
    main(["parity", f"--run={run}", f"--config={config}", f"--output={tmp_path / 'out'}", *CHEAP])
    said = capsys.readouterr().out
    assert said.startswith(f"Checkpoint: {run}/checkpoints/best.ckpt (best val/loss ")
    assert f"), configuration: {config}\n" in said
    report = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert report["unit"] == "degrees_p99"
    assert not any("not known" in note for note in report["notes"])


def test_the_command_line_wins(run, tmp_path):
    main(["parity", f"--run={run}", "--decode=null", f"--output={tmp_path / 'out'}", *CHEAP])
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["unit"] == "rel_l2"


def test_a_run_that_says_nothing_gets_the_usual(run, tmp_path, capsys):
    config = tmp_path / "own.yaml"
    config.write_text(yaml.safe_dump(configuration(deployment_parity=True)))
    with pytest.raises(SystemExit) as stop:
        main(["golden", f"--run={run}", f"--config={config}", f"--output={tmp_path / 'golden.npz'}"])
    assert stop.value.code == 2
    assert "input_key" in capsys.readouterr().err
    main(["golden", f"--run={run}", f"--config={config}", f"--output={tmp_path / 'golden.npz'}", "--input_key=front"])
    assert (tmp_path / "golden.npz").is_file()


@pytest.mark.parametrize(("ckpt", "name"), [(None, "best.ckpt"), ("last", "last.ckpt"), ("best.ckpt", "best.ckpt")])
def test_golden_of_the_chosen_checkpoint(run, tmp_path, capsys, ckpt, name):
    """Its outputs are those of the weights in that file, on the part of the batch that the run names."""
    which = [] if ckpt is None else [f"--ckpt={ckpt}"]
    output = tmp_path / "golden.npz"
    main(["golden", f"--run={run.parent}", *which, f"--output={output}", "--samples=4"])
    assert f"Checkpoint: {run}/checkpoints/{name}" in capsys.readouterr().out
    module = Steering()
    module.load_state_dict(torch.load(run / "checkpoints" / name, weights_only=True)["state_dict"])
    front = next(iter(Drives().val_dataloader()))["front"]
    with np.load(output) as content, torch.no_grad():
        (name,) = (name for name in content if name.startswith("input/"))
        assert np.array_equal(content[name], front.numpy())
        assert np.allclose(content["output/output"], module(front).numpy(), atol=1e-6)


def test_precision_of_a_run(run, tmp_path, capsys):
    main(["precision", f"--run={run}", "--budget=1", "--samples=4", f"--output={tmp_path / 'out'}"])
    said = capsys.readouterr().out
    assert f"Checkpoint: {run}/checkpoints/best.ckpt" in said
    assert "degrees" in said
    assert (tmp_path / "out" / "best_fp16.onnx").is_file()


def test_weights_alone_need_a_configuration_and_nothing_else(run, tmp_path):
    path = tmp_path / "weights.safetensors"
    weights = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    save_file(weights, path)
    main(["parity", f"--ckpt={path}", f"--config={run / 'config.yaml'}", f"--output={tmp_path / 'out'}", *CHEAP])
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["unit"] == "degrees_p99"


REFUSED = {
    "no folder": (["parity", "--run=/nowhere"], "Expected the folder of a run at /nowhere"),
    "no such name": (["golden", "--run=RUN", "--ckpt=beast"], "but got 'beast'. There are: best.ckpt, last.ckpt."),
    "run and onnx": (
        ["parity", "--run=RUN", "--onnx=x.onnx"],
        "one of --run, --ckpt and --onnx, but got two.",
    ),
    "nothing": (["golden"], "Expected --run or --ckpt, but got neither."),
    "nothing for precision": (
        ["precision", "--budget=1"],
        "Expected an ONNX file, a checkpoint or --run, but",
    ),
    "inputs with a run": (
        ["precision", "--run=RUN", "--budget=1", "--shapes={}"],
        "Expected --inputs and --shapes",
    ),
    "missing config": (["parity", "--run=RUN", "--config=/no.yaml"], "Expected a configuration at /no.yaml"),
    "garbage config": (["golden", "--run=RUN", "--config=GARBAGE"], "Expected YAML in GARBAGE"),
    "binary config": (["precision", "--run=RUN", "--budget=1", "--config=BINARY"], "Expected YAML in BINARY"),
    "another's config": (["parity", "--run=RUN", "--config=OTHER"], "do not fit BoringModel of OTHER"),
    "foreign pickle": (["golden", "--ckpt=EVIL", "--config=RUN/config.yaml"], "EVIL, but it holds posix.system"),
}


class System:
    def __reduce__(self):
        import os

        return os.system, ("true",)


@pytest.mark.parametrize("kind", REFUSED)
def test_refusals_are_one_line_that_names_the_file(run, tmp_path, monkeypatch, capsys, kind):
    arguments, told = REFUSED[kind]
    places = {"RUN": str(run)} | {name: str(tmp_path / name) for name in ("GARBAGE", "BINARY", "OTHER", "EVIL")}
    (tmp_path / "GARBAGE").write_text("a: [")
    (tmp_path / "BINARY").write_bytes(b"\x80\x02\xff")
    model = "lightning.pytorch.demos.boring_classes.BoringModel"
    (tmp_path / "OTHER").write_text(yaml.safe_dump(configuration() | {"model": {"class_path": model}}))
    torch.save({"state_dict": {}, "x": System()}, tmp_path / "EVIL")
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
        told = told.replace(name, place)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "weights_only" not in said
