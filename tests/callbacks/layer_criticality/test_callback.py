"""Criticality maps whose cells are a closed form, or equal to validating the network with a layer exchanged by hand."""

import copy
import json

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lightning_robust import LayerCriticalityCallback, NoEffectWarning, SWACallback
from lightning_robust.callbacks.layer_criticality.rewind import rewind
from lightning_robust.deployment.pixels.corruptions import Corruption
from lightning_robust.functional.attacks import fgsm
from lightning_robust.layers import find_layers

from ...boring import Boring, Pictures, make_trainer


class Scalar(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))


class Sum(pl.LightningModule):
    """The metric is a + 10 b; both rise from 0 to 1 in equal steps, one an epoch."""

    def __init__(self, epochs=4):
        super().__init__()
        self.save_hyperparameters()
        self.a, self.b = Scalar(), Scalar()
        self.weights = (1.0, 10.0)

    def training_step(self, batch, batch_idx):
        return 0 * (self.a.w + self.b.w).sum()

    def on_train_batch_end(self, *_):
        with torch.no_grad():
            for layer in (self.a, self.b):
                layer.w += 1 / self.hparams.epochs

    def validation_step(self, batch, batch_idx):
        self.log("val/score", self.weights[0] * self.a.w.sum() + self.weights[1] * self.b.w.sum())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)

    def train_dataloader(self):
        return DataLoader(torch.zeros(1, 1))

    def val_dataloader(self):
        return DataLoader(torch.zeros(6, 1))


def run(folder, module, *callbacks, epochs=4, **settings):
    pl.seed_everything(1)
    trainer = make_trainer(folder, list(callbacks), max_epochs=epochs, **settings)
    trainer.fit(module)
    return trainer


def of_sum(folder, **settings):
    criticality = LayerCriticalityCallback("val/score", "max", on_failure="raise", **settings)
    module = Sum()
    return criticality, module, run(folder, module, criticality)


def test_cells_distances_and_verdicts_of_a_sum_are_a_closed_form(tmp_path):
    criticality, *_ = of_sum(tmp_path)
    (found,) = criticality.maps
    a, b = found.rows
    # after 1, 2, 4, ... epochs; training ends with the fourth
    assert found.labels == ("start", "epoch 1", "epoch 2", "end")
    assert [cell.value for cell in a.cells] == [10, 10.25, 10.5, 11]
    assert [cell.value for cell in b.cells] == [1, 3.5, 6, 11]
    assert [cell.value for cell in found.whole.cells] == pytest.approx([0, 2.75, 5.5, 11])
    assert a.cells[0].kept.value == pytest.approx(10 / 11)
    assert (a.verdict, b.verdict) == ("ambient", "critical")
    assert a.l2 == a.linf == (0, 0.25, 0.5, 1)


def test_equal_weights_are_evaluated_once(tmp_path):
    criticality, *_ = of_sum(tmp_path, draws=5)
    (found,) = criticality.maps
    # a permuted single number is itself: as trained; start and two epochs of two layers and of the whole, whose start
    # is also what shares are counted from, and read once for both
    assert found.evaluations == 1 + 3 * 3
    assert found.rows[1].randomised.value == 1


def test_a_metric_that_shrinks_gives_the_same_shares(tmp_path):
    rising, *_ = of_sum(tmp_path / "rising")
    module = Sum()
    module.weights = (-1.0, -10.0)
    falling = LayerCriticalityCallback("val/score", "min", on_failure="raise")
    run(tmp_path / "falling", module, falling)
    shares = [[[cell.kept.value for cell in row.cells] for row in c.maps[0].rows] for c in (rising, falling)]
    assert shares[0] == shares[1]


