import importlib.util
import json
import math
import os
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader

from lightning_robust import DeploymentParityCallback, NoEffectWarning
from lightning_robust.deployment.engines import Built, Runtime, abilities, available, builder
from lightning_robust.deployment.engines import targets as targets_module
from lightning_robust.deployment.graph.export import frozen_copy
from lightning_robust.harness.digest import digest
from lightning_robust.structures import flatten
from tests.boring import Boring, Pictures, make_trainer

CHEAP = {"targets": ["torch-bf16"], "perturbations": "none", "num_samples": 4}


def fit(folder, callback, module=None, **settings):
    pl.seed_everything(0)
    module = module or Boring()
    trainer = make_trainer(folder, [callback], **({"max_epochs": 1} | settings))
    trainer.fit(module)
    return trainer, module


class Scaled(Boring):
    """Regression-like: outputs are pixel columns."""

    def forward(self, images):
        return self.net(images) * 500

    def _loss(self, batch):
        return (self(batch[0]) - 300).abs().mean()

    def decode(self, outputs):
        return {"lateral_px": outputs, "right": outputs > 300}


def test_everything_is_logged(tmp_path):
    callback = DeploymentParityCallback(
        ["onnxruntime-fp32", "emulated-tf32", "emulated-fp16"], perturbations=["bgr", "jpeg_90"], num_samples=4
    )
    trainer, _ = fit(tmp_path, callback, Scaled(lr=1e-6))
    metrics = trainer.callback_metrics
    for target in callback.targets:
        for metric in ("rel_l2", "max_abs", "p99_abs", "bias", "nonfinite", "status", "lateral_px_p99", "right_flips"):
            assert f"parity/{target}/{metric}" in metrics
    assert metrics["parity/onnxruntime-fp32/rel_l2"] < 1e-5
    assert metrics["parity/onnxruntime-fp32/rel_l2"] < metrics["parity/emulated-tf32/rel_l2"]
    assert metrics["parity/emulated-tf32/rel_l2"] < 5e-3
    assert metrics["parity/status"] == 0
    ratio = metrics["sensitivity/bgr/lateral_px_mean"] / metrics["parity/emulated-fp16/lateral_px_mean"]
    assert metrics["sensitivity/bgr/times_fp16"] == pytest.approx(float(ratio), rel=1e-5)
    # PyTorch in fp32 stands between: the links differ from the distances to fp64 by no more than the export's
    for link, target in (("export", "onnxruntime-fp32"), ("tf32", "emulated-tf32"), ("fp16", "emulated-fp16")):
        distance = metrics[f"parity/{target}/lateral_px_p99"]
        assert abs(metrics[f"attribution/{link}"] - distance) <= metrics["attribution/export"]
        assert abs(metrics[f"attribution/{link}_bias"]) <= distance
    assert metrics["attribution/preprocessing"] > metrics["attribution/fp16"]
    assert "attribution/engine" not in metrics


def test_numbers_match_an_independent_computation(tmp_path):
    callback = DeploymentParityCallback(["torch-bf16"], perturbations="none", num_samples=8)
    trainer, module = fit(tmp_path, callback)
    x = Pictures().images[:8]
    exact = frozen_copy(module).double()(x.double())
    half = frozen_copy(module).bfloat16()(x.bfloat16()).double()
    expected = (half - exact).norm() / (exact - exact.mean()).norm()
    assert trainer.callback_metrics["parity/torch-bf16/rel_l2"] == pytest.approx(float(expected), rel=1e-5)
    assert trainer.callback_metrics["parity/torch-bf16/max_abs"] == pytest.approx(float((half - exact).abs().max()))


