"""SWACallback against closed forms and against what the existing callbacks get wrong (L1-L8, W1-W12 in the names)."""

import functools
import math

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    ModelCheckpoint,
    OnExceptionCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_robust import NoEffectWarning, RotationSSLMixin, SWACallback, load_averaged

from ...boring import Boring, Pictures, make_trainer

STEPS = 4  # optimizer steps in an epoch of Boring


def copy_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


class Snapshots(pl.Callback):
    """The raw weights after every optimizer step, and what validation saw."""

    def __init__(self):
        self.after, self.validated = [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.after.append(copy_of(pl_module))

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 0:
            self.validated.append(copy_of(pl_module))


def train(folder, *callbacks, module=None, ckpt_path=None, **settings):
    pl.seed_everything(1)
    module = module or Boring
    module = module if isinstance(module, pl.LightningModule) else module()
    snapshots = Snapshots()
    trainer = make_trainer(folder, [*callbacks, snapshots], **({"max_epochs": 6} | settings))
    trainer.fit(module, ckpt_path=ckpt_path)
    return trainer, module, snapshots


def mean(states):
    """In fp64, then rounded: the callback's running mean in fp32 agrees to a few units in the last place."""
    return {k: torch.stack([s[k].double() for s in states]).mean(0).float() for k in states[0]}


def parameters(state):
    return {k: v for k, v in state.items() if "running" not in k and "tracked" not in k}


def assert_same(state, expected, **tolerance):
    for name, tensor in parameters(expected).items():
        torch.testing.assert_close(state[name], tensor, **(tolerance or {"rtol": 0, "atol": 0}))


def assert_close(state, expected):
    assert_same(state, expected, rtol=1e-6, atol=1e-7)


def reference_statistics(module, folder):
    """What one pass over all training pictures in one batch gives the only BatchNorm layer."""
    images = torch.cat([batch[0] for batch in module.train_dataloader()])
    with torch.no_grad():
        inputs = module.net[0](images.to(module.net[0].weight.dtype))
    return inputs.mean((0, 2, 3)), inputs.var((0, 2, 3))


def without_dropout():
    """Resumed runs draw other random numbers; without dropout there are none."""
    module = Boring()
    module.net[4].p = 0.0
    return module


class Manual(Boring):
    automatic_optimization = False

    def __init__(self, **settings):
        super().__init__(**settings)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self._loss(batch))
        optimizer.step()


class Adam(Boring):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.01)


class OneCycle(Boring):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=6 * STEPS)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Stream(IterableDataset):
    def __iter__(self):
        pictures = Pictures(64)
        return iter([pictures[index] for index in range(64)])


class Streaming(Boring):
    def train_dataloader(self):
        return DataLoader(Stream(), 16)


class Failing(Boring):
    """Breaks in the fourth validation."""

    def validation_step(self, batch, batch_idx):
        if self.current_epoch == 3:
            raise KeyError("planted")
        super().validation_step(batch, batch_idx)


class Trace(pl.Callback):
    """Learning rate and momentum that each step uses."""

    def __init__(self):
        self.rates, self.momenta = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        group = optimizer.param_groups[0]
        self.rates.append(group["lr"])
        self.momenta.append(group["momentum"])


@pytest.mark.parametrize("module", [Boring, Adam, Manual, Streaming], ids=lambda module: module.__name__)
def test_l1_l2_l3_l8_mean_of_the_epochs_from_start_on(tmp_path, module):
    """Epochs 4 and 5 of 6, the last one included; no step and no training beside the 24 asked for."""
    trainer, trained, snapshots = train(tmp_path, SWACallback(start=4), module=module)
    assert (trainer.global_step, len(snapshots.after)) == (24, 24)
    assert_close(trained.state_dict(), mean([snapshots.after[19], snapshots.after[23]]))
    _, plain, _ = train(tmp_path, module=module)
    assert_same(snapshots.after[23], plain.state_dict())


def test_fraction_epochs_and_steps_are_the_same_start(tmp_path):
    made = [train(tmp_path, SWACallback(start=start))[1].state_dict() for start in (4, 2 / 3, "16 steps")]
    assert_same(made[0], made[1])
    assert_same(made[0], made[2])


