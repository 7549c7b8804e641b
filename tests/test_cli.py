import subprocess
import sys

import pytest
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback

from lightning_robust import DeploymentParityCallback
from lightning_robust import cli as cli_module
from lightning_robust.cli import RobustCLI, Slot

MODEL = ["--seed_everything=0", "--model=tests.boring.Boring"]


def parse(*args):
    return RobustCLI(args=[*MODEL, *args], run=False)


def techniques(cli):
    return [c for c in cli.trainer.callbacks if isinstance(c, (DeploymentParityCallback, Alpha, Beta))]


class Alpha(Callback):
    def __init__(self, strength: float = 1.0):
        self.strength = strength


class Beta(Callback):
    def __init__(self, strength: float = 2.0):
        self.strength = strength


def write(folder, name, **content):
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return f"--config={path}"


def test_default_and_false_are_off():
    assert techniques(parse()) == []
    assert techniques(parse("--deployment_parity=false")) == []


def test_true_and_mapping_and_class_path(tmp_path):
    (on,) = techniques(parse("--deployment_parity=true"))
    assert on.every_n_epochs == 1
    (mapped,) = techniques(
        parse(write(tmp_path, "a", deployment_parity={"every_n_epochs": 4, "targets": ["torch-bf16"]}))
    )
    assert (mapped.every_n_epochs, mapped.targets) == (4, ["torch-bf16"])
    path = "lightning_robust.DeploymentParityCallback"
    full = {"class_path": path, "init_args": {"num_samples": 3}}
    (spelled,) = techniques(parse(write(tmp_path, "b", deployment_parity=full)))
    assert spelled.num_samples == 3


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_keys_compose_over_files_in_any_order(tmp_path, monkeypatch, order):
    monkeypatch.setattr(cli_module, "TECHNIQUES", (Slot("alpha", Alpha), Slot("beta", Beta)))
    files = {"a": write(tmp_path, "a", alpha={"strength": 3.0}), "b": write(tmp_path, "b", beta=True)}
    made = techniques(parse(*(files[name] for name in order)))
    assert [(type(c), c.strength) for c in made] == [(Alpha, 3.0), (Beta, 2.0)]


def test_later_values_refine_and_switch_off(tmp_path):
    first = write(tmp_path, "a", deployment_parity={"every_n_epochs": 4, "num_samples": 8})
    (refined,) = techniques(parse(first, "--deployment_parity.every_n_epochs=2"))
    assert (refined.every_n_epochs, refined.num_samples) == (2, 8)
    assert techniques(parse(first, "--deployment_parity=false")) == []
    (edited,) = techniques(parse("--deployment_parity=true", "--deployment_parity.num_samples=5"))
    assert edited.num_samples == 5


def test_saved_config_is_complete_and_reloads_equal(tmp_path):
    cli = parse("--deployment_parity=true", "--deployment_parity.tolerance={emulated-fp16: 0.01}")
    saved = tmp_path / "saved.yaml"
    saved.write_text(cli.parser.dump(cli.config, skip_none=False))
    stored = yaml.safe_load(saved.read_text())["deployment_parity"]
    assert stored["init_args"]["num_samples"] == 16
    assert stored["init_args"]["tolerance"] == {"emulated-fp16": 0.01}
    again = RobustCLI(args=[f"--config={saved}"], run=False)
    assert again.config.deployment_parity == cli.config.deployment_parity


def test_trainer_callbacks_work_too_but_not_twice(tmp_path):
    listed = {
        "callbacks": [{"class_path": "lightning_robust.DeploymentParityCallback", "init_args": {"num_samples": 3}}]
    }
    path = write(tmp_path, "a", trainer=listed)
    (callback,) = techniques(parse(path))
    assert callback.num_samples == 3
    with pytest.raises(MisconfigurationException, match=r"`deployment_parity` and under `trainer.callbacks`"):
        parse(path, "--deployment_parity=true")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--deploymnet_parity=true"], "Did you mean 'deployment_parity'?"),
        (["--deployment_parity.every_epochs=3"], "Did you mean 'every_n_epochs'?"),
        (["--trainer.max_epohs=3"], "Did you mean 'max_epochs'?"),
    ],
)
def test_a_misspelt_key_is_one_readable_line(capsys, arguments, complaint):
    with pytest.raises(SystemExit) as stopped:
        parse(*arguments)
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in lines if not line.startswith("Seed")]) == 2
    assert complaint in lines[-2]


def test_a_misspelt_key_in_a_file_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse(write(tmp_path, "a", deployment_parity={"num_sample": 3}))
    assert "num_sample" in capsys.readouterr().err


def test_rejects_wrong_value(capsys):
    with pytest.raises(SystemExit):
        parse("--deployment_parity.num_samples=many")
    assert "many" in capsys.readouterr().err


def test_the_command_and_the_module_are_one():
    """`python -m lightning_robust fit --help` lists the technique with its arguments."""
    command = [sys.executable, "-W", "ignore", "-m", "lightning_robust", "fit", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "--deployment_parity" in text
