"""The rules every technique keeps, run over a table of techniques: a new one joins as one row of TECHNIQUES."""

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field

import jsonargparse
import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy

from lightning_robust import (
    AdversarialCallback,
    DeploymentParityCallback,
    GreedySoupCallback,
    SWACallback,
    WiSEFTCallback,
)
from lightning_robust import cli as cli_module

from .boring import BATCH_FORMS, Boring, TwoProcesses, make_trainer

# runs of two epochs are too short for a soup of several ingredients
pytestmark = pytest.mark.filterwarnings("ignore::lightning_robust.NoEffectWarning")


@dataclass(frozen=True)
class Technique:
    """One row.

    ``make`` builds the callback with settings small enough for a test, ``logs`` names a metric it must log,
    ``diagnostic`` says that training must not change at all, ``at_end`` that it logs when training has ended.
    """

    key: str
    make: Callable[..., pl.Callback]
    logs: str
    diagnostic: bool = False
    at_end: bool = False
    settings: dict = field(default_factory=dict)


def _parity(**settings):
    small = {"targets": ["torch-bf16"], "perturbations": ["brightness"], "num_samples": 4}
    return DeploymentParityCallback(**(small | settings))


def _adversarial(**settings):
    return AdversarialCallback(**({"eps": 0.1, "val_steps": 2, "val_batches": 1} | settings))


def _pgd(**settings):
    return _adversarial(
        method="pgd", steps=2, ratio=0.5, norm="l2", warmup_epochs=1.5, val_eps=["8/255", 0.1], **settings
    )


def _free(**settings):
    return _adversarial(method="free", steps=3, **settings)


def _swa(**settings):
    return SWACallback(**({"start": 0, "every": 1, "lr": [0.05, 0.01]} | settings))


def _swalp(**settings):
    return _swa(word_length=8, kind="ema", half_life=3, also={"last": {"kind": "lawa", "window": 2}}, **settings)


def _soup(**settings):
    return GreedySoupCallback(**({"monitor": "val/loss", "mode": "min", "ingredients": "epochs"} | settings))


def _wise_ft(**settings):
    return WiSEFTCallback(**({"monitor": "val/loss", "mode": "min", "alphas": 3, "epsilon": 1.0} | settings))


TECHNIQUES = [
    Technique(
        "adversarial",
        _adversarial,
        "adversarial/val_loss@0.1",
        settings={"eps": "8/255", "method": "pgd", "mean": [0.5, 0.4, 0.3], "std": 0.2, "val_eps": ["4/255", 0.1]},
    ),
    Technique("adversarial", _free, "adversarial/val_loss@0.1", settings={"method": "free", "steps": 4}),
    Technique("adversarial", _pgd, "adversarial/val_loss@0.1", settings={"eps": [0.1], "bounds": "none"}),
    Technique(
        "swa",
        _swa,
        "swa/raw/val/loss",
        settings={"kind": "ema", "half_life": "2 epochs", "every": 4, "lr": [0.1, 0.05], "start": "8 steps"},
    ),
    Technique(
        "swa", _swalp, "swa/last/val/loss", settings={"word_length": 8, "also": {"last": {"kind": "lawa", "window": 3}}}
    ),
    Technique(
        "greedy_soup",
        _soup,
        "soup/score",
        at_end=True,
        settings={"top_k": 3, "recipe": "uniform", "monitor": "val/acc"},
    ),
    Technique(
        "wise_ft", _wise_ft, "wise_ft/shifted", at_end=True, settings={"alphas": [0.2, 0.7], "monitor": ["a", "b"]}
    ),
    Technique(
        "deployment_parity",
        _parity,
        "parity/torch-bf16/rel_l2",
        diagnostic=True,
        settings={"every_n_epochs": 3, "tolerance": {"emulated-fp16": 0.01}, "targets": ["emulated-fp16"]},
    ),
]
each = pytest.mark.parametrize("technique", TECHNIQUES, ids=lambda technique: technique.make.__name__[1:])


def train(folder, callbacks=(), module=None, ckpt_path=None, **settings):
    pl.seed_everything(1)
    module = module or Boring()
    trainer = make_trainer(folder, callbacks, **settings)
    trainer.fit(module, ckpt_path=ckpt_path)
    return trainer, module