@pytest.mark.parametrize("first", [True, False], ids=["before the average", "after the average"])
def test_measures_the_weights_that_were_validated(tmp_path, first):
    """Lightning's EMA swaps averages in for validation; whichever comes first in the list, they are measured."""

    class Remember(pl.Callback):
        def on_validation_batch_end(self, trainer, pl_module, *_):
            self.state = {k: v.clone() for k, v in pl_module.state_dict().items()}

    ema, parity, remember = EMAWeightAveraging(decay=0.9), DeploymentParityCallback(**CHEAP), Remember()
    seen, make = [], parity._meter._subject

    def remember_weights(*args):
        subject, task = make(*args)
        seen.append({k: v.clone() for k, v in subject.module.state_dict().items()})
        return subject, task

    parity._meter._subject = remember_weights
    trainer = make_trainer(tmp_path, [parity, ema, remember] if first else [ema, remember, parity], max_epochs=1)
    module = Boring()
    trainer.fit(module)
    validated = {k: v for k, v in remember.state.items() if k in seen[0]}
    assert len(validated) == len(seen[0]) > 0
    assert all(torch.equal(seen[0][k], v) for k, v in validated.items())


def test_tensorboard_gets_scalars_figure_table_and_layout(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, default_hp_metric=False)
    callback = DeploymentParityCallback(["torch-bf16"], perturbations=["bgr"], num_samples=4)
    fit(tmp_path, callback, logger=logger, max_epochs=2)
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    scalar = events.Scalars("parity/torch-bf16/rel_l2")
    assert [event.step for event in scalar] == [3, 7]
    assert [event.step for event in events.Images("sensitivity/families")] == [3, 7]
    assert events.Tags()["images"] == ["sensitivity/families", "parity/layers", "parity/drift"]
    assert {"parity/targets/text_summary", "sensitivity/perturbations/text_summary"} <= set(events.Tags()["tensors"])
    assert "custom_scalars__config__" in events.Tags()["tensors"]


def test_other_loggers_get_files(tmp_path):
    logger = CSVLogger(tmp_path)
    fit(tmp_path, DeploymentParityCallback(["torch-bf16"], perturbations=["bgr"], num_samples=4), logger=logger)
    folder = tmp_path / "lightning_logs" / "version_0"
    figures = {p.name for p in (folder / "figures").rglob("*") if p.is_file()}
    assert figures == {
        *("families-3.png", "targets-3.csv", "chain-3.csv", "perturbations-3.csv"),
        *("layers-4.png", "drift-4.png", "layers-4.csv", "keep_fp32-4.csv"),  # after the fit
    }
    assert {p.name for p in (folder / "parity").iterdir()} == {"parity.html", "parity.json", "keep_fp32.json"}


def test_every_n_epochs_measures_first_nth_and_last_and_monitors_see_the_last_value(tmp_path):
    measured = []

    class Count(DeploymentParityCallback):
        def _measure(self, trainer, pl_module):
            measured.append(trainer.current_epoch)
            return super()._measure(trainer, pl_module)

    keeper = ModelCheckpoint(tmp_path, "{epoch}", monitor="parity/torch-bf16/rel_l2", auto_insert_metric_name=False)
    trainer = make_trainer(
        tmp_path, [Count(every_n_epochs=3, **CHEAP), keeper], max_epochs=5, enable_checkpointing=True
    )
    trainer.fit(Boring())
    assert measured == [0, 2, 4]


def test_sanity_check_is_skipped_and_validate_alone_is_measured(tmp_path):
    callback = DeploymentParityCallback(**CHEAP)
    trainer = make_trainer(tmp_path, [callback], num_sanity_val_steps=2, limit_val_batches=0)
    with pytest.warns(NoEffectWarning, match="no validation batch was seen"):
        trainer.fit(Boring())
    assert callback.report is None
    trainer = make_trainer(tmp_path, [callback])
    module = Boring()
    trainer.validate(module, verbose=False)
    assert callback.report.targets["torch-bf16"].status == "measured"
    assert callback.report.weights.digest == digest(module.state_dict())


def test_weights_are_named_also_where_the_last_pass_was_enough(tmp_path):
    callback = DeploymentParityCallback(**CHEAP)
    _, module = fit(tmp_path, callback)
    assert str(callback.report.weights) == f"weights of epoch 0, step 4 ({digest(module.state_dict())})"


