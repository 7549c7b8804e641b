"""The rules every technique keeps, run over a table of techniques: a new one joins as one row of TECHNIQUES."""

import copy
import inspect
import io
import pickle
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import jsonargparse
import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from torch.utils.data import DataLoader

from lightning_robust import (
    AdversarialCallback,
    DatapathCallback,
    DeploymentParityCallback,
    GreedySoupCallback,
    InitialiseCallback,
    LayerCriticalityCallback,
    LazyTrainingCallback,
    RobustValidationCallback,
    SWACallback,
    WiSEFTCallback,
)
from lightning_robust.cli import robust_cli as cli_module
from lightning_robust.cli.techniques import TECHNIQUES as KEYS
from lightning_robust.harness.evaluate import Evaluator

from .boring import BATCH_FORMS, Boring, Pictures, RobustBoring, TwoProcesses, make_trainer
from .harness.keeper import Keeper, RobustKeeper

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

    def parts(self, form="tuple", host=Boring, **settings):
        """Callbacks and a module."""
        return [self.make(**settings)], host(form)


@dataclass(frozen=True)
class Classified(Technique):
    """One row of a method that is told where the classes are in a batch."""

    def parts(self, form="tuple", host=Boring, **settings):
        return super().parts(form, host, target_key=BATCH_FORMS[form][1], **settings)


@dataclass(frozen=True)
class Objective(Technique):
    """One row of a mixin; ``make`` gives the arguments of the module."""

    def parts(self, form="tuple", host=RobustBoring, **settings):
        return [], host(batch_form=form, **self.make(**settings))


def _initialise(**settings):
    return InitialiseCallback(**({"method": "lsuv", "tolerance": 0.2} | settings))


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


def _awp(**settings):
    return _adversarial(method="awp", steps=2, gamma=0.05, **settings)


def _mart(**settings):
    return _adversarial(method="mart", steps=2, **settings)


def _robust_validation(**settings):
    small = {"eps": [0.1, "8/255"], "steps": 2, "batches": 1, "under": ["rain@4", "frame_loss@2", "jpeg"]}
    return RobustValidationCallback(**(small | settings))


def _criticality(**settings):
    small = {"monitor": "val/loss", "mode": "min", "draws": 2, "checkpoints": ["2 steps"], "on_failure": "raise"}
    return LayerCriticalityCallback(**(small | settings))


def _lazy(**settings):
    return LazyTrainingCallback(**({"num_samples": 8, "kernel_samples": 2, "on_failure": "raise"} | settings))


def _datapath(**settings):
    small = {"under": ["pgd", "bf16"], "steps": 2, "num_samples": 8, "num_paths": 4, "on_failure": "raise"}
    return DatapathCallback(**(small | settings))


def _swa(**settings):
    return SWACallback(**({"start": 0, "every": 1, "lr": [0.05, 0.01]} | settings))


def _swalp(**settings):
    return _swa(word_length=8, kind="ema", half_life=3, also={"last": {"kind": "lawa", "window": 2}}, **settings)


def _soup(**settings):
    return GreedySoupCallback(**({"monitor": "val/loss", "mode": "min", "ingredients": "epochs"} | settings))


def _wise_ft(**settings):
    # one loader measures no shift: the same metric stands for it
    return WiSEFTCallback(
        **({"monitor": ["val/loss", "val/loss"], "mode": "min", "alphas": 3, "epsilon": 1.0} | settings)
    )


def _regmixup(**settings):
    return {"regmixup_weight": 1.0} | settings


def _rotation(**settings):
    return {"rotation_weight": 0.5, "rotation_turns": "all"} | settings


def _uat(**settings):
    small = {"uat_ot_weight": 1.0, "uat_ft_weight": 1.0, "uat_target": "ema", "uat_steps": 2, "uat_half_life": 3}
    return small | settings


