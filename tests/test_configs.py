"""Every YAML under configs/ is found, opens with its header, and runs."""

import math
from pathlib import Path

import pytest
import yaml
from torch.optim import AdamW

from lightning_robust.cli import RobustCLI
from lightning_robust.demo.fashion_mnist.idx_files import DEBIAN
from lightning_robust.sweeps.choice import Choice
from lightning_robust.sweeps.file import Sweep, read_settings
from lightning_robust.sweeps.race import Race
from lightning_robust.sweeps.trials import plan

ROOT = Path(__file__).parents[1] / "configs"
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))
CHOICES = sorted((ROOT / "choices").glob("*.yaml"))
CONFIGS = sorted(set(ROOT.rglob("*.yaml")) - {*SWEEPS, *CHOICES})
BASES = {"lanes.yaml", "traffic.yaml", "fashion_mnist.yaml", "fashion_mnist_sgd.yaml"}
TECHNIQUES = sorted((ROOT / "techniques").glob("*.yaml"))
SMALL = {
    "lanes.yaml": ["--data.num_train=32", "--data.num_val=16", "--data.batch_size=8"],
    "traffic.yaml": [
        *("--data.num_train=16", "--data.num_val=8", "--data.batch_size=8", "--data.render_workers=0"),
        *("--data.height=64", "--data.width=96", "--model.height=64", "--model.width=96", "--model.channels=8"),
    ],
    "fashion_mnist.yaml": ["--data.num_train=64", "--data.batch_size=16"],
    "fashion_mnist_sgd.yaml": ["--data.num_train=64", "--data.batch_size=16"],
}
# so that a run of one step shows them
EARLY = {
    "swa": ["--swa.start=0", "--swa.every=1"],
    "uat": ["--data.num_labelled=16", "--model.uat_target_epochs=1"],
}
# lanes have all samples in one loader
LANES = {"uat": ["--model.uat_unlabelled_key=null", "--model.uat_index_key=null", "--data.num_labelled=4"]}
MONITORED = {
    "lanes.yaml": ("val/lateral_px", "min"),
    "traffic.yaml": ("val/map", "max"),
    "fashion_mnist.yaml": ("val/acc", "max"),
    "fashion_mnist_sgd.yaml": ("val/acc", "max"),
}
JUDGED = ("layer_criticality", "greedy_soup", "wise_ft")
# what traffic's boxes are not fit for, and what is said before a weight has changed
NOT_ON_BOXES = {
    "regmixup": "but got a dict with ['boxes', 'labels', 'drivable']. Set `target_key` to the tensor that the loss "
    "compares with, or regmixup_weight=0: targets such as lists of boxes have no mixture.",
    "uat": "Option 'uat_ot_weight' is not accepted. It is an argument of UATMixin",
}
RUNS = [
    (base, technique)
    for base in sorted(BASES)
    for technique in [None, *TECHNIQUES]
    if base != "traffic.yaml" or technique is None or technique.stem not in NOT_ON_BOXES
]
OBJECTIVES = ("preprocessing", "regmixup", "rotation_ssl", "uat")
SHOWS = {
    "initialise": "train/loss",
    "adversarial": "adversarial/eps",
    "robust_validation": "adversarial/val_loss@0.1",
    "layer_criticality": "criticality/trained",
    "lazy_training": "lazy/movement",
    "swa": "swa/snapshots",
    "greedy_soup": "soup/score",
    "wise_ft": "wise_ft/alpha",
    "deployment_parity": "parity/status",
    "datapath": "datapath/pgd/parting_depth",
    "preprocessing": "preprocessing/loss",
    "regmixup": "regmixup/loss",
    "rotation_ssl": "rotation/loss",
    "uat": "uat/ot",
}


def test_all_are_found():
    assert len(CONFIGS) == 21
    assert {path.name for path in ROOT.glob("*.yaml")} == BASES
    assert len(TECHNIQUES) == 16
    assert [path.name for path in SWEEPS] == ["lazy.yaml", "soup.yaml"]
    assert [path.name for path in CHOICES] == ["fashion_mnist.yaml"]


