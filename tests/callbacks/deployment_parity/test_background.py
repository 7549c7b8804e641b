"""Engines that DeploymentParityCallback builds beside the training; the thread itself is tested in tests/deployment."""

import threading

import lightning.pytorch as pl
import pytest
import torch

from lightning_robust import DeploymentParityCallback
from lightning_robust.deployment.engines import Built, Runtime, run_module
from lightning_robust.deployment.engines import targets as runtimes
from lightning_robust.deployment.engines.builder import EngineError
from lightning_robust.deployment.engines.child.process import CANCELLED
from tests.boring import Boring, TwoProcesses, make_trainer

GATE = threading.Event()
GATE.set()


class Engine(Runtime):
    """Adds one to what PyTorch gives: max_abs is 1, whatever the weights. Ready once the gate is open."""

    slow = True

    def build(self, subject):
        cancelled = CANCELLED.get()
        while not GATE.wait(0.01):
            if cancelled is not None and cancelled.is_set():
                raise EngineError("cancelled", "given up")
        return Built(lambda args: [output + 1 for output in run_module(subject.module, args)])


class Parity(DeploymentParityCallback):
    """With the stub in the place of TensorRT, in spawned processes too."""

    def __init__(self, **settings):
        runtimes.TARGETS["tensorrt-fp16"] = Engine
        defaults = {"targets": ["torch-bf16", "tensorrt-fp16"], "perturbations": "none", "num_samples": 4}
        super().__init__(**(defaults | {"background": True, "time_limit": 20.0} | settings))

    def setup(self, trainer, pl_module, stage):
        runtimes.TARGETS["tensorrt-fp16"] = Engine
        super().setup(trainer, pl_module, stage)


class Settle(pl.Callback):
    """Lets the engine of the pass before be ready when the next validation ends; remembers what was logged."""

    def __init__(self, parity):
        self.parity, self.seen = parity, []

    def on_validation_start(self, trainer, pl_module):
        if self.parity._meter.background._job is not None:
            self.parity._meter.background._job.thread.join(10)

    def on_validation_end(self, trainer, pl_module):
        self.seen.append({tag: float(value) for tag, value in trainer.callback_metrics.items() if "tensorrt" in tag})


@pytest.fixture(autouse=True)
def gate(monkeypatch):
    monkeypatch.setitem(runtimes.TARGETS, "tensorrt-fp16", Engine)
    GATE.set()
    yield GATE
    GATE.set()
    assert not [thread for thread in threading.enumerate() if thread.name == "engine builds"]


def fit(folder, *callbacks, **settings):
    pl.seed_everything(0)
    module = Boring()
    trainer = make_trainer(folder, callbacks, **settings)
    trainer.fit(module)
    return trainer, module


def test_numbers_arrive_one_validation_later_with_their_step(tmp_path):
    """Lightning writes validations under steps 3, 7, 11 here; the last engine is waited for when training ends."""
    parity = Parity()
    settle = Settle(parity)
    trainer, _ = fit(tmp_path, parity, settle, max_epochs=3)
    assert settle.seen[0] == {"parity/tensorrt-fp16/status": 2}
    assert [seen["parity/tensorrt-fp16/step"] for seen in settle.seen[1:]] == [3, 7]
    assert [seen["parity/tensorrt-fp16/max_abs"] for seen in settle.seen[1:]] == pytest.approx([1, 1], rel=1e-5)
    assert trainer.callback_metrics["parity/tensorrt-fp16/step"] == 11
    assert parity.report.targets["tensorrt-fp16"].step == 11
    assert trainer.callback_metrics["parity/tensorrt-fp16/status"] == 0


def test_numbers_also_arrive_between_two_passes(tmp_path):
    """Passes at epochs 1, 3 and 5; what epoch 1 started is there after epoch 2 and stays until the next."""
    parity = Parity(every_n_epochs=3)
    settle = Settle(parity)
    fit(tmp_path, parity, settle, max_epochs=5)
    assert [seen.get("parity/tensorrt-fp16/step") for seen in settle.seen] == [None, 3, 3, 11, 11]


def test_training_is_bit_identical(tmp_path, gate):
    """With an engine in the making all the time, with one that is done each time, and without the callback."""
    _, plain = fit(tmp_path)
    _, done = fit(tmp_path, Parity())
    gate.clear()
    parity = Parity(time_limit=0.5)
    trainer, making = fit(tmp_path, parity)
    for module in (done, making):
        assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), module.parameters(), strict=True))
    assert trainer.callback_metrics["parity/tensorrt-fp16/status"] == 2
    assert "not ready in time" in parity.report.targets["tensorrt-fp16"].note


@pytest.mark.parametrize(("raised", "ends"), [(ValueError, ValueError), (KeyboardInterrupt, SystemExit)])
def test_no_thread_outlives_an_exception(tmp_path, gate, raised, ends):
    class Breaks(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                assert parity._meter.background._job.thread.is_alive()
                raise raised("planted")

    gate.clear()
    parity = Parity()
    with pytest.raises(ends):
        fit(tmp_path, parity, Breaks())
    assert parity._meter.background._job is None


def test_validate_alone_waits(tmp_path):
    parity = Parity()
    make_trainer(tmp_path, [parity]).validate(Boring(), verbose=False)
    assert parity.report.targets["tensorrt-fp16"].status == "measured"
    assert parity.report.targets["tensorrt-fp16"].step is None


class Tell(pl.Callback):
    """Every rank leaves a file with what it knows."""

    def __init__(self, folder):
        self.folder = folder

    def teardown(self, trainer, pl_module, stage):
        known = {tag: float(value) for tag, value in trainer.callback_metrics.items() if "tensorrt" in tag}
        torch.save(known, self.folder / f"{trainer.global_rank}.pt")


def test_ranks_agree(tmp_path):
    settings = {"strategy": TwoProcesses(), "devices": 2, "max_epochs": 2, "use_distributed_sampler": True}
    make_trainer(tmp_path, [Parity(), Tell(tmp_path)], **settings).fit(Boring())
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first == second
    assert first["parity/tensorrt-fp16/step"] == 3
    assert first["parity/tensorrt-fp16/max_abs"] == pytest.approx(1, rel=1e-5)