def _preprocessing(**settings):
    small = {"preprocessing_weight": 1.0, "preprocessing_entries": "all", "preprocessing_draw": "worst"}
    return small | {"preprocessing_candidates": 2} | settings


CALLBACKS = [
    Technique(
        "initialise",
        _initialise,
        "val/loss",
        settings={"method": "orthogonal", "gain": 1.0, "tolerance": None, "exclude": ["net.5"]},
    ),
    Technique(
        "adversarial",
        _adversarial,
        "adversarial/val_loss@0.1",
        settings={"eps": "8/255", "method": "pgd", "mean": [0.5, 0.4, 0.3], "std": 0.2, "val_eps": ["4/255", 0.1]}
        | {"val_under": ["snow", "bgr"]},
    ),
    Technique("adversarial", _free, "adversarial/val_loss@0.1", settings={"method": "free", "steps": 4}),
    Technique("adversarial", _awp, "adversarial/val_loss@0.1", settings={"method": "awp", "gamma": 0.02}),
    Classified("adversarial", _mart, "adversarial/val_loss@0.1", settings={"method": "mart", "beta": 3.0}),
    Technique("adversarial", _pgd, "adversarial/val_loss@0.1", settings={"eps": [0.1], "bounds": "none"}),
    Technique(
        "robust_validation",
        _robust_validation,
        "adversarial/val_loss@0.1",
        diagnostic=True,
        settings={
            "eps": ["4/255", 0.1],
            "norm": "l2",
            "mean": [0.5, 0.4, 0.3],
            "std": 0.2,
            "batches": 4,
            "under": ["fog@3", "jpeg_90"],
            "baseline": {"fog@3": {"val/acc": 0.5}, "jpeg_90": {"val/acc": 0.9}},
        },
    ),
    Technique(
        "layer_criticality",
        _criticality,
        "criticality/trained",
        diagnostic=True,
        at_end=True,
        settings={
            "layers": {"head": "net.5"},
            "checkpoints": [1, 0.5, "9 steps"],
            "under": ["jpeg_90", "fog@2"],
            "draws": 2,
        },
    ),
    Technique(
        "lazy_training",
        _lazy,
        "lazy/movement",
        diagnostic=True,
        settings={"betas": [1.0, 4.0], "eps": "4/255", "every_n_epochs": 3, "mean": [0.5, 0.4, 0.3], "std": 0.2},
    ),
    Technique(
        "datapath",
        _datapath,
        "datapath/pgd/divergence/net.0",
        diagnostic=True,
        at_end=True,
        settings={"under": ["fgsm", "jpeg", "motion_blur"], "eps": "4/255", "layers": ["net.0"], "every_n_epochs": 2},
    ),
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
OBJECTIVES = [
    Objective(
        "regmixup", _regmixup, "regmixup/loss", settings={"regmixup_weight": 0.5, "regmixup_forward": "separate"}
    ),
    Objective(
        "rotation_ssl", _rotation, "rotation/loss", settings={"rotation_features": "net.0", "input_key": "image"}
    ),
    Objective(
        "preprocessing",
        _preprocessing,
        "preprocessing/consistency",
        settings={
            "preprocessing_entries": ["shift", "jpeg_90"],
            "preprocessing_ranges": {"quality": [60, 90.5]},
            "preprocessing_share": 0.25,
            "preprocessing_mean": [0.5, 0.4, 0.3],
            "preprocessing_groups": 2,
        },
    ),
    Objective("uat", _uat, "uat/ot", settings={"uat_ot_weight": 2.0, "uat_eps": "8/255", "uat_mean": [0.5, 0.4, 0.3]}),
]


def over(rows):
    return pytest.mark.parametrize("technique", rows, ids=lambda technique: technique.make.__name__[1:])


each, each_callback, each_objective = over([*CALLBACKS, *OBJECTIVES]), over(CALLBACKS), over(OBJECTIVES)


def train(folder, callbacks=(), module=None, ckpt_path=None, **settings):
    pl.seed_everything(1)
    module = module or Boring()
    trainer = make_trainer(folder, callbacks, **settings)
    trainer.fit(module, ckpt_path=ckpt_path)
    return trainer, module


def use(technique, folder, extra=(), **settings):
    """Train with a technique; the callback (or None), the Trainer and the module."""
    pl.seed_everything(1)
    callbacks, module = technique.parts()
    trainer, module = train(folder, [*callbacks, *extra], module, **settings)
    return (callbacks or [None])[0], trainer, module


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
    assert [entry.key for entry in KEYS] == list(dict.fromkeys(row.key for row in CALLBACKS))


@each_callback
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


@each_objective
def test_mixins_at_weight_zero_are_bit_identical(technique, tmp_path):
    """Weights, random numbers, metrics and what is saved are those of the host alone."""
    found = {}
    for build in (Boring, RobustBoring):
        pl.seed_everything(1)
        trainer, module = train(tmp_path, module=build())
        found[build] = module.state_dict(), torch.get_rng_state(), sorted(trainer.callback_metrics)
    assert_equal_states(*(state for state, _, _ in found.values()))
    assert torch.equal(*(rng for _, rng, _ in found.values()))
    assert found[Boring][2] == found[RobustBoring][2]
    checkpoint = {}
    module.on_save_checkpoint(checkpoint)
    assert checkpoint == {}
    assert technique.logs not in trainer.callback_metrics


@each
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("step", [4, 6], ids=["at an epoch", "inside an epoch"])
def test_resume(technique, tmp_path, step):
    """Training 2 epochs of 4 steps equals training, stopping and going on, bit for bit."""
    whole_callback, _, whole = use(technique, tmp_path, [_RngKeeper()])
    path = tmp_path / "stopped.ckpt"
    use(technique, tmp_path, [_RngKeeper(), _Saver(path, step)], max_steps=step)
    resumed_callback, _, resumed = use(technique, tmp_path, [_RngKeeper()], ckpt_path=path)
    assert_equal_states(whole.state_dict(), resumed.state_dict())
    if whole_callback is not None:
        assert_equal_states(_without_clock(whole_callback.state_dict()), _without_clock(resumed_callback.state_dict()))


def _without_clock(state):
    """A state without seconds, and with files by their names alone: every run has a folder of its own."""
    if isinstance(state, dict):
        return {
            Path(key).name if Path(str(key)).is_absolute() else key: _without_clock(value)
            for key, value in state.items()
            if key != "parity/seconds"
        }
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
    callback, trainer, module = use(technique, tmp_path)
    if callback is None:
        trainer.save_checkpoint(tmp_path / "saved.ckpt")
        saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)
        assert_equal_states(dict(saved["state_dict"]), dict(module.state_dict()))
        return
    stream = io.BytesIO()
    torch.save(callback.state_dict(), stream)
    stream.seek(0)
    assert_equal_states(torch.load(stream, weights_only=True), callback.state_dict())