def test_lawa_and_every_n_steps(tmp_path):
    swa = SWACallback("lawa", start=0, every=3, window=2)
    _, module, snapshots = train(tmp_path, swa)
    assert swa.main.running.count == 8
    assert_close(module.state_dict(), mean([snapshots.after[20], snapshots.after[23]]))


@pytest.mark.parametrize("every", [1, 4])
def test_w4_w12_ema_is_its_closed_form_from_start_on(tmp_path, every):
    """Weights halve every 5 steps, also when updating every 4; the first snapshot has no more than its share."""
    swa = SWACallback("ema", start=3, every=every, half_life=5)
    _, module, snapshots = train(tmp_path, swa)
    taken = list(range(3 * STEPS + every - 1, 24, every))
    assert swa.main.running.count == len(taken) == 12 // every
    weights = torch.tensor([0.5 ** ((23 - step) / 5) for step in taken], dtype=torch.float64)
    weights /= weights.sum()
    expected = {
        k: sum(w * snapshots.after[s][k].double() for w, s in zip(weights, taken, strict=True)).float()
        for k in parameters(snapshots.after[0])
    }
    assert_close(module.state_dict(), expected)


def test_half_life_in_epochs_is_steps(tmp_path):
    made = [
        train(tmp_path, SWACallback("ema", start=0, every=1, half_life=h), accumulate_grad_batches=2)[1].state_dict()
        for h in (4, "2 epochs")
    ]
    assert_same(made[0], made[1])


class Several(Boring):
    """Manual optimisation by several optimizers, each of which steps in every so many batches."""

    def __init__(self, optimizers=2, every=1):
        super().__init__()
        self.automatic_optimization = False
        self.count, self.every = optimizers, every

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers() if self.count > 1 else [self.optimizers()]:
            optimizer.zero_grad()
            self.manual_backward(self._loss(batch))
            if batch_idx % self.every == self.every - 1:
                optimizer.step()

    def configure_optimizers(self):
        parameters = list(self.parameters())
        return [torch.optim.SGD(parameters[place :: self.count], 0.05) for place in range(self.count)]


@pytest.mark.parametrize(("optimizers", "every"), [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2)])
def test_a_half_life_in_epochs_is_one_whatever_the_number_of_optimizers(tmp_path, optimizers, every):
    """After 12 batches of 3 epochs: weights of an update halve with every epoch of 4 batches that has passed since."""
    swa = SWACallback("ema", start=0, every=1, half_life="1 epochs", bn_refresh=False)
    _, module, snapshots = train(tmp_path, swa, module=Several(optimizers, every), max_epochs=3)
    after = [state["net.5.weight"].double() for state in snapshots.after[every - 1 :: every]]
    shares = [0.5 ** ((12 - every * (place + 1)) / 4) for place in range(len(after))]
    expected = sum(share * weights for share, weights in zip(shares, after, strict=True)) / sum(shares)
    torch.testing.assert_close(module.net[5].weight.detach(), expected.float())


def test_an_epoch_whose_last_batch_does_not_step_has_its_snapshot(tmp_path):
    """Four batches an epoch, steps in the third and in every third after: 1, 1, 1 and 1 more by the ends of epochs."""
    swa = SWACallback(start=0, bn_refresh=False)
    trainer, module, snapshots = train(tmp_path, swa, module=Several(1, 3), max_epochs=3)
    assert trainer.global_step == 3
    assert swa.main.running.count == 3
    ends = [snapshots.after[place]["net.5.weight"].double() for place in (3, 7, 11)]
    torch.testing.assert_close(module.net[5].weight.detach(), (sum(ends) / 3).float())