def assert_equal_states(one, other, path=""):
    """Equal to the last bit, tensors inside structures included."""
    assert type(one) is type(other), path
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for name in one:
            assert_equal_states(one[name], other[name], f"{path}.{name}")
    elif isinstance(one, list):
        assert len(one) == len(other), path
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_equal_states(*pair, f"{path}.{index}")
    else:
        assert one == other, path


def describe(module):
    """What a technique may have left behind: instance attributes, hooks, modes, flags."""
    return {
        name: (
            sorted(set(part.__dict__) - {"_trainer", "_metric_attributes", "_current_fx_name"}),
            part.training,
            [len(part.__dict__[hooks]) for hooks in sorted(part.__dict__) if hooks.endswith("_hooks")],
            [p.requires_grad for p in part.parameters(recurse=False)],
        )
        for name, part in module.named_modules()
    }


def test_every_technique_of_the_command_line_has_a_row():
    assert [entry.key for entry in cli_module.TECHNIQUES] == list(dict.fromkeys(row.key for row in TECHNIQUES))


@each
def test_off_is_bit_identical(technique, tmp_path):
    """`key: false` puts no callback into the Trainer; a diagnostic changes nothing even when it is on."""
    cli = cli_module.RobustCLI(
        args=[
            "--seed_everything=0",
            "--model",
            "tests.boring.Boring",
            f"--{technique.key}=false",
            f"--trainer.default_root_dir={tmp_path}",
        ],
        run=False,
    )
    assert not any(isinstance(c, type(technique.make())) for c in cli.trainer.callbacks)
    if technique.diagnostic:
        _, plain = train(tmp_path)
        plain_rng = torch.get_rng_state()
        _, measured = train(tmp_path, [technique.make()])
        assert_equal_states(plain.state_dict(), measured.state_dict())
        assert torch.equal(plain_rng, torch.get_rng_state())


@each
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("step", [4, 6], ids=["at an epoch", "inside an epoch"])
def test_resume(technique, tmp_path, step):
    """Training 2 epochs of 4 steps equals training, stopping and going on, bit for bit."""
    whole_callback, part_callback, resumed_callback = (technique.make() for _ in range(3))
    _, whole = train(tmp_path, [whole_callback, _RngKeeper()])
    path = tmp_path / "stopped.ckpt"
    train(tmp_path, [part_callback, _RngKeeper(), _Saver(path, step)], max_steps=step)
    _, resumed = train(tmp_path, [resumed_callback, _RngKeeper()], ckpt_path=path)
    assert_equal_states(whole.state_dict(), resumed.state_dict())
    assert_equal_states(_without_clock(whole_callback.state_dict()), _without_clock(resumed_callback.state_dict()))


def _without_clock(state):
    if isinstance(state, dict):
        return {key: _without_clock(value) for key, value in state.items() if key != "parity/seconds"}
    return state


class _RngKeeper(pl.Callback):
    """Makes shuffling and dropout depend on the step alone, so that only the technique can break a resume."""

    def on_train_epoch_start(self, trainer, pl_module):
        torch.manual_seed(100 + trainer.current_epoch)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        torch.manual_seed(1000 + trainer.global_step)


class _Saver(pl.Callback):
    """Writes a checkpoint after a step, as a job that is about to be stopped does."""

    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step and not trainer.is_last_batch:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)


@each
def test_state_is_weights_only_loadable(technique, tmp_path):
    callback = technique.make()
    train(tmp_path, [callback])
    stream = io.BytesIO()
    torch.save(callback.state_dict(), stream)
    stream.seek(0)
    assert_equal_states(torch.load(stream, weights_only=True), callback.state_dict())


@each
def test_restored_after_fit_and_after_an_exception(technique, tmp_path):
    class Failing(Boring):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if self.current_epoch == 1:
                raise KeyError("planted")

    plain, module = Boring(), Boring()
    train(tmp_path, module=plain)
    train(tmp_path, [technique.make()], module)
    assert describe(module) == describe(plain)
    plain, module = Failing(), Failing()
    for callbacks, failing in (([], plain), ([technique.make()], module)):
        with pytest.raises(KeyError, match="planted"):
            train(tmp_path, callbacks, failing)
    assert describe(module) == describe(plain)


