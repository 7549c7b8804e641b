import subprocess
import sys
import warnings

import pytest
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

from lightning_robust import DeploymentParityCallback
from lightning_robust.cli import RobustCLI, Slot, main
from lightning_robust.cli import robust_cli as cli_module
from lightning_robust.cli import techniques as techniques_module

MODEL = ["--seed_everything=0", "--model=tests.boring.Boring"]


def parse(*args):
    return RobustCLI(args=[*MODEL, *args], run=False)


def techniques(cli):
    return [c for c in cli.trainer.callbacks if isinstance(c, (DeploymentParityCallback, Alpha, Beta))]


def set_techniques(monkeypatch, *slots):
    monkeypatch.setattr(techniques_module, "TECHNIQUES", slots)


class Alpha(Callback):
    def __init__(self, strength: float = 1.0):
        self.strength = strength


class Beta(Callback):
    def __init__(self, strength: float = 2.0):
        self.strength = strength


class Thorough(DeploymentParityCallback):
    def __init__(self, extra: int = 7, **kwargs):
        super().__init__(**kwargs)
        self.extra = extra


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


def test_a_subclass_by_class_path_is_edited_like_the_class(tmp_path):
    subclass = {"class_path": "tests.cli.test_robust_cli.Thorough", "init_args": {"num_samples": 3}}
    named = write(tmp_path, "a", deployment_parity=subclass)
    edits = ["--deployment_parity.extra=1", "--deployment_parity.every_n_epochs=2"]
    (made,) = techniques(parse(named, *edits))
    assert type(made).__name__ == "Thorough"
    assert (made.extra, made.num_samples, made.every_n_epochs) == (1, 3, 2)
    refined = write(tmp_path, "b", deployment_parity={"num_samples": 8})
    (made,) = techniques(parse(named, refined))
    assert (type(made).__name__, made.num_samples) == ("Thorough", 8)


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_keys_compose_over_files_in_any_order(tmp_path, monkeypatch, order):
    set_techniques(monkeypatch, Slot("alpha", Alpha), Slot("beta", Beta))
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
    off, on = write(tmp_path, "b", deployment_parity=False), write(tmp_path, "c", deployment_parity=True)
    assert techniques(parse(first, off)) == []
    (back,) = techniques(parse(off, first))
    assert (back.every_n_epochs, back.num_samples) == (4, 8)
    (from_defaults,) = techniques(parse(first, on))
    assert (from_defaults.every_n_epochs, from_defaults.num_samples) == (1, 256)


