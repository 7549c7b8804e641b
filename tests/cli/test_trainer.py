"""The Trainer of the command line cooks a soup from the configuration that a fit saved."""

import json
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn

from lightning_robust.cli import main
from lightning_robust.cli.trainer import RobustTrainer

from ..boring import Boring, make_trainer


class Wide(BoringModel):
    """One layer of a width."""

    def __init__(self, width: int = 2):
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(2, width)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[:, :2]).sum()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.layer(batch[:, :2]).sum())


BY_LOSS = ["--monitor=val/loss", "--mode=min"]
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with a checkpoint of each of two epochs."""
    folder = tmp_path_factory.mktemp("runs")
    keeper = "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint"
    main(
        [
            *("fit", "--model=tests.boring.Boring", *QUIET),
            "--seed_everything=0",
            *("--trainer.max_epochs=2", "--trainer.logger=lightning.pytorch.loggers.CSVLogger"),
            *(f"--trainer.logger.save_dir={folder}", "--trainer.logger.name=boring"),
            *(keeper, "--trainer.callbacks.save_top_k=-1", "--trainer.callbacks.filename={epoch}"),
        ]
    )
    return folder / "boring" / "version_0"


def soup(config, folder, *more):
    main(
        [
            "soup",
            f"--config={config}",
            f"--ingredients={config.parent}/checkpoints/*.ckpt",
            f"--dirpath={folder}",
            *more,
        ]
    )


@pytest.mark.filterwarnings("ignore::lightning_robust.NoEffectWarning")
def test_soup_takes_what_fit_saved(run, tmp_path):
    """It begins with the better checkpoint, and the other one does not help."""
    assert "ckpt_path" in yaml.safe_load((run / "config.yaml").read_text())
    soup(run / "config.yaml", tmp_path, "--monitor=val/loss", "--mode=min", "--bn_refresh=false")
    told = json.loads((tmp_path / "soup.json").read_text())
    assert [Path(each["path"]).name for each in told["ingredients"] if each["accepted"]] == ["epoch=1.ckpt"]
    best = torch.load(run / "checkpoints" / "epoch=1.ckpt", weights_only=True)["state_dict"]
    found = torch.load(tmp_path / "soup.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(found[name], value) for name, value in best.items())


@pytest.mark.filterwarnings("ignore::lightning_robust.NoEffectWarning")
def test_a_resumed_run_is_told_that_its_checkpoint_is_not_used(run, tmp_path):
    content = yaml.safe_load((run / "config.yaml").read_text()) | {"ckpt_path": "last"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "checkpoints").symlink_to(run / "checkpoints")
    with pytest.warns(UserWarning, match="a soup has no use for them"):
        soup(tmp_path / "config.yaml", tmp_path / "out", "--monitor=val/loss", "--mode=min")


@pytest.mark.parametrize("name", ["validate", "test", "predict"])
def test_other_commands_take_what_fit_saved(run, name):
    """Parsed alone, which is where a key that a command does not have is refused."""
    from lightning_robust.cli.robust_cli import RobustCLI

    class Parsed(RobustCLI):
        def instantiate_classes(self):
            pass

        def _run_subcommand(self, subcommand):
            pass

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cli = Parsed(args=[name, f"--config={run / 'config.yaml'}"])
    assert cli.config[name].model.class_path == "tests.boring.Boring"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ([], "Expected --ingredients, but got none."),
        (["--ingredients=/nowhere/*.ckpt", *BY_LOSS], "Expected files at '/nowhere/*.ckpt', but nothing matches."),
        (
            ["--ingredients=CKPT", "--monitor=val/nothing", "--mode=min"],
            "Expected a validation metric 'val/nothing', but",
        ),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, capsys, more, told):
    more = [argument.replace("CKPT", f"{run}/checkpoints/*.ckpt") for argument in more]
    with pytest.raises(SystemExit) as stop:
        main(["soup", f"--config={run / 'config.yaml'}", f"--dirpath={tmp_path}", *more])
    assert stop.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert told in said[0]


@pytest.mark.filterwarnings("ignore::lightning_robust.NoEffectWarning", "ignore:.*is worse than")
def test_soup_in_python_returns_the_soup_also_where_the_module_holds_a_better_one(run, tmp_path):
    """The uniform mean of both epochs, and a validation afterwards does not cook again."""
    from lightning_robust.cli.robust_cli import RobustCLI

    quiet = [*QUIET, "--trainer.logger=false", f"--trainer.default_root_dir={tmp_path}"]
    cli = RobustCLI(args=["--model=tests.boring.Boring", *quiet], run=False)
    files = [run / "checkpoints" / f"epoch={epoch}.ckpt" for epoch in range(2)]
    found = cli.trainer.soup(
        cli.model,
        ingredients=[str(file) for file in files],
        recipe="uniform",
        monitor="val/loss",
        mode="min",
        report_barriers=False,
        bn_refresh=False,
        dirpath=str(tmp_path),
    )
    first, second = (torch.load(file, weights_only=True)["state_dict"]["net.0.weight"] for file in files)
    torch.testing.assert_close(found.state["net.0.weight"], (first + second) / 2)
    told = json.loads((tmp_path / "soup.json").read_text())
    assert [each["barrier"] for each in told["ingredients"]] == [None, None]
    written = (tmp_path / "soup.json").stat().st_mtime_ns
    cli.trainer.validate(cli.model, verbose=False)
    assert (tmp_path / "soup.json").stat().st_mtime_ns == written


def test_a_soup_without_validation_batches_is_refused(run, tmp_path):
    trainer = RobustTrainer(limit_val_batches=0, logger=False, default_root_dir=tmp_path, accelerator="cpu")
    with pytest.raises(ValueError, match="validation batches to judge a soup by, but got limit_val_batches=0"):
        trainer.soup(Boring(), ingredients=[f"{run}/checkpoints/*.ckpt"], monitor="val/loss", mode="min")


def test_a_checkpoint_of_a_model_that_was_built_in_python_is_validated(tmp_path, capsys):
    """Its hyperparameters have no class; what does not fit the model that was asked for is one sentence."""
    model = "--model=tests.cli.test_trainer.Wide"
    trainer = make_trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    trainer.fit(Wide(3))
    trainer.save_checkpoint(tmp_path / "wide.ckpt")
    arguments = ["validate", model, *QUIET, "--trainer.logger=false", "--seed_everything=0"]
    arguments += [f"--ckpt_path={tmp_path / 'wide.ckpt'}", f"--trainer.default_root_dir={tmp_path}"]
    main([*arguments, "--model.width=3"])
    assert "val/loss" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*arguments, "--model.width=4"])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert "layer.weight has shape (3, 2) for (4, 2) (and 1 more)" in said[0]