@pytest.mark.parametrize("path", [*CONFIGS, *SWEEPS, *CHOICES], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_header_says_command_purpose_number_hardware_time(path):
    lines = path.read_text().splitlines()
    for line, word in zip(lines, ("Command:", "Purpose:", "Measured:", "Hardware:", "Time:"), strict=False):
        assert line.startswith(f"# {word}")
        assert len(line.split(":", 1)[1].strip()) > 3
    assert "to be measured" not in path.read_text()
    assert "TBD" not in path.read_text()


def values(section):
    """All keys with their values, but for the list of files that they came from."""
    return {key: section[key] for key in section.keys() if key != "config"}  # noqa: SIM118 - iterating gives no leaves


def saved_and_parsed(cli, folder):
    """The configuration after it was written to a file and read again."""
    saved = folder / "saved.yaml"
    saved.write_text(cli.parser.dump(cli.config, skip_none=False))
    return values(cli.parser.parse_path(saved).fit)


@pytest.mark.filterwarnings("ignore::lightning_robust.NoEffectWarning", "ignore:.*with one validation loader alpha is")
@pytest.mark.filterwarnings("ignore:.*will be overridden by", "ignore:.*need three channels and are left out")
@pytest.mark.parametrize(
    ("base", "technique"), RUNS, ids=lambda each: "alone" if each is None else getattr(each, "stem", each)
)
def test_runs(base, technique, tmp_path, monkeypatch):
    if base.startswith("fashion_mnist") and not DEBIAN.is_dir():
        pytest.skip("Fashion-MNIST is not installed (apt-get install dataset-fashion-mnist)")
    monkeypatch.chdir(tmp_path)
    files, key = [f"--config={ROOT / base}"], None
    if technique is not None:
        files.append(f"--config={technique}")
        *_, key = yaml.safe_load(technique.read_text())
        key = technique.stem if key in ("model", "data") else key
    monitor, mode = MONITORED[base]
    judged = [f"--{key}.monitor={monitor}", f"--{key}.mode={mode}"]
    extra = [
        *EARLY.get(key, []),
        *(LANES.get(key, []) if base == "lanes.yaml" else []),
        *(judged if key in JUDGED else []),
    ]
    small = [*SMALL[base], "--trainer.fast_dev_run=true", "--trainer.accelerator=cpu"]
    cli = RobustCLI(args=["fit", *files, *small, *extra])
    assert cli.trainer.global_step == 1
    assert saved_and_parsed(cli, tmp_path) == values(cli.config.fit)
    if key is not None:
        assert technique.stem in OBJECTIVES or cli.config.fit[key] is not False
        assert math.isfinite(cli.trainer.callback_metrics[SHOWS[key]])
        assert cli.trainer.callback_metrics.get("parity/status", 0) <= 1


@pytest.mark.filterwarnings("ignore:.*will be overridden by")
@pytest.mark.parametrize("technique", sorted(NOT_ON_BOXES))
def test_says_what_is_not_for_boxes(technique, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = [f"--config={ROOT / 'traffic.yaml'}", f"--config={ROOT / 'techniques' / technique}.yaml"]
    steps = []
    # the closure computes the loss; what would change the weights comes after it
    monkeypatch.setattr(AdamW, "step", lambda _, closure: [closure(), steps.append(1)])
    with pytest.raises((TypeError, SystemExit)) as refused:
        RobustCLI(args=["fit", *files, *SMALL["traffic.yaml"], "--trainer.fast_dev_run=true"])
    assert NOT_ON_BOXES[technique] in f"{refused.value} {capsys.readouterr().err}"
    assert steps == []


@pytest.mark.filterwarnings("ignore:Training was lazy")
def test_lazy_sweep_runs(tmp_path, monkeypatch):
    """Two scalings, four widths, three seeds; the last one runs and measures."""
    if not DEBIAN.is_dir():
        pytest.skip("Fashion-MNIST is not installed (apt-get install dataset-fashion-mnist)")
    monkeypatch.chdir(tmp_path)
    trials = plan(read_settings(ROOT / "sweeps" / "lazy.yaml", Sweep))
    assert len({trial.config for trial in trials}) == 24
    (tmp_path / "trial.yaml").write_text(trials[-1].config)
    few = ["--data.num_train=256", "--trainer.max_epochs=1", "--lazy_training.every_n_epochs=1"]
    cli = RobustCLI(args=["fit", "--config=trial.yaml", *few])
    assert (cli.model.scale, cli.model.hidden.out_features) == (1 / 4096, 4096)
    assert 0 <= cli.trainer.callback_metrics["lazy/single_step@1"] <= 1


def test_choice_is_planned(tmp_path):
    """Two rounds, whose schedules end where they end; every candidate is one that the command line takes."""
    choice = read_settings(ROOT / "choices" / "fashion_mnist.yaml", Choice)
    race = Race(choice, tmp_path / "race")
    assert [(each.candidates, each.epochs, each.seeds) for each in race.rounds] == [(8, 5, 1), (2, 15, 3)]
    for name in choice.candidates:
        ends = [
            yaml.safe_load(race._config(name, 0, each.epochs))["lr_scheduler"]["init_args"]["T_max"]
            for each in race.rounds
        ]
        assert ends == [5, 15]


@pytest.mark.filterwarnings("ignore:.*will be overridden by")
def test_sweep_runs(tmp_path, monkeypatch):
    """With the start that the header's first command trains, eight complete configurations; the last one runs."""
    if not DEBIAN.is_dir():
        pytest.skip("Fashion-MNIST is not installed (apt-get install dataset-fashion-mnist)")
    monkeypatch.chdir(tmp_path)
    few = ["--data.num_train=64", "--data.batch_size=16"]
    RobustCLI(args=["fit", f"--config={ROOT / 'fashion_mnist_sgd.yaml'}", *few, "--trainer.max_epochs=1"])
    trials = plan(read_settings(ROOT / "sweeps" / "soup.yaml", Sweep))
    assert len({trial.config for trial in trials}) == 8
    (tmp_path / "trial.yaml").write_text(trials[-1].config)
    cli = RobustCLI(args=["fit", "--config=trial.yaml", *few, "--trainer.fast_dev_run=true"])
    assert (cli.datamodule.shift, cli.config.fit.seed_everything) == (1, 2)
    assert cli.model.hparams.weights == str(tmp_path / "runs/fashion_mnist_sgd/version_0/checkpoints/last.ckpt")