def test_engines_are_timed_after_the_fit_also_where_the_last_pass_was_enough(tmp_path):
    """Not in a pass during the fit, and not what is emulated."""
    callback = DeploymentParityCallback(["onnxruntime-fp32", "emulated-fp16"], perturbations="none", num_samples=4)
    trainer, _ = fit(tmp_path, callback)
    assert not [tag for tag in trainer.callback_metrics if "latency" in tag]
    targets = callback.report.targets
    assert 0 < targets["onnxruntime-fp32"].latency.median <= targets["onnxruntime-fp32"].latency.p99
    assert targets["emulated-fp16"].latency is None


def test_fast_dev_run_is_tiny(tmp_path):
    callback = DeploymentParityCallback(**(CHEAP | {"num_samples": 16}))
    fit(tmp_path, callback, fast_dev_run=True)
    assert callback.report.samples == 2


@pytest.mark.parametrize(("action", "epochs"), [("log", 2), ("warn", 2), ("stop", 1)], ids=["log", "warn", "stop"])
def test_tolerance(tmp_path, action, epochs):
    callback = DeploymentParityCallback(**CHEAP, tolerance={"torch-bf16/max_abs": 1e-9}, on_violation=action)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer, _ = fit(tmp_path, callback, max_epochs=2)
    assert trainer.current_epoch == epochs
    assert any("parity/torch-bf16/max_abs is" in str(w.message) for w in caught) == (action != "log")


def test_tolerance_can_raise(tmp_path):
    callback = DeploymentParityCallback(**CHEAP, tolerance={"torch-bf16": 1e-9}, on_violation="raise")
    with pytest.raises(MisconfigurationException, match=r"rel_l2 is .*, allowed is 1e-09"):
        fit(tmp_path, callback)


def test_default_tolerances_hold_for_a_sound_model(tmp_path):
    callback = DeploymentParityCallback(
        ["onnxruntime-fp32", "emulated-fp16"], perturbations="none", on_violation="raise"
    )
    trainer, _ = fit(tmp_path, callback)
    assert trainer.callback_metrics["parity/emulated-fp16/rel_l2"] < 5e-3


def test_time_limit_skips_the_rest(tmp_path, monkeypatch):
    callback = DeploymentParityCallback(["torch-bf16", "torch-fp16"], perturbations=["bgr"], time_limit=1e-9)
    with pytest.warns(UserWarning, match="were skipped: the time was up"):
        trainer, _ = fit(tmp_path, callback)
    assert trainer.callback_metrics["parity/torch-fp16/status"] == 2
    assert "parity/torch-fp16/rel_l2" not in trainer.callback_metrics


class Structures(Boring):
    """Takes a dict, a second input, and returns what ``kind`` says."""

    def __init__(self, kind="dict"):
        super().__init__()
        self.kind = kind

    def forward(self, batch, gain):
        y = self.net(batch["image"]) * gain
        from tests.deployment.models import Detection

        return {"tuple": (y, y.sum(1)), "dict": {"a": y, "b": y.sum(1)}, "dataclass": Detection(y, y.sum(1))}[self.kind]

    def _loss(self, batch):
        outputs = self(batch["frames"], batch["gain"])
        return nn.functional.cross_entropy(next(iter(flatten(outputs).values())), batch["label"])

    def _loader(self, pictures):
        def collate(samples):
            images, labels = zip(*samples, strict=True)
            return {
                "frames": {"image": torch.stack(images)},
                "gain": torch.ones(len(images), 1),
                "label": torch.stack(labels),
            }

        return DataLoader(pictures, 16, collate_fn=collate)


@pytest.mark.parametrize("kind", ["tuple", "dict", "dataclass"])
def test_dict_and_several_inputs_and_structured_outputs(tmp_path, kind):
    callback = DeploymentParityCallback(
        ["onnxruntime-fp32", "emulated-fp16"], input_key=["frames", "gain"], perturbations=["bgr"], num_samples=4
    )
    trainer, _ = fit(tmp_path, callback, Structures(kind))
    assert trainer.callback_metrics["parity/onnxruntime-fp32/rel_l2"] < 1e-5
    assert 1e-5 < trainer.callback_metrics["parity/emulated-fp16/rel_l2"] < 1e-2
    assert trainer.callback_metrics["sensitivity/bgr/rel_l2"] > 0