def test_every_cell_is_what_validating_by_hand_gives(tmp_path):
    criticality = LayerCriticalityCallback("val/loss", "min", checkpoints=[1, "10 steps"], draws=2, on_failure="raise")
    module = Boring()
    start = None

    class Start(pl.Callback):
        def on_fit_start(self, trainer, pl_module):
            nonlocal start
            start = copy.deepcopy(pl_module.state_dict())

    trainer = run(tmp_path, module, Start(), criticality)
    (found,) = criticality.maps
    assert found.labels == ("start", "epoch 1", "step 10", "end")
    assert [row.name for row in found.rows] == ["net.0", "net.1", "net.5"]
    trained = copy.deepcopy(module.state_dict())
    for row, layer in zip(found.rows, found.layers, strict=True):
        module.load_state_dict(trained | {name: start[name] for name in layer.tensors})
        (by_hand,) = trainer.validate(module, verbose=False)
        assert row.cells[0].value == pytest.approx(by_hand["val/loss"], rel=1e-6)
        assert row.cells[-1].value == found.trained
        assert len({cell.value for cell in row.random}) == (2 if row.name != "net.1" else 1)
    module.load_state_dict(start)
    (by_hand,) = trainer.validate(module, verbose=False)
    assert found.whole.cells[0].value == pytest.approx(by_hand["val/loss"], rel=1e-6)


def test_layers_that_training_does_not_change_say_so(tmp_path):
    criticality = LayerCriticalityCallback("val/loss", "min", layers=["net.0", "net.5"], on_failure="raise")
    with pytest.warns(NoEffectWarning, match="changed no layer"):
        run(tmp_path, Boring(lr=0.0), criticality, epochs=1)
    assert criticality.maps[0].named("unchanged") == ["net.0", "net.5"]


def test_groups_take_what_is_inside_and_a_name_that_matches_nothing_costs_no_training(tmp_path):
    grouped = LayerCriticalityCallback("val/loss", "min", layers={"stem": r"net\.[01]", "all": "net"})
    run(tmp_path, Boring(), grouped, epochs=1)
    stem, everything = grouped.maps[0].layers
    assert {name.rpartition(".")[0] for name in stem.tensors} == {"net.0", "net.1"}
    assert {name.rpartition(".")[0] for name in everything.tensors} == {"net.0", "net.1", "net.5"}
    module = Boring()
    with pytest.raises(ValueError, match=r"'nett.5' matches none. Near ones are 'net.5'"):
        run(tmp_path, module, LayerCriticalityCallback("val/loss", "min", layers=["nett.5"]))
    assert module.trainer.global_step == 0


def test_an_attack_is_against_the_network_of_the_cell(tmp_path):
    criticality = LayerCriticalityCallback("val/loss", "min", under=["fgsm", "jpeg"], eps=0.1, on_failure="raise")
    module = Boring()
    run(tmp_path, module, criticality, epochs=2)
    clean, jpeg, attacked = criticality.maps
    assert [found.condition for found in criticality.maps] == ["clean", "jpeg_90", "fgsm"]
    assert jpeg.trained != clean.trained
    start = criticality.state_dict()["states"][0]
    module.load_state_dict(module.state_dict() | {name: start[name] for name in attacked.layers[-1].tensors})
    module.eval()
    losses = []
    for images, labels in module.val_dataloader():

        def loss(pixels, labels=labels):
            return cross_entropy(module(pixels), labels, reduction="none")

        by_hand = fgsm(loss, images, 0.1, bounds=(0.0, 1.0))
        losses.append(loss(by_hand).mean().item())
    assert attacked.rows[-1].cells[0].value == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert attacked.rows[-1].cells[0].value > clean.rows[-1].cells[0].value


def test_a_corruption_is_a_condition(tmp_path):
    """The map under fog holds the losses of foggy pictures; a name without a severity is that of severity 3."""
    criticality = LayerCriticalityCallback("val/loss", "min", under=["fog", "blur@5"], on_failure="raise", draws=1)
    module = Boring()
    run(tmp_path, module, criticality, epochs=1)
    assert [found.condition for found in criticality.maps] == ["clean", "fog@3", "motion_blur@5", "defocus_blur@5"]
    module.eval()
    losses = [
        cross_entropy(module(Corruption("fog", 3)(images)), labels).item() for images, labels in module.val_dataloader()
    ]
    assert criticality.maps[1].trained == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert "criticality/fog@3/trained" in module.trainer.callback_metrics
    with pytest.raises(ValueError, match="Did you mean 'rain'"):
        LayerCriticalityCallback("val/loss", "min", under="rian@3")


