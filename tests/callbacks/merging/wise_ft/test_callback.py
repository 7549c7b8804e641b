"""WiSE-FT on a module with one weight, where the curve is a closed form, and on BatchNorm and heads."""

import copy
import json
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from scipy.stats import binomtest
from torch import nn
from torch.utils.data import DataLoader

from lightning_robust import GreedySoupCallback, NoEffectWarning, WiSEFTCallback

from ....boring import Boring, Pictures, make_trainer
from ..modules import Adapted, LazyScalar, late

pytestmark = pytest.mark.filterwarnings("ignore:WiSEFTCallback:lightning_robust.NoEffectWarning")


@pytest.fixture
def half_way(monkeypatch):
    """Half of each, whatever the metric says of it."""
    monkeypatch.setattr("lightning_robust.callbacks.merging.wise_ft.callback.choose_alpha", lambda *_, **__: 0.5)


class Scalar(pl.LightningModule):
    """Fine-tuned from w = 0 to w = 1; each loader's loss is (w - t)^2."""

    def __init__(self, targets=(1.0, 0.4)):
        super().__init__()
        self.save_hyperparameters()
        self.w = nn.Parameter(torch.tensor([0.0]))

    def forward(self, x):
        return x * self.w

    def training_step(self, batch, batch_idx):
        return (self.w - 1).square().sum()

    def on_train_batch_end(self, *_):
        with torch.no_grad():
            self.w.fill_(1.0)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("val/loss", (self.w - self.hparams.targets[dataloader_idx]).square().sum())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)

    def train_dataloader(self):
        return DataLoader(torch.zeros(1, 1))

    def val_dataloader(self):
        return [DataLoader(torch.zeros(1, 1)) for _ in self.hparams.targets]


def run(folder, wise_ft, *callbacks, module=None, ckpt_path=None, **settings):
    pl.seed_everything(1)
    trainer = make_trainer(
        folder, [*callbacks, wise_ft], **({"max_epochs": 2, "enable_checkpointing": True} | settings)
    )
    module = module or Scalar()
    trainer.fit(module, ckpt_path=ckpt_path)
    return trainer, module


def judged(**settings):
    return WiSEFTCallback(**({"monitor": "val/loss", "mode": "min"} | settings))


@pytest.mark.parametrize(
    ("epsilon", "expected"),
    # inside (w - 1)^2 <= epsilon: w >= 1 - sqrt(epsilon), and of these the nearest to 0.4
    [(0.0, 1.0), (0.011, 0.9), (0.05, 0.8), (0.37, 0.4), (1.0, 0.4)],
)
@pytest.mark.filterwarnings("ignore::lightning_robust.NoEffectWarning")
def test_closed_form(tmp_path, epsilon, expected):
    wise_ft = judged(epsilon=epsilon, dirpath=str(tmp_path / "out"))
    trainer, module = run(tmp_path, wise_ft)
    assert module.w.item() == pytest.approx(expected)
    content = json.loads((tmp_path / "out" / "wise_ft.json").read_text())
    assert content["alphas"] == pytest.approx([i / 10 for i in range(11)])
    for alpha, (inside, shifted) in zip(content["alphas"], content["values"], strict=True):
        assert inside == pytest.approx((alpha - 1) ** 2, abs=1e-6)
        assert shifted == pytest.approx((alpha - 0.4) ** 2, abs=1e-6)
    metrics = trainer.callback_metrics
    assert metrics["wise_ft/alpha"].item() == pytest.approx(expected)
    assert metrics["wise_ft/shifted"].item() == pytest.approx((expected - 0.4) ** 2, abs=1e-6)


def test_one_loader_leaves_the_run_as_it_is_without_the_callback(tmp_path):
    """Weights, best checkpoint and files bit for bit, though half way the loss of 0.04 would be 0.64 times smaller."""
    ends = {}
    for name, callbacks in {"plain": [], "wise_ft": [judged(dirpath=str(tmp_path / "out"))]}.items():
        keeper = ModelCheckpoint(
            tmp_path / name, monitor="val/loss", auto_insert_metric_name=False, save_weights_only=True
        )
        pl.seed_everything(1)
        trainer = make_trainer(tmp_path, [keeper, *callbacks], max_epochs=2, enable_checkpointing=True)
        module = Scalar([0.8])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NoEffectWarning)
            trainer.fit(module)
        ends[name] = module.w.item(), Path(keeper.best_model_path).name, float(keeper.best_model_score)
    assert ends["plain"] == ends["wise_ft"]
    assert ends["plain"][0] == 1.0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["wise_ft.json"]
    content = json.loads((tmp_path / "out" / "wise_ft.json").read_text())
    assert content["alpha"] == 1
    expected = [[pytest.approx((alpha - 0.8) ** 2, abs=1e-6)] for alpha in content["alphas"]]
    assert content["values"] == expected