@each
def test_config_round_trip(technique):
    cls = type(technique.make())
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--technique", type=cls)
    config = parser.parse_object(
        {"technique": {"class_path": f"{cls.__module__}.{cls.__name__}", "init_args": technique.settings}}
    )
    again = parser.parse_string(parser.dump(config))
    assert again == config
    made = parser.instantiate_classes(again).technique
    for name, value in technique.settings.items():
        assert getattr(made, name) == value


@each
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_precision(technique, tmp_path, precision):
    trainer, _ = train(tmp_path, [technique.make()], precision=precision, max_epochs=1)
    assert torch.isfinite(trainer.callback_metrics[technique.logs])


@each
@pytest.mark.parametrize(
    "settings",
    [
        {"limit_train_batches": 2, "limit_val_batches": 1},
        {"max_steps": 3, "max_epochs": -1, "val_check_interval": 2},
        {"max_time": {"seconds": 2}, "max_epochs": -1},
        {"accumulate_grad_batches": 2},
        {"num_sanity_val_steps": 2},
        {"check_val_every_n_epoch": 2},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_trainer_flags(technique, tmp_path, settings):
    trainer, _ = train(tmp_path, [technique.make()], **settings)
    assert torch.isfinite(trainer.callback_metrics[technique.logs])


@each
def test_fast_dev_run(technique, tmp_path):
    trainer, _ = train(tmp_path, [technique.make()], fast_dev_run=True)
    assert torch.isfinite(trainer.callback_metrics[technique.logs])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "technique", [row for row in TECHNIQUES if not row.at_end], ids=lambda technique: technique.make.__name__[1:]
)
def test_early_stopping_and_checkpoint_can_monitor_it(technique, tmp_path):
    stopper = EarlyStopping(technique.logs, patience=1, min_delta=1e9)
    keeper = ModelCheckpoint(tmp_path, "{epoch}", monitor=technique.logs, auto_insert_metric_name=False)
    trainer, _ = train(tmp_path, [technique.make(), stopper, keeper], max_epochs=9, enable_checkpointing=True)
    assert trainer.current_epoch == 2
    assert keeper.best_model_score is not None


@each
@pytest.mark.parametrize("form", BATCH_FORMS)
def test_batch_forms(technique, tmp_path, form):
    callback = technique.make(input_key=BATCH_FORMS[form][0])
    trainer, _ = train(tmp_path, [callback], Boring(form), max_epochs=1)
    assert torch.isfinite(trainer.callback_metrics[technique.logs])


@each
def test_deepcopy_and_pickle(technique, tmp_path):
    callback = technique.make()
    train(tmp_path, [callback], max_epochs=1)
    for twin in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        assert_equal_states(twin.state_dict(), callback.state_dict())
        assert twin.state_key == callback.state_key


@each
def test_rejects_sharded_strategies(technique, tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    monkeypatch.setattr(type(trainer), "strategy", FSDPStrategy())
    with pytest.raises(MisconfigurationException, match=r"Use strategy='ddp'"):
        technique.make().setup(trainer, Boring(), "fit")


@each
def test_two_processes(technique, tmp_path):
    """Both ranks see the same numbers and the job ends; ModelCheckpoint monitors them on both."""
    monitor = "val/loss" if technique.at_end else technique.logs
    keeper = ModelCheckpoint(tmp_path, "{epoch}", monitor=monitor, auto_insert_metric_name=False)
    trainer = make_trainer(
        tmp_path,
        [technique.make(), keeper, _WriteRank(tmp_path, technique.logs)],
        strategy=TwoProcesses(),
        devices=2,
        enable_checkpointing=True,
    )
    trainer.fit(Boring())
    values = [float((tmp_path / f"rank{rank}").read_text()) for rank in range(2)]
    assert values[0] == values[1] > 0


class _WriteRank(pl.Callback):
    def __init__(self, folder, tag):
        self.folder, self.tag = folder, tag

    def teardown(self, trainer, pl_module, stage):
        (self.folder / f"rank{trainer.global_rank}").write_text(str(float(trainer.callback_metrics[self.tag])))