@pytest.mark.parametrize(("optimizers", "every"), [(1, 1), (2, 1), (3, 1), (2, 2)])
def test_a_cycle_of_an_epoch_is_one_whatever_the_number_of_optimizers(tmp_path, optimizers, every):
    rates = []

    class OfBatches(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            rates.append([optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers])

    train(tmp_path, SWACallback(start=4, lr=[0.07, 0.01]), OfBatches(), module=Several(optimizers, every))
    expected = [0.05] * 16 + [0.07, 0.05, 0.03, 0.01] * 2
    for place in range(optimizers):
        assert [each[place] for each in rates] == pytest.approx(expected)


def test_a_half_life_in_epochs_resumes_inside_an_epoch(tmp_path):
    def of_run():
        return SWACallback("ema", start=0, every=1, half_life="1 epochs", bn_refresh=False)

    def module():
        pl.seed_everything(1)
        made = Several(2)
        made.net[4].p = 0.0
        return made

    whole = train(tmp_path, of_run(), module=module(), max_epochs=3)[1]
    path = tmp_path / "half.ckpt"

    class SavesInside(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 12:
                trainer.save_checkpoint(path)

    train(tmp_path, of_run(), SavesInside(), module=module(), max_epochs=2)
    assert torch.load(path, weights_only=True)["global_step"] == 12
    resumed = train(tmp_path, of_run(), module=module(), ckpt_path=path, max_epochs=3)[1]
    assert_same(resumed.state_dict(), whole.state_dict())


@pytest.mark.parametrize(
    ("stop", "settings"),
    [
        (EarlyStopping("val/loss", patience=1, min_delta=1e9), {}),
        (None, {"max_steps": 10, "max_epochs": -1}),
        (None, {"max_time": {"seconds": 1}, "max_epochs": -1}),
    ],
    ids=["early stopping", "max_steps", "max_time"],
)
def test_l4_an_early_end_keeps_the_average(tmp_path, stop, settings):
    swa = SWACallback(start="1 steps", every=1)
    trainer, module, snapshots = train(tmp_path, swa, *([stop] if stop else []), **settings)
    assert swa.main.running.count == trainer.global_step - 1
    assert_close(module.state_dict(), mean(snapshots.after[1:]))


def test_l5_second_fit_starts_anew_from_the_average(tmp_path):
    swa = SWACallback(start="1 steps", every=1)
    trainer, module, _ = train(tmp_path, swa, max_epochs=2)
    returned = copy_of(module)
    (snapshots,) = [c for c in trainer.callbacks if isinstance(c, Snapshots)]
    snapshots.after.clear()
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module)
    assert len(snapshots.after) == 8
    assert not torch.equal(snapshots.after[0]["net.0.weight"], returned["net.0.weight"])
    assert swa.main.running.count == 8
    assert_close(module.state_dict(), mean(snapshots.after))


def test_l6_the_users_schedule_is_left_alone_or_overridden_without_loss(tmp_path):
    traces = []
    for callbacks in ([], [SWACallback(start=4)], [SWACallback(start=4, lr=0.01)]):
        traces.append(Trace())
        train(tmp_path, *callbacks, traces[-1], module=OneCycle())
    plain, left, own = traces
    assert left.rates == plain.rates
    assert left.momenta == own.momenta == plain.momenta
    assert own.rates == plain.rates[:16] + [0.01] * 8


def test_cyclic_learning_rate_ends_low_where_the_snapshot_is_taken(tmp_path):
    trace = Trace()
    train(tmp_path, SWACallback(start=4, lr=[0.07, 0.01]), trace)
    assert trace.rates == pytest.approx([0.05] * 16 + [0.07, 0.05, 0.03, 0.01] * 2)


def test_groups_keep_their_ratio_of_learning_rates(tmp_path):
    class Groups(Boring):
        def configure_optimizers(self):
            groups = [{"params": self.net[0].parameters()}, {"params": self.net[5].parameters(), "lr": 0.005}]
            return torch.optim.SGD(groups, 0.05)

    trainer, _, _ = train(tmp_path, SWACallback(start=2, lr=0.02), module=Groups())
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == pytest.approx([0.02, 0.002])


class TwoRates(Boring):
    def __init__(self):
        super().__init__()
        self.net[4].p = 0.0

    def configure_optimizers(self):
        groups = [{"params": self.net[0].parameters()}, {"params": self.net[5].parameters(), "lr": 0.005}]
        return torch.optim.SGD(groups, 0.05)


class RatesOfGroups(pl.Callback):
    def __init__(self):
        self.rates = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append([group["lr"] for group in optimizer.param_groups])


@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("resumed", [False, True])
def test_groups_keep_their_ratio_over_cycles_to_zero(tmp_path, resumed):
    """Also where a run is resumed whose rates are all 0."""
    rates = RatesOfGroups()
    if resumed:
        keeper, saving = ModelCheckpoint(tmp_path, "half"), {"enable_checkpointing": True}
        train(tmp_path, SWACallback(start=0, lr=[0.1, 0.0]), rates, keeper, module=TwoRates(), max_epochs=1, **saving)
        assert rates.rates[-1] == [0.0, 0.0]
        settings = {"ckpt_path": tmp_path / "half.ckpt"}
    else:
        settings = {}
    train(tmp_path, SWACallback(start=0, lr=[0.1, 0.0]), rates, module=TwoRates(), max_epochs=3, **settings)
    one = [0.1, 0.2 / 3, 0.1 / 3, 0.0]
    assert [first for first, _ in rates.rates] == pytest.approx(one * 3)
    assert [second for _, second in rates.rates] == pytest.approx([each / 10 for each in one] * 3)


def test_l7_as_many_epochs_as_asked(tmp_path):
    trainer, _, snapshots = train(tmp_path, SWACallback(start=0), max_epochs=4)
    assert (trainer.current_epoch, trainer.global_step, len(snapshots.validated)) == (4, 16, 4)


@pytest.mark.parametrize("weights_only", [False, True])
def test_w1_w2_validated_is_saved_tested_and_returned(tmp_path, weights_only):
    class Tested(Boring):
        def test_step(self, batch, batch_idx):
            self.log("test/loss", self._loss(batch))

        def test_dataloader(self):
            return self.val_dataloader()

    keeper = ModelCheckpoint(
        tmp_path, "{epoch}", monitor="val/loss", save_top_k=-1, save_weights_only=weights_only, mode="max"
    )
    trainer, module, snapshots = train(
        tmp_path, SWACallback(start=2, every=1), keeper, module=Tested(), enable_checkpointing=True
    )
    assert len(keeper.best_k_models) == 6
    for epoch in range(6):
        saved = torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True)["state_dict"]
        for name, tensor in snapshots.validated[epoch].items():
            assert torch.equal(saved[name], tensor), (epoch, name)
    for name, tensor in snapshots.validated[5].items():
        assert torch.equal(module.state_dict()[name], tensor), name
    (tested,) = trainer.test(module, ckpt_path="best", verbose=False, weights_only=True)
    assert tested["test/loss"] == pytest.approx(float(keeper.best_model_score), rel=1e-6)