def test_techniques_follow_the_listed_callbacks_in_the_order_of_the_table(tmp_path, monkeypatch):
    set_techniques(monkeypatch, Slot("beta", Beta), Slot("alpha", Alpha))
    listed = {"callbacks": [{"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}]}
    made = parse("--alpha=true", "--beta=true", write(tmp_path, "a", trainer=listed)).trainer.callbacks
    names = [type(callback).__name__ for callback in made]
    assert [name for name in names if name in {"LearningRateMonitor", "Alpha", "Beta"}] == [
        "LearningRateMonitor",
        "Beta",
        "Alpha",
    ]


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_every_command_with_a_trainer_has_the_keys(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        RobustCLI(args=[command, "--help"])
    assert stopped.value.code == 0
    assert "--deployment_parity" in capsys.readouterr().out


def test_saved_config_is_complete_and_reloads_equal(tmp_path):
    cli = parse("--deployment_parity=true", "--deployment_parity.tolerance={emulated-fp16: 0.01}")
    saved = tmp_path / "saved.yaml"
    saved.write_text(cli.parser.dump(cli.config, skip_none=False))
    stored = yaml.safe_load(saved.read_text())["deployment_parity"]
    assert stored["init_args"]["num_samples"] == 256
    assert stored["init_args"]["tolerance"] == {"emulated-fp16": 0.01}
    again = RobustCLI(args=[f"--config={saved}"], run=False)
    assert again.config.deployment_parity == cli.config.deployment_parity


def test_the_file_that_a_run_saves_gives_the_same_run(tmp_path, monkeypatch):
    set_techniques(monkeypatch, Slot("alpha", Alpha), Slot("beta", Beta))
    settings = ["--trainer.max_steps=1", "--trainer.accelerator=cpu", "--trainer.limit_val_batches=0"]
    settings += [f"--trainer.default_root_dir={tmp_path}", "--trainer.enable_progress_bar=false"]
    logger = [f"--trainer.logger={{class_path: CSVLogger, init_args: {{save_dir: {tmp_path}}}}}"]
    cli = RobustCLI(args=["fit", *MODEL, *settings, *logger, "--alpha=true", "--beta.strength=5"])
    (saved,) = tmp_path.rglob("config.yaml")
    stored = yaml.safe_load(saved.read_text())
    assert (stored["alpha"]["init_args"], stored["beta"]["init_args"]) == ({"strength": 1.0}, {"strength": 5.0})
    again = RobustCLI(args=["fit", f"--config={saved}"])
    differing = {key for key in cli.config.fit.keys() if cli.config.fit[key] != again.config.fit[key]}  # noqa: SIM118
    assert differing == {"config"}


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
        (["--data=lightning_robust.demo.traffic.TrafficData", "--data.num_trains=3"], "Did you mean 'num_train'?"),
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


def test_a_misspelt_key_in_a_file_of_a_command_gets_the_nearest(tmp_path, capsys):
    with pytest.raises(SystemExit):
        RobustCLI(args=["fit", *MODEL, write(tmp_path, "a", deploymnet_parity=True)])
    assert "Did you mean 'deployment_parity'?" in capsys.readouterr().err


def test_rejects_an_empty_key(tmp_path, capsys):
    """A key whose values are all commented out must not switch the technique off in silence."""
    (tmp_path / "a.yaml").write_text("deployment_parity:\n  # num_samples: 3\n")
    with pytest.raises(SystemExit):
        parse(f"--config={tmp_path / 'a.yaml'}")
    assert "`deployment_parity` to be true, false or a mapping" in capsys.readouterr().err


def test_rejects_wrong_value(capsys):
    with pytest.raises(SystemExit):
        parse("--deployment_parity.num_samples=many")
    assert "many" in capsys.readouterr().err


def test_the_command_and_the_module_are_one():
    """`python -m lightning_robust fit --help` lists the technique with its arguments."""
    command = [sys.executable, "-W", "ignore", "-m", "lightning_robust", "fit", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "--deployment_parity" in text


def test_main_hides_what_lightning_deprecates_and_nothing_of_the_user(monkeypatch):
    def run(*_, **__):
        for module in ("lightning.pytorch.cli", "torch.onnx", "lightning_robust.callbacks", "mymodel"):
            warnings.warn_explicit(f"from {module}", FutureWarning, "file.py", 1, module=module)

    monkeypatch.setattr(cli_module, "RobustCLI", run)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        main(["fit"])
    assert [str(warning.message) for warning in shown] == ["from lightning_robust.callbacks", "from mymodel"]


def test_a_method_stands_alone_for_its_mapping(tmp_path, capsys):
    """`initialise: lsuv` is `{method: lsuv}`, is saved with all arguments, and is refused where it is none."""
    word, mapping = parse("--initialise=lsuv"), parse(write(tmp_path, "a", initialise={"method": "lsuv"}))
    assert word.config["initialise"].init_args == mapping.config["initialise"].init_args
    assert [each.method for each in parse("--adversarial=nfgsm").trainer.callbacks if hasattr(each, "eps")] == ["nfgsm"]
    for arguments, said in {
        ("--initialise=true",): "Expected `initialise` to be one of kaiming, orthogonal, small, lsuv, pretrained, but",
        ("--initialise=ortogonal",): "Did you mean 'orthogonal'?",
        ("--initialise=lsuv", "--initialise.tolerance=0.1"): "as --initialise.method=... --initialise.tolerance=0.1",
    }.items():
        with pytest.raises(SystemExit):
            parse(*arguments)
        assert said in capsys.readouterr().err


class Sized(BoringModel):
    """Keeps its size in the checkpoint."""

    def __init__(self, width: int = 4, depth: int = 1):
        super().__init__()
        self.save_hyperparameters()


def test_arguments_that_give_way_to_a_checkpoint_are_told(tmp_path):
    """Lightning takes the model's from the checkpoint; what a command line says otherwise is named."""
    line = [
        "fit",
        "--seed_everything=0",
        f"--model={__name__}.Sized",
        f"--data={BoringDataModule.__module__}.BoringDataModule",
    ]
    line += ["--trainer.max_steps=1", "--trainer.logger=false", "--trainer.accelerator=cpu"]
    line += ["--trainer.limit_val_batches=0", f"--trainer.default_root_dir={tmp_path}"]
    first = RobustCLI(args=[*line, "--model.depth=2"])
    line.append(f"--ckpt_path={first.trainer.checkpoint_callback.best_model_path}")
    warning = "`model.width`: 8 was given, but the checkpoint has 4, which holds."
    for given, told in ((["--model.width=8"], [warning]), ([], [])):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            cli = RobustCLI(args=[*line, *given])
        assert (cli.model.hparams.width, cli.model.hparams.depth) == (4, 2)
        assert [str(each.message) for each in found if "was given" in str(each.message)] == told