@pytest.mark.filterwarnings("ignore:.*nothing measured under fgsm")  # a sum has no inputs
@pytest.mark.parametrize(("tolerance", "kept"), [(0.1, True), (0.05, False)])
def test_rewinding_keeps_what_holds_the_metric_and_else_leaves_the_network(tmp_path, tolerance, kept):
    criticality, module, trainer = of_sum(tmp_path, rewind=tolerance, dirpath=str(tmp_path / "out"))
    rewound = criticality.rewound
    assert (rewound.layers, rewound.kept) == (["a"], kept)
    assert rewound.share == pytest.approx(10 / 11)
    assert (rewound.before["clean"], rewound.after["clean"]) == (11, 10)
    assert (module.a.w.item(), module.b.w.item()) == (0 if kept else 1, 1)
    assert trainer.callback_metrics["criticality/rewound"] == (1 if kept else 0)
    path = tmp_path / "out" / "rewound.ckpt"
    assert path.exists() == kept
    if kept:
        assert torch.load(path, weights_only=True)["state_dict"]["a.w"].item() == 0
    (written,) = json.loads((tmp_path / "out" / "criticality.json").read_text())["rewound"]
    assert written["kept"] is kept


def test_rewinding_refreshes_batchnorm_and_puts_it_back_if_it_is_not_kept(tmp_path):
    criticality = LayerCriticalityCallback(
        "val/loss", "min", layers=["net.0"], threshold=1e-9, rewind=0.0, on_failure="raise"
    )
    module = Boring()
    trained = {}

    class Before(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            trained.update(copy.deepcopy(pl_module.state_dict()))

    run(tmp_path, module, Before(), criticality, epochs=3)
    assert criticality.maps[0].named("ambient") == ["net.0"]
    assert not criticality.rewound.kept
    assert all(torch.equal(tensor, trained[name]) for name, tensor in module.state_dict().items())


def test_rewinding_makes_nothing_worse_where_training_lost(tmp_path):
    """Training takes the metric from 0 to -9; without the first layer it is -10, which is 111 % of what it "gained"."""
    found = []

    class Rewinds(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            layers = [layer for layer in find_layers(pl_module, None) if layer.name == "a"]
            start, judged = {"a.w": torch.zeros(1)}, {"monitor": "val/score", "untrained": 0.0, "tolerance": 0.02}
            found.extend(rewind(trainer, pl_module, layers, start, [], mode=mode, **judged) for mode in ("max", "min"))

    module = Sum()
    module.weights = (1.0, -10.0)
    run(tmp_path, module, Rewinds())
    assert [rewound.share for rewound in found] == pytest.approx([10 / 9] * 2)
    assert [rewound.kept for rewound in found] == [False, True]


def test_a_lazy_module_starts_from_its_first_weights(tmp_path):
    class Lazy(Sum):
        def __init__(self):
            super().__init__()
            self.a = nn.LazyLinear(1, bias=False)

        def training_step(self, batch, batch_idx):
            loss = self.a(torch.ones(1, 1)).sum()
            if self.trainer.global_step == 0:
                self.first = self.a.weight.item()
            return 0 * loss

        def on_train_batch_end(self, *_):
            with torch.no_grad():
                self.a.weight += 1

        def validation_step(self, batch, batch_idx):
            self.log("val/score", self.a.weight.sum())

    module = Lazy()
    criticality = LayerCriticalityCallback("val/score", "max", layers=["a"], on_failure="raise")
    run(tmp_path, module, criticality)
    (found,) = criticality.maps
    assert found.labels == ("start", "epoch 1", "epoch 2", "end")
    assert [cell.value for cell in found.rows[0].cells] == pytest.approx([module.first + n for n in (0, 1, 2, 4)])


@pytest.mark.parametrize("name", ["index", "forward", "module", "args", "inputs", "input", "layer", "batch", "hook"])
def test_layers_may_take_arguments_of_any_name(tmp_path, name):
    layer_of_name = {}
    exec(f"def forward(self, x, {name}=0): return self.inner(x) + {name}", layer_of_name)
    inner = type("Inner", (nn.Module,), {"forward": layer_of_name["forward"]})()
    inner.inner = nn.Linear(4, 4)

    class Outer(Boring):
        def __init__(self):
            super().__init__()
            self.head = inner

        def forward(self, images):
            return self.head(super().forward(images), **{name: 1})

    criticality = LayerCriticalityCallback(
        "val/loss", "min", layers=["head"], checkpoints=[], draws=1, under="fgsm", on_failure="raise"
    )
    run(tmp_path, Outer(), criticality, epochs=1)
    assert [len(found.rows) for found in criticality.maps] == [1, 1]


def test_cells_end_early_once_the_rest_cannot_change_their_side(tmp_path):
    class Rising(Sum):
        def validation_step(self, batch, batch_idx):
            self.log("val/score", (self.a.w + self.b.w).sum() / 2)

    whole, early = (
        LayerCriticalityCallback("val/score", "max", value_range=span, threshold=0.9, on_failure="raise")
        for span in (None, [0, 1])
    )
    for criticality in (whole, early):
        run(tmp_path, Rising(), criticality)
    (in_full,), (in_part,) = whole.maps, early.maps
    assert [row.verdict for row in in_part.rows] == [row.verdict for row in in_full.rows] == ["critical"] * 2
    # half is kept of each batch: after two of six batches at most (1 + 4) / 6 could be, which is below 0.9
    assert in_part.rows[0].cells[0].seen == pytest.approx(2 / 6)
    assert in_full.rows[0].cells[0].seen == 1
    # of the whole network at the start the value itself is told
    assert in_part.whole.cells[0].seen == in_full.whole.cells[0].seen == 1


def test_weights_from_a_checkpoint_give_the_same_map_in_validate(tmp_path):
    criticality = LayerCriticalityCallback("val/loss", "min", checkpoints=[1], on_failure="raise")
    module = Boring()
    trainer = run(tmp_path, module, criticality, epochs=2)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    again = LayerCriticalityCallback("val/loss", "min", checkpoints=[str(tmp_path / "run.ckpt")], on_failure="raise")
    make_trainer(tmp_path, [again]).validate(module, verbose=False)
    assert [row.cells for row in again.maps[0].rows] == [row.cells for row in criticality.maps[0].rows]


@pytest.mark.parametrize("rewind", [1, 1.0, 2, -0.1])
def test_a_tolerance_of_the_whole_gain_is_refused(rewind):
    with pytest.raises(ValueError, match=f"a share below 1, but got 0.9 and {rewind}"):
        LayerCriticalityCallback(rewind=rewind)


@pytest.mark.parametrize(
    ("checkpoints", "message"),
    [([1, "run.ckpt"], "moments of this fit or files"), (["5 stps"], "Expected a number with its unit")],
)
def test_rejects_checkpoints_that_are_neither_moments_nor_files(checkpoints, message):
    with pytest.raises(ValueError, match=message):
        LayerCriticalityCallback(checkpoints=checkpoints)


def test_files_of_another_network_are_refused(tmp_path):
    torch.save({"state_dict": {"net.0.weight": torch.zeros(1)}}, tmp_path / "other.ckpt")
    criticality = LayerCriticalityCallback("val/loss", "min", checkpoints=[str(tmp_path / "other.ckpt")])
    with pytest.raises(ValueError, match="are missing or of another shape"):
        run(tmp_path, Boring(), criticality)


def test_what_has_not_changed_is_kept_once(tmp_path):
    class HalfFrozen(Boring):
        def configure_optimizers(self):
            return torch.optim.SGD(self.net[5].parameters(), 0.05)

    criticality = LayerCriticalityCallback("val/loss", "min", checkpoints=[1], on_failure="raise")
    run(tmp_path, HalfFrozen(), criticality, epochs=2)
    start, later = criticality.state_dict()["states"]
    assert start["net.0.weight"] is later["net.0.weight"]
    assert start["net.5.weight"] is not later["net.5.weight"]
    assert criticality.maps[0].rows[0].verdict == "unchanged"


def test_a_failure_is_a_warning_and_leaves_the_weights(tmp_path):
    class Fragile(Boring):
        ended = False

        def on_train_epoch_end(self):
            self.ended = self.current_epoch == 1

        def validation_step(self, batch, batch_idx):
            if self.ended:
                raise RuntimeError("no more memory")
            super().validation_step(batch, batch_idx)

    module = Fragile()
    with pytest.warns(UserWarning, match=r"the weights stay as trained. RuntimeError: no more memory"):
        trainer = run(tmp_path, module, LayerCriticalityCallback("val/loss", "min"), epochs=2)
    assert trainer.global_step == 8
    assert module.training
    assert not any(hasattr(part.forward, "__wrapped__") for part in module.modules())
    with pytest.raises(RuntimeError, match="no more memory"):
        run(tmp_path, Fragile(), LayerCriticalityCallback("val/loss", "min", on_failure="raise"), epochs=2)


def test_a_condition_that_fails_loses_only_itself(tmp_path):
    criticality = LayerCriticalityCallback("val/score", "max", under="jpeg")
    with pytest.warns(UserWarning, match=r"nothing was measured under jpeg_90. ValueError: Expected pictures"):
        run(tmp_path, Sum(), criticality)
    assert [found.condition for found in criticality.maps] == ["clean"]


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
def test_an_empty_loader_is_a_warning(tmp_path):
    class Blind(Boring):
        def val_dataloader(self):
            return []

    with pytest.warns(UserWarning, match="weights stay as trained"):
        run(tmp_path, Blind(), LayerCriticalityCallback("val/loss", "min"), epochs=1)


def test_rewinding_before_what_replaces_the_weights_is_refused(tmp_path):
    criticality = LayerCriticalityCallback("val/loss", "min", rewind=True)
    with pytest.raises(MisconfigurationException, match="SWACallback"):
        run(tmp_path, Boring(), criticality, SWACallback())


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_precisions(tmp_path, precision):
    criticality = LayerCriticalityCallback("val/loss", "min", checkpoints=[1], on_failure="raise")
    run(tmp_path, Boring(), criticality, epochs=2, precision=precision)
    assert criticality.maps[0].rows[0].cells[-1].value == criticality.maps[0].trained


def test_tied_and_repeated_layers_and_other_outputs(tmp_path):
    class Odd(Boring):
        def __init__(self):
            super().__init__()
            self.once, self.twice = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.twice.weight = self.once.weight

        def forward(self, images):
            return {"logits": self.twice(self.once(self.once(super().forward(images))))}

        def _loss(self, batch):
            return cross_entropy(self(batch[0])["logits"], batch[1])

    criticality = LayerCriticalityCallback("val/loss", "min", checkpoints=[], draws=1, on_failure="raise")
    module = Odd()
    run(tmp_path, module, criticality, epochs=2)
    (found,) = criticality.maps
    assert [row.name for row in found.rows] == ["net.0", "net.1", "net.5", "once"]
    start = criticality.state_dict()["states"][0]
    module.load_state_dict(module.state_dict() | {"once.weight": start["once.weight"]})
    module.eval()
    loader = DataLoader(TensorDataset(Pictures().images, Pictures().labels), 16)
    by_hand = sum(cross_entropy(module(x)["logits"], y).item() for x, y in loader) / 4
    assert found.rows[-1].cells[0].value == pytest.approx(by_hand, rel=1e-6)