def test_predict_uses_what_was_returned(tmp_path):
    trainer, module, snapshots = train(tmp_path, SWACallback(start=4))
    images = Pictures(8).images
    expected = Boring()
    expected.load_state_dict(snapshots.validated[5])
    predicted = torch.cat(trainer.predict(module, DataLoader(images, 4)))
    assert torch.equal(predicted, expected.eval()(images))


def test_w3_before_the_start_validation_sees_the_weights_as_trained(tmp_path):
    _, _, snapshots = train(tmp_path, SWACallback(start=4))
    for epoch in range(4):
        assert_same(snapshots.validated[epoch], snapshots.after[4 * epoch + 3])


def test_w3_a_start_that_never_comes_leaves_the_weights_as_trained(tmp_path):
    with pytest.warns(NoEffectWarning, match="start=50"):
        _, module, snapshots = train(tmp_path, SWACallback(start=50))
    assert_same(module.state_dict(), snapshots.after[-1])
    assert torch.equal(module.state_dict()["net.1.running_var"], snapshots.after[-1]["net.1.running_var"])


@pytest.mark.filterwarnings("ignore:.*(was called without a model|no last checkpoint)")
def test_w5_an_exception_leaves_the_average_and_an_exact_file(tmp_path):
    module = Failing()
    keeper = OnExceptionCheckpoint(tmp_path, "failed")
    snapshots = Snapshots()
    swa = SWACallback(start=0, every=1, compare_raw=False)
    pl.seed_everything(1)
    trainer = make_trainer(tmp_path, [keeper, swa, snapshots], max_epochs=6, enable_checkpointing=True)
    with pytest.raises(KeyError, match="planted"):
        trainer.fit(module)
    expected = mean(snapshots.after)
    assert_close(module.state_dict(), expected)
    content = torch.load(tmp_path / "failed.ckpt", weights_only=True)
    assert_close(content["state_dict"], expected)
    assert_same(content["raw_state_dict"], snapshots.after[-1])


def test_w6_another_model_is_validated_as_it_is(tmp_path):
    trainer, _, _ = train(tmp_path, SWACallback(start=0))
    torch.manual_seed(5)
    other = Boring()
    before = copy_of(other)
    (measured,) = trainer.validate(other, verbose=False)
    (expected,) = make_trainer(tmp_path).validate(other, verbose=False)
    assert measured == expected
    assert_same(other.state_dict(), before)