@pytest.mark.parametrize("sanity", [0, 1])
def test_one_loader_is_said_before_training_is_spent(tmp_path, sanity):
    class StopsLater(pl.Callback):
        def on_validation_end(self, trainer, _):
            raise KeyboardInterrupt

    stop = Interrupts() if sanity else StopsLater()
    with pytest.warns(NoEffectWarning, match="one validation loader measures no shift"), pytest.raises(SystemExit):
        run(tmp_path, judged(), stop, module=Scalar([1.0]), num_sanity_val_steps=sanity)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoEffectWarning)
        run(tmp_path, judged(epsilon=9.0))


def test_a_fresh_module_is_warned_of_at_the_start_and_a_trained_one_is_not(tmp_path):
    with pytest.warns(NoEffectWarning, match="look like a fresh initialisation"), pytest.raises(SystemExit):
        run(tmp_path, judged(), Interrupts(), module=Boring())
    module = Boring()
    trained = {
        name: tensor + 0.01 if tensor.is_floating_point() else tensor for name, tensor in module.state_dict().items()
    }
    module.load_state_dict(trained)
    torch.save({"state_dict": trained}, tmp_path / "trained.ckpt")
    for file, loaded in ((None, module), (str(tmp_path / "trained.ckpt"), Boring())):
        with warnings.catch_warnings():
            warnings.simplefilter("error", NoEffectWarning)
            warnings.filterwarnings("ignore", "WiSEFTCallback: one validation loader")
            with pytest.raises(SystemExit):
                run(tmp_path, judged(zero_shot=file), Interrupts(), module=loaded)


class Interrupts(pl.Callback):
    def on_train_batch_start(self, *_):
        raise KeyboardInterrupt


class Recorded(pl.Callback):
    def on_fit_start(self, trainer, pl_module):
        self.start = {k: v.clone() for k, v in pl_module.state_dict().items()}

    def on_train_end(self, trainer, pl_module):
        self.end = {k: v.clone() for k, v in pl_module.state_dict().items()}


@pytest.mark.filterwarnings("ignore::lightning_robust.NoEffectWarning")
@pytest.mark.parametrize(("alphas", "which"), [([0.0], "start"), ([1.0], "end")])
def test_the_ends_are_bit_for_bit(tmp_path, monkeypatch, alphas, which):
    monkeypatch.setattr("lightning_robust.callbacks.merging.wise_ft.callback.choose_alpha", lambda *_, **__: alphas[0])
    recorded = Recorded()
    _, module = run(tmp_path, judged(), recorded, module=Boring())
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, getattr(recorded, which)[name]), name


def test_batchnorm_between_the_ends_is_refreshed(tmp_path, half_way):
    _, module = run(tmp_path, judged(), module=Boring())
    images = torch.cat([batch[0] for batch in module.train_dataloader()])
    with torch.no_grad():
        inputs = module.net[0](images)
    torch.testing.assert_close(module.net[1].running_mean, inputs.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)


def test_a_file_is_the_same_as_the_start(tmp_path, half_way):
    pl.seed_everything(1)
    torch.save({"state_dict": Boring().state_dict()}, tmp_path / "start.ckpt")
    module = Boring()
    module.load_state_dict(torch.load(tmp_path / "start.ckpt")["state_dict"])
    _, one = run(tmp_path, judged(zero_shot=str(tmp_path / "start.ckpt")), module=module)
    module = Boring()
    module.load_state_dict(torch.load(tmp_path / "start.ckpt")["state_dict"])
    _, two = run(tmp_path, judged(), module=module)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name