# The end of the fit.


class Replaced(pl.Callback):
    """Puts other weights into the module when training ends, as a soup does; comes after the parity callback."""

    def on_train_end(self, trainer, pl_module):
        with torch.no_grad():
            pl_module.net[5].bias += 1.0


def test_the_report_is_of_the_weights_that_the_fit_returned_on_more_samples(tmp_path):
    callback = DeploymentParityCallback(["emulated-fp16"], perturbations="none", num_samples=40, pass_samples=4)
    trainer, module = fit(tmp_path, callback, logger=CSVLogger(tmp_path), enable_checkpointing=True)
    assert callback.report.weights.digest == digest(module.state_dict())
    assert (callback.report.weights.epoch, callback.report.weights.step) == (0, 4)
    assert callback.report.basis["parity/emulated-fp16/rel_l2"].samples > 4
    assert not [note for note in callback.report.notes if "kept checkpoint" in note]

    callback = DeploymentParityCallback(["emulated-fp16"], perturbations="none", num_samples=40, pass_samples=4)
    pl.seed_everything(0)
    module = Boring()
    trainer = make_trainer(
        tmp_path, [callback, Replaced()], max_epochs=1, logger=CSVLogger(tmp_path), enable_checkpointing=True
    )
    trainer.fit(module)
    measured = callback.report
    assert measured.weights.digest == digest(module.state_dict())
    assert measured.weights.epoch is None
    (note,) = [note for note in measured.notes if "kept checkpoint" in note]
    assert "of epoch 0" in note
    assert f"lightning-robust parity --ckpt {trainer.checkpoint_callback.best_model_path}" in note
    content = json.loads((tmp_path / "lightning_logs" / "version_1" / "parity" / "parity.json").read_text())
    assert content["weights"]["digest"] == digest(module.state_dict())


def test_engines_are_not_built_again_for_the_same_weights(tmp_path, monkeypatch):
    """A slow runtime keeps its numbers of the last pass; another model is another engine."""
    built = []

    class Slow(Runtime):
        slow = True

        def build(self, subject):
            built.append(subject.samples)
            return Built(lambda args: [subject.module(*args) + 1e-3])

    monkeypatch.setitem(targets_module.TARGETS, "tensorrt-fp16", Slow)
    settings = {"perturbations": ["bgr"], "num_samples": 40, "pass_samples": 4, "localise": True}
    callback = DeploymentParityCallback(["emulated-fp16", "tensorrt-fp16"], **settings)
    fit(tmp_path, callback)
    assert built == [4]
    assert callback.report.targets["tensorrt-fp16"].metrics["bias"] == pytest.approx(1e-3, rel=0.01)
    assert [link.name for link in callback.report.chain] == ["fp16", "preprocessing", "engine"]
    assert callback.report.basis["parity/tensorrt-fp16/rel_l2"].samples == 4
    fit(tmp_path, DeploymentParityCallback(["emulated-fp16", "tensorrt-fp16"], **settings), max_epochs=1)
    assert built == [4, 4]


class Known(Boring):
    """Knows the score of the right class, says so from the labels of a batch, and keeps itself in fp32."""

    keep_fp32 = ("net",)

    def decode(self, outputs):
        return {"score": outputs}

    def known(self, values, batch):
        return nn.functional.one_hot(batch[1], values["score"].shape[1]).bool()


