"""Where files of a run go, with every logger, and that nothing is overwritten."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_robust import DeploymentParityCallback, WiSEFTCallback
from lightning_robust.harness.folders import output_folder, own_folder, run_folder

from ..boring import Boring, make_trainer


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fit(folder, **settings):
    """A fit of two techniques that write files."""
    parity = DeploymentParityCallback(["onnxruntime-fp32"], perturbations="none", num_samples=4)
    wise_ft = WiSEFTCallback(monitor="val/loss", mode="min", alphas=[0.5])
    trainer = make_trainer(folder, [wise_ft, parity], max_epochs=1, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(Boring())
    return trainer


@pytest.mark.parametrize("make", [TensorBoardLogger, CSVLogger])
def test_the_folder_of_the_logger(tmp_path, make):
    logger = make(tmp_path, name="mine", version=3)
    trainer = make_trainer(tmp_path / "elsewhere", logger=logger)
    assert run_folder(trainer) == tmp_path / "mine" / "version_3"
    assert own_folder(trainer, "soup") == tmp_path / "mine" / "version_3" / "soup"


@pytest.mark.parametrize(
    ("save_dir", "name", "version", "expected"),
    [
        ("saved", "project", "9x2kq0ab", "saved/project/9x2kq0ab"),  # as W&B
        (None, "1", "0e2a", "root/1/0e2a"),  # as MLflow with a database
        ("saved", "experiment", 4, "saved/experiment/version_4"),
        ("saved", None, None, None),
        (None, "", "", None),
    ],
)
def test_other_loggers_have_a_folder_for_each_run(tmp_path, save_dir, name, version, expected):
    trainer = make_trainer(tmp_path / "root")
    save_dir = save_dir and str(tmp_path / save_dir)
    trainer.loggers = [SimpleNamespace(save_dir=save_dir, name=name, version=version)]
    assert run_folder(trainer) == (expected and tmp_path / expected)


def test_beside_the_checkpoints_of_lightning(tmp_path):
    """What stands for the run's folder is the one that ModelCheckpoint takes."""
    logger = CSVLogger(tmp_path, name="mine")
    trainer = fit(tmp_path, logger=logger, enable_checkpointing=True)
    assert Path(trainer.checkpoint_callback.dirpath).parent == tmp_path / "mine" / "version_0"
    assert {path.name for path in (tmp_path / "mine" / "version_0").iterdir()} >= {"checkpoints", "parity", "wise_ft"}


@pytest.mark.parametrize("logged", [False, True])
def test_a_second_fit_overwrites_nothing(tmp_path, logged):
    """Without a logger, and with a version that the user fixed; every file of the first stays as it was."""
    loggers = [CSVLogger(tmp_path, name="mine", version=0) if logged else False for _ in range(2)]
    base = tmp_path / "mine" / "version_0" if logged else tmp_path
    first, second = ("parity", "parity-v1") if logged else ("parity-0", "parity-1")
    fit(tmp_path, logger=loggers[0])
    written = {name: content for name, content in contents(base).items() if "metrics" not in name}
    assert {f"{first}/parity.html", f"{first}/parity.json", f"{first.replace('parity', 'wise_ft')}/wise_ft.json"} <= {
        *written
    }
    fit(tmp_path, logger=loggers[1])
    now = contents(base)
    assert {name: now[name] for name in written} == written
    assert {f"{second}/parity.html", f"{second.replace('parity', 'wise_ft')}/wise_ft.json"} <= now.keys()


def test_one_folder_for_all_passes_of_a_run_and_another_for_the_next(tmp_path):
    parity = DeploymentParityCallback(["torch-bf16"], perturbations="none", num_samples=4)
    trainer, module = make_trainer(tmp_path, [parity], max_epochs=3), Boring()
    trainer.fit(module)
    assert [path.name for path in tmp_path.iterdir()] == ["parity-0"]
    trainer.validate(module, verbose=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parity-0", "parity-1"]


def test_the_users_own_folder_is_taken_unless_another_fit_wrote_there(tmp_path):
    """Other files may lie in it, also those of another technique."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("kept")
    assert output_folder(make_trainer(tmp_path), str(mine), "soup") == mine
    (mine / "soup.json").write_text("{}")
    assert output_folder(make_trainer(tmp_path), str(mine), "wise_ft") == mine
    again = make_trainer(tmp_path)
    assert output_folder(again, str(mine), "soup") == tmp_path / "mine-v1" == output_folder(again, str(mine), "soup")


def test_folders_are_taken_one_by_one(tmp_path):
    """Two runs that begin at the same time get two folders; a number is not used again."""
    trainers = [make_trainer(tmp_path) for _ in range(3)]
    assert [own_folder(trainer, "soup").name for trainer in trainers] == ["soup-0", "soup-1", "soup-2"]


def test_fast_dev_run_leaves_no_folder(tmp_path):
    fit(tmp_path, fast_dev_run=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore")
def test_mlflow_gets_the_page_as_an_artifact(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    from lightning.pytorch.loggers import MLFlowLogger

    address = f"sqlite:///{tmp_path}/mlflow.db"
    logger = MLFlowLogger("demo", tracking_uri=address, artifact_location=str(tmp_path / "artifacts"))
    fit(tmp_path, logger=logger)
    run = tmp_path / logger.experiment_id / logger.run_id
    artifacts = mlflow.tracking.MlflowClient(address).list_artifacts(logger.run_id, "parity")
    assert {"parity/parity.html", "parity/parity.json"} <= {each.path for each in artifacts}
    assert {path.name for path in run.iterdir()} == {"parity", "wise_ft"}


@pytest.mark.filterwarnings("ignore")
def test_wandb_gets_the_page_as_html(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=str(tmp_path), project="demo", offline=True)
    fit(tmp_path, logger=logger)
    logger.experiment.finish()
    assert {path.name for path in (tmp_path / "demo" / logger.version).iterdir()} == {"parity", "wise_ft"}
    (page,) = tmp_path.glob("wandb/offline-run-*/files/media/html/parity/parity_*.html")
    assert page.read_text() == (tmp_path / "demo" / logger.version / "parity" / "parity.html").read_text()
    assert list(tmp_path.glob("wandb/offline-run-*/files/parity/parity.json"))