def test_a_new_head_stays_fine_tuned(tmp_path, half_way):
    state = Boring().state_dict()
    state["net.5.weight"] = torch.zeros(7, 256)
    del state["net.5.bias"]
    torch.save(state, tmp_path / "start.ckpt")
    recorded = Recorded()
    _, module = run(tmp_path, judged(zero_shot=str(tmp_path / "start.ckpt")), recorded, module=Boring())
    for name in ("net.5.weight", "net.5.bias"):
        assert torch.equal(module.state_dict()[name], recorded.end[name])
    middle = (state["net.0.weight"] + recorded.end["net.0.weight"]) / 2
    torch.testing.assert_close(module.state_dict()["net.0.weight"], middle)


def test_a_file_of_another_width_is_one_sentence_before_training(tmp_path):
    """Its head has the same offset, which alone would have been interpolated."""
    wide = {k: v.repeat_interleave(2, 0) if v.ndim else v for k, v in Boring().state_dict().items()}
    wide["net.5.bias"] = Boring().state_dict()["net.5.bias"]
    torch.save(wide, tmp_path / "wide.ckpt")
    module = Boring()
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(
        ValueError, match=r"^Expected \S+ of shape \(.*\) in .*wide.ckpt, but got .*differ\)\. Only a head"
    ):
        run(tmp_path, judged(zero_shot=str(tmp_path / "wide.ckpt")), module=module)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("other", [True, False])
def test_a_file_from_another_start_is_said(tmp_path, half_way, other):
    pl.seed_everything(1)
    module = Boring()
    torch.save((Boring() if other else module).state_dict(), tmp_path / "start.ckpt")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(tmp_path, judged(zero_shot=str(tmp_path / "start.ckpt")), module=module, max_epochs=1)
    assert sum("start.ckpt are no start of this fit (cosine" in str(each.message) for each in caught) == other


def test_returned_is_saved_and_tested_as_best(tmp_path):
    keeper = ModelCheckpoint(tmp_path, monitor="val/loss/dataloader_idx_0", auto_insert_metric_name=False)
    wise_ft = judged(epsilon=0.05, monitor=["val/loss/dataloader_idx_0", "val/loss/dataloader_idx_1"])
    trainer, module = run(tmp_path, wise_ft, keeper)
    assert Scalar.load_from_checkpoint(wise_ft.path).w.item() == module.w.item() == pytest.approx(0.8)
    trainer.validate(module, ckpt_path="best", verbose=False, weights_only=True)
    assert float(trainer.callback_metrics["val/loss/dataloader_idx_1"]) == pytest.approx(0.16, rel=1e-5)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_resume_goes_back_to_the_first_start(tmp_path):
    run(tmp_path, judged(epsilon=1.0), ModelCheckpoint(tmp_path, "one"), max_epochs=1)
    assert torch.load(tmp_path / "one.ckpt", weights_only=True)["state_dict"]["w"].item() == 1.0
    _, module = run(tmp_path, judged(epsilon=1.0), ckpt_path=tmp_path / "one.ckpt", max_epochs=2)
    assert module.w.item() == pytest.approx(0.4)


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
def test_layers_that_a_module_builds_late_have_counterparts(tmp_path, hook, half_way):
    torch.save({"w": torch.tensor([0.5])}, tmp_path / "start.ckpt")
    module = late(Scalar, hook, (1.0,))
    run(tmp_path, judged(zero_shot=str(tmp_path / "start.ckpt")), module=module)
    assert module.w.item() == 0.75


def test_a_lazy_module_starts_from_its_first_weights(tmp_path, half_way):
    """Each of four steps adds 1, so that half way between start and end is 2 below the end."""
    ends = Recorded()
    pl.seed_everything(1)
    module = LazyScalar()
    trainer = make_trainer(tmp_path, [ends, judged()], max_epochs=4, enable_checkpointing=True)
    ends.on_fit_start = lambda *_: None
    trainer.fit(module)
    assert module.net.weight.item() == pytest.approx(ends.end["net.weight"].item() - 2)


def test_adapters_keep_alpha_of_their_update_exactly(tmp_path, half_way):
    """Factors that begin with B = 0, as peft's do; halves of both would keep less than a half."""
    module, trained = Adapted(), {}

    class KeepsUpdate(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            trained["update"], trained["state"] = pl_module.update(), pl_module.state_dict()

    start = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    run(tmp_path, judged(), KeepsUpdate(), module=module, max_epochs=5)
    half = module.update()
    assert torch.linalg.norm(trained["update"]) > 0.1
    share = (half * trained["update"]).sum() / trained["update"].square().sum()
    assert share.item() == pytest.approx(0.5, abs=1e-6)
    torch.testing.assert_close(half, 0.5 * trained["update"], rtol=1e-6, atol=1e-7)
    for name, tensor in start.items():
        if "lora" not in name:
            assert torch.equal(module.state_dict()[name], tensor), name


def test_adapters_that_do_not_begin_at_zero_are_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"neither begins at zero.*merge_and_unload"):
        run(tmp_path, judged(), module=Adapted(init_lora_weights=False))
    with pytest.raises(ValueError, match="use_dora"):
        run(tmp_path, judged(), module=Adapted(use_dora=True))