def test_known_sees_the_labels_of_its_samples(tmp_path):
    """24 samples of batches of 16: the known points are those at the labels, over both batches."""
    settings = {"perturbations": "none", "num_samples": 24, "pass_samples": 24, "localise": False}
    callback = DeploymentParityCallback(["torch-bf16"], **settings)
    trainer, module = fit(tmp_path, callback, Known())
    x, labels = Pictures().images[:24], Pictures().labels[:24, None]
    exact = frozen_copy(module).double()(x.double())
    error = (frozen_copy(module).bfloat16()(x.bfloat16()).double() - exact).abs()
    assert callback.report.unit == "score_known_p99"
    metrics = trainer.callback_metrics
    assert metrics["parity/torch-bf16/score_known_max"] == pytest.approx(float(error.gather(1, labels).max()))
    others = error.scatter(1, labels, 0.0)
    assert metrics["parity/torch-bf16/score_guessed_max"] == pytest.approx(float(others.max()))


def test_what_stays_fp32_is_the_module_s_where_it_is_not_given(tmp_path):
    settings = {"perturbations": "none", "num_samples": 4, "localise": False}
    for keep, exact in ((None, True), ([], False)):
        callback = DeploymentParityCallback(["emulated-bf16"], keep_fp32=keep, **settings)
        trainer, _ = fit(tmp_path, callback, Known())
        assert (trainer.callback_metrics["parity/emulated-bf16/max_abs"] < 1e-5) == exact


# Bad input: each gives a clear error or one warning and a status, and loses no training.


def survives(folder, callback, match, module=None, **settings):
    """The fit ends as it would without the callback, with a warning that matches."""
    with pytest.warns(UserWarning, match=match):
        trainer, measured = fit(folder, callback, module, **settings)
    assert trainer.current_epoch == 1
    plain = type(measured)()
    pl.seed_everything(0)
    make_trainer(folder, max_epochs=1, **settings).fit(plain)
    assert trainer.global_step == 4
    return trainer


def test_rejects_unknown_target():
    with pytest.raises(ValueError, match=r"got 'emulated-fp61'. Did you mean 'emulated-fp16'"):
        DeploymentParityCallback(["emulated-fp61"])


def test_rejects_unknown_perturbation():
    with pytest.raises(ValueError, match="jpeg_90"):
        DeploymentParityCallback(perturbations=["jpeg90"])


@pytest.mark.parametrize("name", ["every_n_epochs", "num_samples", "time_limit", "batch"])
def test_rejects_numbers_out_of_range(name):
    with pytest.raises(ValueError, match=f"`{name}` to be positive, but got 0"):
        DeploymentParityCallback(**{name: 0})