def test_w7_resuming_without_the_callback_is_warned_about(tmp_path):
    trainer, _, _ = train(tmp_path, SWACallback(start=0), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    with pytest.warns(UserWarning, match="SWACallback"):
        train(tmp_path, max_epochs=3, ckpt_path=tmp_path / "two.ckpt")


def test_w8_a_file_written_after_the_fit_keeps_both(tmp_path):
    trainer, module, snapshots = train(tmp_path, SWACallback(start=4), module=without_dropout)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    assert_same(load_averaged(tmp_path / "after.ckpt"), module.state_dict())
    assert_same(load_averaged(tmp_path / "after.ckpt", "raw"), snapshots.after[-1])
    settings = {"max_epochs": 7, "ckpt_path": tmp_path / "after.ckpt"}
    resumed, again, _ = train(tmp_path, SWACallback(start=4), module=without_dropout, **settings)
    _, whole, _ = train(tmp_path, SWACallback(start=4), module=without_dropout, max_epochs=7)
    assert resumed.global_step == 28
    assert_same(again.state_dict(), whole.state_dict())


def test_w9_the_average_of_a_bf16_module_is_kept_in_fp32(tmp_path):
    swa = SWACallback("ema", start=0, every=1, half_life=700)
    _, module, snapshots = train(tmp_path, swa, precision="bf16-true")
    assert {t.dtype for t in swa.main.values if t.is_floating_point()} == {torch.float32}
    assert module.net[0].weight.dtype == torch.bfloat16
    weights = 0.5 ** (torch.arange(23, -1, -1, dtype=torch.float64) / 700)
    stack = torch.stack([state["net.5.weight"].double() for state in snapshots.after])
    expected = torch.tensordot(weights / weights.sum(), stack, 1)
    place = swa.state_dict()["names"].index("net.5.weight")
    torch.testing.assert_close(swa.main.values[place].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bn_refresh", [True, "layerwise"])
def test_w10_batchnorm_is_exact_and_counters_are_copied(tmp_path, bn_refresh):
    _, module, _ = train(tmp_path, SWACallback(start=2, every=1, bn_refresh=bn_refresh))
    expected = reference_statistics(module, tmp_path)
    torch.testing.assert_close(module.net[1].running_mean, expected[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(module.net[1].running_var, expected[1], rtol=1e-6, atol=1e-6)
    assert module.net[1].num_batches_tracked == 24


def test_without_refresh_statistics_are_averaged(tmp_path):
    _, module, snapshots = train(tmp_path, SWACallback(start=4, bn_refresh=False))
    expected = mean([snapshots.after[19], snapshots.after[23]])
    torch.testing.assert_close(module.net[1].running_var, expected["net.1.running_var"])


def test_w11_validating_the_average_copies_nothing(tmp_path):
    class Pointers(pl.Callback):
        def on_validation_batch_end(self, trainer, pl_module, *_):
            self.inside = [p.data_ptr() for p in pl_module.parameters()]

        def on_validation_end(self, trainer, pl_module):
            self.outside = [p.data_ptr() for p in pl_module.parameters()]

    pointers, swa = Pointers(), SWACallback(start=0)
    train(tmp_path, swa, pointers)
    shadows = [tensor.data_ptr() for tensor in swa.main.values[: len(pointers.inside)]]
    assert pointers.inside == shadows
    assert not set(pointers.outside) & set(shadows)


def test_raw_and_further_averages_are_measured_too(tmp_path):
    further = {"ema_fast": {"kind": "ema", "half_life": 2, "every": 1}, "last2": {"kind": "lawa", "window": 2}}
    keeper = ModelCheckpoint(tmp_path, "last")
    trainer, _, snapshots = train(
        tmp_path, SWACallback(start=3, also=further), keeper, enable_checkpointing=True, logger=CSVLogger(tmp_path)
    )
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
    for which, tag in (("raw", "swa/raw/val/loss"), ("averaged", "val/loss")):
        other = Boring()
        other.load_state_dict(load_averaged(tmp_path / "last.ckpt", which))
        (measured,) = make_trainer(tmp_path).validate(other, verbose=False)
        assert metrics[tag] == pytest.approx(measured["val/loss"], rel=1e-6)
    assert_close(load_averaged(tmp_path / "last.ckpt", "last2"), mean([snapshots.after[19], snapshots.after[23]]))
    assert metrics["swa/snapshots"] == 3
    assert (
        len({metrics[k] for k in ("val/loss", "swa/raw/val/loss", "swa/ema_fast/val/loss", "swa/last2/val/loss")}) == 4
    )
    header = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()[0]
    assert {"swa/raw/val/loss", "swa/last2/val/loss", "val/loss"} <= set(header.split(","))


def test_the_raw_metric_can_be_monitored_before_the_start(tmp_path):
    stopper = EarlyStopping("swa/raw/val/loss", patience=20)
    trainer, _, _ = train(tmp_path, SWACallback(start=4), stopper)
    assert stopper.best_score == pytest.approx(float(trainer.callback_metrics["swa/raw/val/loss"]))


class Detector(pl.LightningModule):
    """Frozen BatchNorm in the backbone, a trained one in the head, dict batches, two losses, two optimizers."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.scores, self.boxes = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 4, 1)
        self.train()

    def train(self, mode=True):
        super().train(mode)
        self.backbone[1].eval()
        return self

    def forward(self, image):
        features = self.head(self.backbone(image))
        return {"scores": self.scores(features), "boxes": self.boxes(features)}

    def losses(self, batch):
        found = self(batch["image"])
        mask = (batch["image"].mean(1) > 0.5).long()
        return {
            "mask": nn.functional.cross_entropy(found["scores"], mask),
            "box": nn.functional.l1_loss(found["boxes"], batch["image"].mean(1, keepdim=True).expand(-1, 4, -1, -1)),
        }

    def training_step(self, batch, batch_idx):
        optimizers = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(sum(self.losses(batch).values()))
        for optimizer in optimizers:
            optimizer.step()

    def validation_step(self, batch, batch_idx):
        self.log_dict({f"val/{name}": value for name, value in self.losses(batch).items()})

    def configure_optimizers(self):
        return [
            torch.optim.SGD(self.backbone.parameters(), 0.01),
            torch.optim.Adam([*self.head.parameters(), *self.scores.parameters(), *self.boxes.parameters()], 0.01),
        ]

    def train_dataloader(self):
        return DataLoader([{"image": image} for image, _ in Pictures(48)], 16)

    val_dataloader = train_dataloader


@pytest.mark.filterwarnings("ignore:Found 1 module")
def test_detection_style_module(tmp_path):
    """Frozen statistics stay, trained ones are exact, and every loss is measured on both weights."""
    trainer, module, snapshots = train(
        tmp_path, SWACallback(start=1, input_key="image"), module=Detector(), max_epochs=3
    )
    assert_close(module.state_dict(), mean([snapshots.after[5], snapshots.after[8]]))
    assert torch.equal(module.backbone[1].running_mean, torch.zeros(4))
    images = Pictures(48).images
    with torch.no_grad():
        inputs = module.head[0](module.backbone.eval()(images))
    torch.testing.assert_close(module.head[1].running_mean, inputs.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(module.head[1].running_var, inputs.var((0, 2, 3)), rtol=1e-5, atol=1e-6)
    assert {"val/mask", "val/box", "swa/raw/val/mask", "swa/raw/val/box"} <= set(trainer.callback_metrics)


def on_grid(tensor, bits=8):
    """Whether each block's values are integers of so many bits times one power of two."""
    for block in tensor if tensor.ndim > 1 else [tensor]:
        largest = block.abs().max().item()
        if largest == 0:
            continue
        # clamping and rounding may carry the largest value one step beyond the block's range
        for exponent in (math.frexp(largest)[1] - 1, math.frexp(largest)[1] - 2):
            steps = block / 2.0 ** (exponent - (bits - 2))
            if torch.equal(steps, steps.round()) and steps.abs().max() <= 2 ** (bits - 1):
                break
        else:
            return False
    return True


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
        lambda p: torch.optim.AdamW(p, 0.01),
        lambda p: torch.optim.RMSprop(p, 0.01),
    ],
    ids=["SGD", "AdamW", "RMSprop"],
)
def test_swalp_keeps_a_step_in_few_bits_and_the_average_in_fp32(tmp_path, optimizer):
    class Own(Boring):
        def configure_optimizers(self):
            return optimizer(self.parameters())

    class Grid(pl.Callback):
        def __init__(self):
            self.checked = 0

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            assert all(on_grid(p) for p in pl_module.parameters())
            assert all(on_grid(p.grad) for p in pl_module.parameters())
            for state in optimizer.state.values():
                assert all(on_grid(state[key]) for key in ("momentum_buffer", "exp_avg") if key in state)
            self.checked += 1

    grid, swa = Grid(), SWACallback(start=4, word_length=8)
    _, module, snapshots = train(tmp_path, swa, grid, module=Own())
    assert grid.checked == 24
    assert_close(module.state_dict(), mean([snapshots.after[19], snapshots.after[23]]))
    assert not on_grid(module.net[5].weight.detach())
    assert not module.net[0]._forward_hooks


def test_swalp_rounds_activations_and_errors_but_not_the_logits(tmp_path):
    seen = {}

    class Watched(Boring):
        def training_step(self, batch, batch_idx):
            hidden = self.net[0](batch[0])
            hidden.register_hook(lambda error: seen.__setitem__("incoming", error))
            seen["hidden"] = hidden.detach()
            seen["logits"] = self.net[1:](hidden).detach()
            return super().training_step(batch, batch_idx)

        def on_after_backward(self):
            seen["bias"] = self.net[0].bias.grad.clone()

    train(tmp_path, SWACallback(start=0, word_length=8), module=Watched(), max_epochs=1)
    assert on_grid(seen["hidden"].flatten())
    assert not on_grid(seen["logits"].flatten())
    # the bias' gradient is the sum of 1024 rounded errors: exact multiples of their step
    assert torch.equal(seen["bias"] * 2**40, (seen["bias"] * 2**40).round())


class HeadFirst(Boring):
    """The layer that gives the logits is made before the others."""

    def __init__(self):
        super().__init__()
        self.net[4].p = 0.0
        *stem, head = self.net
        del self.net
        self.head, self.stem = head, nn.Sequential(*stem)

    def forward(self, images):
        return self.head(self.stem(images))


class Rotated(RotationSSLMixin, HeadFirst):
    def features(self, images):
        return self.stem(images)


class TwoHeads(HeadFirst):
    """The loss is of two heads, and one of them is also a step on the way to the other."""

    def __init__(self):
        super().__init__()
        self.second, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, images):
        logits = self.head(self.stem(images))
        return logits + self.second(logits.relu())


class Looks(pl.Callback):
    """Which layers round what they give, in every step."""

    def __init__(self, heads):
        self.heads = heads

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.rounded, self.handles = {}, []
        # behind the hooks that round
        for name, layer in pl_module.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                self.handles.append(layer.register_forward_hook(functools.partial(self.look, name)))

    def look(self, name, layer, _, output):
        if layer.training:
            self.rounded[name] = on_grid(output.detach().flatten())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        for handle in self.handles:
            handle.remove()
        first = trainer.current_epoch == batch_idx == 0
        unrounded = {name for name, rounded in self.rounded.items() if not rounded}
        assert unrounded == (set(self.rounded) if first else set(self.heads))


@pytest.mark.parametrize(
    ("make", "heads"),
    [
        (HeadFirst, ["head"]),
        (lambda: Rotated(rotation_weight=1.0), ["head", "rotation_head"]),
        (TwoHeads, ["second"]),
        (lambda: Several(2), ["net.5"]),
    ],
    ids=["head first", "rotation", "two heads", "manual"],
)
def test_swalp_leaves_the_heads_whatever_their_place_in_the_module(tmp_path, make, heads):
    swa = SWACallback(start=0, word_length=8, bn_refresh=False)
    pl.seed_everything(1)
    make_trainer(tmp_path, [swa, Looks(heads)], max_epochs=2).fit(make())
    assert sorted(swa.state_dict()["exempt"]) == sorted(heads)


def test_a_run_with_nothing_left_to_train_holds_the_average(tmp_path):
    """Lightning may save a last time when training ends; who resumes from that gets what the fit returned."""
    average = {"start": 0, "kind": "ema", "half_life": 3}
    trainer, module, _ = train(tmp_path, SWACallback(**average), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    raw = torch.load(tmp_path / "end.ckpt", weights_only=True)["raw_state_dict"]
    _, resumed, _ = train(tmp_path, SWACallback(**average), max_epochs=2, ckpt_path=tmp_path / "end.ckpt")
    assert any(not torch.equal(raw[name], tensor) for name, tensor in module.state_dict().items())
    for name, tensor in module.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