@each_callback
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


@each_objective
def test_mixins_leave_the_module_as_fit_found_it(technique, tmp_path):
    """Methods, hooks and modes after fit, and after an exception, are those at its start."""

    class Look(pl.Callback):
        def on_fit_start(self, trainer, pl_module):
            self.before = describe(pl_module)

    class Failing(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.current_epoch == 1:
                raise KeyError("planted")

    look = Look()
    *_, module = use(technique, tmp_path, [look])
    assert describe(module) == look.before
    pl.seed_everything(1)
    _, module = technique.parts()
    with pytest.raises(KeyError, match="planted"):
        train(tmp_path, [look, Failing()], module)
    assert describe(module) == look.before


@each
def test_config_round_trip(technique):
    cls = type(technique.make()) if isinstance(technique.make(), pl.Callback) else RobustBoring
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
    _, trainer, _ = use(technique, tmp_path, precision=precision, max_epochs=1)
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
    _, trainer, _ = use(technique, tmp_path, **settings)
    assert torch.isfinite(trainer.callback_metrics[technique.logs])


@each
def test_fast_dev_run(technique, tmp_path):
    _, trainer, _ = use(technique, tmp_path, fast_dev_run=True)
    assert torch.isfinite(trainer.callback_metrics[technique.logs])
    assert list(tmp_path.iterdir()) == []


@over([row for row in [*CALLBACKS, *OBJECTIVES] if not row.at_end])
def test_early_stopping_and_checkpoint_can_monitor_it(technique, tmp_path):
    stopper = EarlyStopping(technique.logs, patience=1, min_delta=1e9)
    keeper = ModelCheckpoint(tmp_path, "{epoch}", monitor=technique.logs, auto_insert_metric_name=False)
    _, trainer, _ = use(technique, tmp_path, [stopper, keeper], max_epochs=9, enable_checkpointing=True)
    assert trainer.current_epoch == 2
    assert keeper.best_model_score is not None


class _TakesImage(Boring):
    """Its parameter has the name of a part of the batch."""

    def forward(self, image):
        return self.net(image)


@each
@pytest.mark.parametrize("form", BATCH_FORMS)
def test_batch_forms(technique, tmp_path, form):
    """Every form works with keys, and without them the same to the last bit."""
    host, found = robust(_TakesImage) if isinstance(technique, Objective) else _TakesImage, []
    keys = dict(zip(("input_key", "target_key"), BATCH_FORMS[form], strict=True))
    for options in ({}, keys if isinstance(technique, Objective) else {"input_key": keys["input_key"]}):
        pl.seed_everything(1)
        callbacks, module = technique.parts(form, host=host, **options)
        trainer, module = train(tmp_path, callbacks, module, max_epochs=1)
        found.append((dict(module.state_dict()), trainer.callback_metrics[technique.logs]))
    assert_equal_states(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert torch.isfinite(found[0][1])


@each
def test_deepcopy_and_pickle(technique, tmp_path):
    callback, _, module = use(technique, tmp_path, max_epochs=1)
    module.trainer = None
    for twin in (copy.deepcopy(callback or module), pickle.loads(pickle.dumps(callback or module))):
        assert_equal_states(dict(twin.state_dict()), dict((callback or module).state_dict()))
        assert callback is None or twin.state_key == callback.state_key


@each
def test_rejects_sharded_strategies(technique, tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    monkeypatch.setattr(type(trainer), "strategy", FSDPStrategy())
    (callbacks, module) = technique.parts()
    module.trainer = trainer
    with pytest.raises(MisconfigurationException, match=r"strategy='ddp'"):
        callbacks[0].setup(trainer, module, "fit") if callbacks else module.setup("fit")


@each
def test_two_processes(technique, tmp_path):
    """Both ranks see the same numbers and the job ends; ModelCheckpoint monitors them on both."""
    monitor = "val/loss" if technique.at_end else technique.logs
    keeper = ModelCheckpoint(tmp_path, "{epoch}", monitor=monitor, auto_insert_metric_name=False)
    callbacks, module = technique.parts()
    trainer = make_trainer(
        tmp_path,
        [*callbacks, keeper, _WriteRank(tmp_path, technique.logs)],
        strategy=TwoProcesses(),
        devices=2,
        enable_checkpointing=True,
    )
    trainer.fit(module)
    values = [float((tmp_path / f"rank{rank}").read_text()) for rank in range(2)]
    assert values[0] == values[1] > 0


class _WriteRank(pl.Callback):
    def __init__(self, folder, tag):
        self.folder, self.tag = folder, tag

    def teardown(self, trainer, pl_module, stage):
        (self.folder / f"rank{trainer.global_rank}").write_text(str(float(trainer.callback_metrics[self.tag])))


class _Diary(pl.Callback):
    """What the module remembers when training has ended, before any technique acts on that; the batches of each step.

    It stands first among the callbacks.
    """

    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(float(batch[0].sum()))

    def on_train_end(self, trainer, pl_module):
        self.counts, self.values = pl_module.remembered(values=False), pl_module.remembered()


def keep(technique, folder, host, **settings):
    """Train a module that remembers; what it remembers at the end of training, its weights, and its metrics."""
    pl.seed_everything(1)
    callbacks, module = technique.parts(host=host) if technique else ([], host())
    diary = _Diary()
    trainer, module = train(folder, [diary, *callbacks], module, num_sanity_val_steps=0, **settings)
    return diary, trainer, module


@pytest.mark.filterwarnings("ignore:.*(the training step does not give the inputs|does not run in bf16)")
@each
def test_no_trace(technique, tmp_path):
    """The module gathers, counts and queues, and moves a teacher: once a training step and once a validation batch.

    With a diagnostic, its memory, its weights and its metrics are those without, bit for bit. With other techniques
    only values differ; how often it was called does not.
    """
    host = RobustKeeper if isinstance(technique, Objective) else Keeper
    plain, plain_trainer, plain_module = keep(None, tmp_path, host)
    used, trainer, module = keep(technique, tmp_path, host)
    if technique.make is _swalp:
        used.counts["teacher"] = plain.counts["teacher"]  # which low precision rounds
    if technique.make is _mart:
        # it trains on what `forward` gives; the step runs in validation alone
        assert used.counts["steps"] == 2 * 4
        return
    assert used.counts == plain.counts
    assert plain.counts["losses"] == 8
    assert plain.counts["steps"] == 8 + 2 * 4
    if technique.diagnostic:
        assert used.values == plain.values
        assert_equal_states(dict(plain_module.state_dict()), dict(module.state_dict()))
        for name, value in plain_trainer.callback_metrics.items():
            assert torch.equal(trainer.callback_metrics[name], value), name


@each
def test_what_cannot_be_put_back_is_refused_at_the_start(technique, tmp_path):
    """An iterator on the module: no batch is trained on."""

    class Streaming(RobustBoring if isinstance(technique, Objective) else Boring):
        def __init__(self, *args, **settings):
            super().__init__(*args, **settings)
            self.stream = iter([1, 2, 3])

        def on_train_batch_start(self, batch, batch_idx):
            raise KeyError("too late")

    callbacks, module = technique.parts(host=Streaming)
    with pytest.raises(MisconfigurationException, match=r"`Streaming\.stream` to be something that can be put back"):
        train(tmp_path, callbacks, module)


class _Alone(Boring):
    def training_step(self, batch):
        return self._loss(batch)

    def validation_step(self, batch, i):
        self.log("val/loss", self._loss(batch), sync_dist=True)


class _Anything(Boring):
    def training_step(self, *args):
        assert len(args) == 2
        return self._loss(args[0])

    def validation_step(self, *args):
        self.log("val/loss", self._loss(args[0]), sync_dist=True)


class _Named(Boring):
    def training_step(self, minibatch, nb, **options):
        return self._loss(minibatch)

    def validation_step(self, minibatch, _, loader=0):
        self.log("val/loss", self._loss(minibatch), sync_dist=True)


def robust(host):
    """The same steps below the mixins."""
    return type(f"Robust{host.__name__}", (RobustBoring, host), {})


@each
@pytest.mark.parametrize("host", [_Alone, _Anything, _Named], ids=["a batch alone", "*args", "other names"])
def test_any_step(technique, tmp_path, host):
    """Steps are called as Lightning calls them; nothing is warned of, and the technique logs what it logs."""
    pl.seed_everything(1)
    callbacks, module = technique.parts(host=robust(host) if isinstance(technique, Objective) else host)
    trainer, _ = train(tmp_path, callbacks, module, max_epochs=1)
    assert torch.isfinite(trainer.callback_metrics[technique.logs])


class _Counted(DataLoader):
    """A subclass whose iterator is its own, as that of a loader with persistent workers."""

    def __iter__(self):
        self.pass_ = super().__iter__()
        return self.pass_


@pytest.mark.filterwarnings("ignore:.*(the training step does not give the inputs|does not run in bf16)")
@each
def test_the_users_data_come_first(technique, tmp_path):
    """Training sees every batch of every epoch in its order, whatever reads the loader at validations in between."""

    class Host(RobustKeeper if isinstance(technique, Objective) else Keeper):
        def train_dataloader(self):
            return _Counted(Pictures(64), 8, shuffle=True, generator=torch.Generator().manual_seed(5))

    expected, _, _ = keep(None, tmp_path, Host, val_check_interval=3)
    used, _, _ = keep(technique, tmp_path, Host, val_check_interval=3)
    assert used.batches == expected.batches
    assert len(used.batches) == 16


@over([row for row in CALLBACKS if row.key in ("greedy_soup", "wise_ft")])
@pytest.mark.parametrize("rate", [0.05, 3.0], ids=["sound", "wild"])
@pytest.mark.parametrize("recipe", ["greedy", "uniform", "learned", "stock"])
def test_nothing_gets_worse(technique, tmp_path, rate, recipe):
    """The weights that a technique returns are no worse by its metric than those that training gave it."""

    class Judge(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            self.score = Evaluator(trainer, pl_module).metrics()["val/loss"]

    if technique.key == "wise_ft" and recipe != "greedy":
        pytest.skip("WiSE-FT has one recipe")
    before, after = Judge(), Judge()
    options = {"recipe": recipe} if technique.key == "greedy_soup" else {"epsilon": 0.0}
    pl.seed_everything(1)
    callbacks, _ = technique.parts(**options)
    train(tmp_path, [before, *callbacks, after], Boring(lr=rate), max_epochs=3)
    assert after.score <= before.score


class _FailsOnRankOne(Boring):
    """Sound in training and in Lightning's validation; fails on the second rank wherever it runs quietly."""

    def _loss(self, batch):
        if self.global_rank == 1 and "log" in vars(self):
            raise ZeroDivisionError("planted on one rank")
        return super()._loss(batch)


class _RobustFailsOnRankOne(RobustBoring, _FailsOnRankOne):
    """The same below the mixins; of this module, so that another process finds it."""


@each
@pytest.mark.filterwarnings("ignore")
def test_a_rank_that_fails_leaves_no_other_waiting(technique, tmp_path):
    """Both ranks end, by themselves or with an error, long before a collective would give up."""
    options = {"on_failure": "warn"} if hasattr(technique.make(), "on_failure") else {}
    host = _RobustFailsOnRankOne if isinstance(technique, Objective) else _FailsOnRankOne
    callbacks, module = technique.parts(host=host, **options)
    strategy = TwoProcesses(timeout=timedelta(seconds=30))
    trainer = make_trainer(tmp_path, [*callbacks, _Clock(tmp_path)], strategy=strategy, devices=2, max_epochs=1)
    with suppress(Exception):
        trainer.fit(module)
    starts = [float(path.read_text()) for path in tmp_path.glob("start*")]
    assert len(starts) == 2
    assert time.time() - max(starts) < 30


class _Clock(pl.Callback):
    """Writes when a fit begins, on each rank."""

    def __init__(self, folder):
        self.folder = folder

    def on_fit_start(self, trainer, pl_module):
        (self.folder / f"start{trainer.global_rank}").write_text(str(time.time()))


@each
def test_no_argument_is_ignored(technique):
    """Every argument of a technique is documented, and changes what it is made of; unknown ones are refused."""
    cls = type(technique.make()) if isinstance(technique.make(), pl.Callback) else RobustBoring
    if cls is not RobustBoring:
        documented = inspect.getdoc(cls)
        for name in inspect.signature(cls).parameters:
            assert re.search(rf"^ +\*{{0,2}}{name}: ", documented, re.MULTILINE), name
    with pytest.raises(TypeError, match="nonsense"):
        cls(nonsense=1)