def test_missing_package_names_the_pip_command(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    without = {"tensorrt", "tensorrt_bindings"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *of: None if name in without else found(name, *of))
    callback = DeploymentParityCallback(["torch-bf16", "tensorrt-fp16"], perturbations="none", num_samples=4)
    trainer = survives(tmp_path, callback, r'pip install "lightning-robust\[tensorrt\]"')
    assert trainer.callback_metrics["parity/tensorrt-fp16/status"] == 3
    assert trainer.callback_metrics["parity/torch-bf16/status"] == 0
    assert "parity/tensorrt-fp16/rel_l2" not in trainer.callback_metrics


def test_failure_can_raise(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="tensorrt-fp16 cannot be measured here"):
        fit(tmp_path, DeploymentParityCallback(["tensorrt-fp16"], on_failure="raise"))


def test_operator_unknown_to_onnx(tmp_path):
    class Inverse(Boring):
        def forward(self, images):
            return self.net(images) + torch.linalg.inv(torch.eye(2) + images[:, 0, :2, :2] * 0.1).sum((1, 2))[:, None]

    callback = DeploymentParityCallback(["onnxruntime-fp32", "torch-bf16"], perturbations="none", num_samples=4)
    trainer = survives(
        tmp_path, callback, "onnxruntime-fp32 failed: ExportError: ONNX has no operator for .*linalg", Inverse()
    )
    assert trainer.callback_metrics["parity/onnxruntime-fp32/status"] == 4


CHILDREN = {
    "crashes": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crash|SIGSEGV|signal"),
    "hangs": ("import time; time.sleep(600)", "killed after its time limit"),
    "returns garbage": (
        "import json, sys; spec = json.load(open(sys.argv[2])); open(spec['engine'], 'w').write('nonsense')",
        "left",
    ),
}


@pytest.mark.parametrize("fault", CHILDREN)
def test_builder_that(fault, tmp_path, monkeypatch):
    source, message = CHILDREN[fault]
    script = tmp_path / "child.py"
    script.write_text(source)
    monkeypatch.setattr(builder, "_CHILD", script)
    monkeypatch.setattr(abilities, "missing_package", lambda *_: "")
    monkeypatch.setattr(abilities, "library_version", lambda *_: "0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    callback = DeploymentParityCallback(["tensorrt_rtx-fp16"], perturbations="none", num_samples=4, time_limit=8)
    trainer = survives(tmp_path, callback, f"tensorrt_rtx-fp16 failed: EngineError: .*({message})")
    assert trainer.callback_metrics["parity/tensorrt_rtx-fp16/status"] == 4
    assert trainer.callback_metrics["parity/status"] == 4


def test_read_only_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(abilities, "missing_package", lambda *_: "")
    monkeypatch.setattr(abilities, "library_version", lambda *_: "0")
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    callback = DeploymentParityCallback(["tensorrt_rtx-fp16"], perturbations="none", num_samples=4)
    trainer = survives(tmp_path, callback, "tensorrt_rtx-fp16 failed: EngineError: ")
    assert trainer.callback_metrics["parity/tensorrt_rtx-fp16/status"] == 4


@pytest.mark.filterwarnings("ignore:CSVLogger could not store")
def test_full_disk_where_the_figure_goes(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.warns(UserWarning, match=r"the report could not be written\. .*No space left"):
        trainer, _ = fit(tmp_path, DeploymentParityCallback(**CHEAP), logger=CSVLogger(tmp_path))
    assert trainer.callback_metrics["parity/status"] == 0


@pytest.mark.rtx
def test_built_engine_shows_no_parity_number(tmp_path, monkeypatch):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if abilities.can_run("tensorrt_rtx"):
        pytest.skip("this machine can run the engine")
    callback = DeploymentParityCallback(["tensorrt_rtx-fp32", "tensorrt_rtx-fp16"], perturbations="none", num_samples=4)
    trainer, _ = fit(tmp_path, callback)
    for name, target in callback.report.targets.items():
        assert target.status == "built"
        assert target.size > 1000
        assert {tag for tag in trainer.callback_metrics if tag.startswith(f"parity/{name}")} == {
            f"parity/{name}/status"
        }
        assert trainer.callback_metrics[f"parity/{name}/status"] == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_weights(tmp_path, value):
    """Loud in the numbers, silent in the training."""

    class Broken(Boring):
        def on_validation_epoch_start(self):
            self.net[5].bias.data[0] = value

    callback = DeploymentParityCallback(["onnxruntime-fp32", "emulated-fp16"], perturbations=["bgr"], num_samples=4)
    trainer, _ = fit(tmp_path, callback, Broken())
    assert trainer.current_epoch == 1
    assert trainer.callback_metrics["parity/onnxruntime-fp32/status"] == 0


def test_overflow_in_half_precision_is_loud(tmp_path):
    class Large(Boring):
        def forward(self, images):
            return self.net(images) * 1e4 * 1e4  # a single 1e8 would be clamped

    callback = DeploymentParityCallback(["emulated-fp16"], perturbations="none", num_samples=4)
    trainer, _ = fit(tmp_path, callback, Large(lr=0.0))
    assert trainer.callback_metrics["parity/emulated-fp16/nonfinite"] > 0
    assert trainer.callback_metrics["parity/emulated-fp16/rel_l2"] == math.inf


def test_empty_validation_loader(tmp_path):
    class Empty(Boring):
        def val_dataloader(self):
            return DataLoader(Pictures(0), 16)

    with pytest.warns(UserWarning, match="no validation batch was seen|zero"):
        trainer, _ = fit(tmp_path, DeploymentParityCallback(**CHEAP), Empty())
    assert trainer.current_epoch == 1


def test_the_batch_of_engines_changes_no_number(tmp_path):
    """The graph is exported with a dynamic batch and runs on 16 samples at a time, whatever is deployed."""
    numbers = []
    for batch in (1, 32):
        callback = DeploymentParityCallback(
            ["onnxruntime-fp32", "emulated-fp16"], perturbations=["bgr"], num_samples=16, batch=batch
        )
        trainer, _ = fit(tmp_path, callback)
        numbers.append(trainer.callback_metrics)
    assert numbers[0]["parity/emulated-fp16/rel_l2"] == pytest.approx(
        float(numbers[1]["parity/emulated-fp16/rel_l2"]), rel=0.05
    )
    assert numbers[0]["sensitivity/bgr/rel_l2"] == pytest.approx(float(numbers[1]["sensitivity/bgr/rel_l2"]), rel=1e-4)


def test_a_missing_input_key_is_an_error_in_the_first_batch(tmp_path):
    callback = DeploymentParityCallback(**CHEAP, input_key="picture")
    with pytest.raises(MisconfigurationException, match=r"DeploymentParityCallback: .*part 'picture'.*Set `input_key`"):
        make_trainer(tmp_path, [callback], num_sanity_val_steps=1).fit(Boring())


def test_unnormalised_inputs_are_named(tmp_path):
    callback = DeploymentParityCallback(["torch-bf16"], perturbations=["bgr"], num_samples=4, std=2.0)
    survives(tmp_path, callback, "Preprocessing was not perturbed.*mean")


def test_decode_that_fails_is_left_out(tmp_path):
    class Vae(Boring):
        def decode(self, latent):
            return latent.missing

    survives(tmp_path, DeploymentParityCallback(**CHEAP), "`decode` failed and is left out", Vae())


def test_a_failing_pass_loses_nothing_and_old_values_stay(tmp_path):
    class FailsLater(DeploymentParityCallback):
        def _measure(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                raise ZeroDivisionError("planted")
            return super()._measure(trainer, pl_module)

    callback = FailsLater(**CHEAP)
    keeper = ModelCheckpoint(tmp_path, "{epoch}", monitor="parity/torch-bf16/rel_l2", auto_insert_metric_name=False)
    trainer = make_trainer(tmp_path, [callback, keeper], max_epochs=2, enable_checkpointing=True)
    with pytest.warns(UserWarning, match=r"the parity pass failed\. ZeroDivisionError: planted"):
        trainer.fit(Boring())
    assert trainer.current_epoch == 2
    assert trainer.callback_metrics["parity/status"] == 4
    assert trainer.callback_metrics["parity/torch-bf16/rel_l2"] > 0


def test_auto_takes_what_is_here():
    names = [made.name for made in available("auto")]
    assert {"onnxruntime-fp32", "emulated-fp16", "emulated-tf32", "emulated-bf16"} <= set(names)
    assert ("tensorrt_rtx-fp16" in names) == bool(abilities.can_build("tensorrt_rtx"))
    assert np.unique(names).size == len(names)
    assert os.name == "posix" or "tensorrt-fp16" not in names


@pytest.mark.parametrize("broken", ["draw_chain", "draw_costs"])
def test_a_figure_that_fails_after_the_fit_is_one_warning(tmp_path, monkeypatch, broken):
    """The page and the numbers stay."""
    from lightning_robust.callbacks.deployment_parity import report as logged

    def fail(*_):
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(logged, broken, fail)
    callback = DeploymentParityCallback(["emulated-fp16"], perturbations="none", num_samples=8, pass_samples=4)
    with pytest.warns(UserWarning, match="a figure or a table could not be logged.*planted") as caught:
        fit(tmp_path, callback, logger=CSVLogger(tmp_path))
    assert len([warning for warning in caught if "planted" in str(warning.message)]) == 1
    assert callback.report.targets["emulated-fp16"].status == "measured"
    assert (tmp_path / "lightning_logs" / "version_0" / "parity" / "parity.html").exists()