def test_fine_tuned_as_best_is_said(tmp_path):
    with pytest.warns(NoEffectWarning, match="fine-tuned weights are the best"):
        _, module = run(tmp_path, judged(), module=Scalar([1.0, 1.2]))
    assert module.w.item() == 1.0


def test_a_missing_metric_leaves_the_weights_as_trained(tmp_path):
    with pytest.warns(UserWarning, match=r"stay as trained.*'val/accuracy'"):
        _, module = run(tmp_path, judged(monitor="val/accuracy"))
    assert module.w.item() == 1.0
    with pytest.raises(ValueError, match="val/accuracy"):
        run(tmp_path, judged(monitor="val/accuracy", on_failure="raise"))


def test_bad_settings_are_refused_before_training(tmp_path):
    for settings in ({"alphas": [1.2]}, {"alphas": []}, {"epsilon": -1.0}):
        with pytest.raises(ValueError, match="Expected"):
            WiSEFTCallback(**settings)
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="none of \\['other'\\]"):
        run(tmp_path, judged(zero_shot=str(tmp_path / "other.ckpt")))
    with pytest.raises(FileNotFoundError):
        run(tmp_path, judged(zero_shot=str(tmp_path / "missing.ckpt")))
    with pytest.raises(MisconfigurationException, match="Set `monitor`"):
        run(tmp_path, WiSEFTCallback(), enable_checkpointing=False)
    late = GreedySoupCallback(monitor="val/loss", mode="min")
    with pytest.raises(MisconfigurationException, match="Expected GreedySoupCallback before WiSEFTCallback"):
        make_trainer(tmp_path, [judged(), late], enable_checkpointing=True).fit(Scalar())


class Shares(Scalar):
    """Of three loaders, the share w / 2, of five samples each."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("val/acc", self.w.squeeze() / 2, batch_size=len(batch))

    def val_dataloader(self):
        return [DataLoader(torch.zeros(5, 1), 5) for _ in range(3)]


def test_the_file_and_the_table_have_the_intervals(tmp_path):
    """Wilson's, by SciPy."""
    logger = CSVLogger(tmp_path, "run")
    told = judged(monitor="val/acc", mode="max", alphas=[0.8], dirpath=str(tmp_path / "out"))
    run(tmp_path, told, module=Shares(), logger=logger)
    content = json.loads((tmp_path / "out" / "wise_ft.json").read_text())
    assert content["samples"] == [5, 5, 5]
    ends = binomtest(2, 5).proportion_ci(method="wilson")
    assert content["values"][2] == pytest.approx([0.4] * 3)
    assert [end for pair in content["intervals"][2] for end in pair] == pytest.approx([*ends] * 3, abs=1e-6)


class TwoDays(Boring):
    """Validated on two loaders."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log("val/loss", self._loss(batch))

    def val_dataloader(self):
        return [self._loader(Pictures()) for _ in range(2)]


def test_the_ends_are_measured_with_the_statistics_of_batchnorm_that_they_have(tmp_path):
    """At alpha 1 the metric is that of the last validation; refreshed statistics would give another."""
    module = TwoDays()
    start = copy.deepcopy(module)
    trainer, _ = run(tmp_path, judged(dirpath=str(tmp_path / "out"), alphas=[0.5]), module=module)
    content = json.loads((tmp_path / "out" / "wise_ft.json").read_text())
    assert content["alphas"] == [0.0, 0.5, 1.0]
    validated = float(trainer.callback_metrics["val/loss/dataloader_idx_0"])
    assert content["values"][2][0] == pytest.approx(validated, rel=1e-6)
    (first, *_) = make_trainer(tmp_path).validate(start, verbose=False)
    assert content["values"][0][0] == pytest.approx(first["val/loss/dataloader_idx_0"], rel=1e-6)
