"""The evaluators of robust validation: what each finds, against the functions by hand and closed forms, and refuses."""

import dataclasses

import lightning.pytorch as pl
import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_robust import RobustValidationCallback
from lightning_robust.callbacks.robust_validation.evaluators import EvaluatorArguments, make_evaluator
from lightning_robust.callbacks.robust_validation.pgd_evaluator import PGDEvaluator
from lightning_robust.cli import RobustCLI
from lightning_robust.decoding.boxes import Boxes
from lightning_robust.functional.worst_case import worst_loss, worst_prediction

from ...boring import Boring, Pictures, make_trainer
from .test_callback import Scored, validate

QUICK = {"steps": 8, "queries": 20}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    pl.seed_everything(1)
    module = Scored()
    make_trainer(tmp_path_factory.mktemp("fit"), max_epochs=6).fit(module)
    return module


def batches():
    return zip(Pictures().images.split(16), Pictures().labels.split(16), strict=True)


def test_auto_matches_the_union_by_hand(tmp_path, trained):
    """Each batch, one radius after the other; and the clean accuracy is what it was."""
    robust = RobustValidationCallback([0.2, 0.3], evaluator="auto", seed=3, **QUICK)
    metrics = validate(tmp_path, [robust], trained)
    network, right = trained.eval(), {0.2: [], 0.3: []}
    for index, (images, labels) in enumerate(batches()):
        start = None
        for radius, found in right.items():
            generator = torch.Generator().manual_seed(3 + index)
            settings = {"start": start, "bounds": (0, 1), "generator": generator, **QUICK}
            start = worst_prediction(lambda x, rows: network(x), images, labels, radius, **settings).inputs
            found.append((network(start).argmax(1) == labels).float())
    for radius, found in right.items():
        assert metrics[f"adversarial/val_acc@{radius}"] == pytest.approx(torch.cat(found).mean().item(), abs=1e-6)
    assert metrics["val/acc"] == validate(tmp_path, [], trained)["val/acc"] > metrics["adversarial/val_acc@0.3"]
    by_pgd = validate(tmp_path, [RobustValidationCallback([0.2, 0.3], steps=8)], trained)
    assert all(metrics[f"adversarial/val_acc@{radius}"] <= by_pgd[f"adversarial/val_acc@{radius}"] for radius in right)


class NoLoss(pl.LightningModule):
    """A regression of each picture's brightness, ``(N, 3, 1)``."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(192, 3)
        torch.manual_seed(4)
        nn.init.normal_(self.layer.weight, std=0.1)

    def forward(self, images):
        return self.layer(images.flatten(1))[:, :, None]

    def errors(self, batch):
        return (self(batch[0]) - batch[0].detach().mean((2, 3))[:, :, None]).square().sum((1, 2))

    def training_step(self, batch, batch_idx):
        return self.errors(batch).mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/error", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def val_dataloader(self):
        return DataLoader(Pictures(), 16)

    train_dataloader = val_dataloader


class Brightness(NoLoss):
    """The loss of each is known."""

    def attack_loss(self, batch):
        return self.errors(batch)


class OneLoss(NoLoss):
    """That of the batch is known."""

    def attack_loss(self, batch):
        return self.errors(batch).mean()


def test_auto_climbs_the_loss_of_each_sample_of_any_task(tmp_path):
    module = Brightness()
    robust = RobustValidationCallback(0.1, evaluator="auto", seed=5, **QUICK)
    metrics = validate(tmp_path, [robust], module)
    worst = []
    for index, (images, labels) in enumerate(batches()):
        settings = {"bounds": (0, 1), "generator": torch.Generator().manual_seed(5 + index), **QUICK}
        found = worst_loss(lambda x, labels=labels: module.errors((x, labels)), images, 0.1, **settings)
        worst.append(module.errors((found.inputs, labels)))
    assert metrics["adversarial/val_error@0.1"] == pytest.approx(torch.cat(worst).mean().item(), rel=1e-5)
    assert metrics["adversarial/val_error@0.1"] > 1.2 * metrics["val/error"]


class Columns(pl.LightningModule):
    """Two columns that move by 30 and by 15 px for each unit of brightness; the first pixels say which are there.

    Of 16 pictures 8 have both columns, 4 the second one alone, 4 none. Moving by 2 px takes 0.0667, 0.1333 and more
    than any radius.
    """

    def __init__(self, form="columns", slack=1e3):
        super().__init__()
        self.form, self.slack = form, slack
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, images):
        mean = images[:, 0, 1:].mean((1, 2))
        columns = torch.stack([30 * mean, 15 * mean], 1) * self.factor
        return columns, images[:, 0, 0, :2].detach()

    def decode(self, outputs):
        columns, there = outputs
        missing = (there < 0.5) | ((columns - torch.tensor([15, 7.5])).abs() > self.slack)
        if self.form == "columns":
            return {"x_px": columns.masked_fill(missing, torch.nan), "present": ~missing}
        edges = torch.stack([columns, 0 * columns, columns + 40, 0 * columns + 30], 2)
        scores = torch.ones_like(columns).masked_fill(missing, torch.nan)
        return {"boxes": Boxes(edges, scores, torch.tensor([[0, 1]]).expand(len(columns), 2))}

    def training_step(self, batch, batch_idx):
        return self(batch[0])[0].square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)

    def val_dataloader(self):
        pictures = torch.full((16, 1, 5, 4), 0.5)
        pictures[:, 0, 0, :2] = torch.tensor([[0.9, 0.9]] * 8 + [[0.1, 0.9]] * 4 + [[0.1, 0.1]] * 4)
        return DataLoader(TensorDataset(pictures), 6)

    train_dataloader = val_dataloader


def smallest(folder, module, eps=0.16, halvings=4, **settings):
    settings = {"moves": {"x_px": 2}, "steps": 6, "halvings": halvings, **settings}
    return validate(folder, [RobustValidationCallback(eps, evaluator="smallest_eps", **settings)], module)


@pytest.mark.parametrize(("form", "name"), [("columns", "x_px"), ("boxes", "boxes_centre_px")])
def test_the_smallest_eps_is_the_closed_form(tmp_path, form, name):
    """On a grid of 0.01 the eight need 0.07, the four 0.14; those without a column count for nothing."""
    found = smallest(tmp_path, Columns(form), moves={name: 2})
    assert found[f"adversarial/{name}_2_eps"] == pytest.approx(0.07)
    assert found[f"adversarial/{name}_2_share@0.16"] == 1
    assert not any("val_loss" in tag for tag in found if tag.startswith("adversarial"))
    within = smallest(tmp_path, Columns(form), 0.1, moves={name: 2})
    assert within[f"adversarial/{name}_2_share@0.1"] == pytest.approx(8 / 12)
    # 4 px: 0.1333 and 0.2667; fewer than half are moved where only these would be
    assert smallest(tmp_path, Columns(form), 0.1, moves={name: 4})[f"adversarial/{name}_4_eps"] == pytest.approx(0.1)


def test_a_point_that_is_lost_is_moved(tmp_path):
    """Columns that move by more than one px are lost: by 0.0333 and 0.0667."""
    found = smallest(tmp_path, Columns(slack=1.0))
    assert found["adversarial/x_px_2_eps"] == pytest.approx(0.04)


def test_nothing_to_move_is_said(tmp_path):
    with pytest.warns(UserWarning, match="no sample has a x_px that could move"):
        found = smallest(tmp_path, Columns(slack=-1.0))
    assert not any(tag.startswith("adversarial") for tag in found)


@pytest.mark.parametrize(
    "robust",
    [
        lambda: RobustValidationCallback(0.1, evaluator="auto", batches=1, **QUICK),
        lambda: RobustValidationCallback(0.1, evaluator="smallest_eps", moves={"logit": 1}, batches=1, halvings=1),
    ],
)
def test_training_is_as_without_them(tmp_path, robust):
    class Decoding(Boring):
        def decode(self, outputs):
            return {"logit": outputs}

    weights = []
    for callbacks in ([], [robust()]):
        pl.seed_everything(1)
        module = Decoding()
        trainer = make_trainer(tmp_path, callbacks)
        trainer.fit(module)
        weights.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    assert torch.equal(*weights)
    assert any(tag.startswith("adversarial/") for tag in trainer.callback_metrics)


@pytest.mark.parametrize(
    ("module", "settings", "message"),
    [
        (OneLoss, {"evaluator": "auto"}, "rank sample by sample.*one value for the batch.*\\(16, 3, 1\\).*'pgd'"),
        (NoLoss, {"evaluator": "auto"}, "`attack_loss\\(batch\\)`.*the module does not define"),
        (Brightness, {"evaluator": "auto", "targets": 3}, "no `targets` where evaluator='auto' climbs `attack_loss`"),
        (Brightness, {"evaluator": "smallest_eps", "moves": {"x_px": 2}}, "to have a method `decode\\(outputs\\)`"),
        (
            Columns,
            {"evaluator": "smallest_eps", "moves": {"y_px": 2}},
            "which are \\['x_px'\\], but got 'y_px'",
        ),
    ],
)
def test_rejects_outputs_that_cannot_be_ranked(tmp_path, module, settings, message):
    """An error before training, not a warning after it."""
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, [RobustValidationCallback(0.1, **settings)], num_sanity_val_steps=1).fit(module())


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"evaluator": "aut"}, ValueError, "one of pgd, auto, smallest_eps, but got 'aut'"),
        ({"evaluator": "auto", "restarts": 2}, ValueError, "no `restarts` with evaluator='auto'.*takes it: pgd"),
        ({"evaluator": "auto", "drop_solved": True}, ValueError, "no `drop_solved` with evaluator='auto'"),
        ({"queries": 5}, ValueError, "no `queries` with evaluator='pgd'.*takes it: auto"),
        ({"step": 5}, TypeError, "unexpected argument 'step'.*'steps'"),
        ({"evaluator": "smallest_eps"}, ValueError, "`moves` with evaluator='smallest_eps'"),
        ({"evaluator": "smallest_eps", "moves": {"x": 0}}, ValueError, "amounts above 0"),
        ({"evaluator": "smallest_eps", "moves": {"x": 1}, "halvings": -1}, ValueError, "`halvings` of at least 0"),
        ({"evaluator": "smallest_eps", "moves": {"x": 1}, "eps": [0.1, 0.2]}, ValueError, "one `eps`.*but got 2"),
        ({"evaluator": "auto", "eps": 0}, ValueError, "`eps` above 0 with evaluator='auto', but got 0"),
        ({"evaluator": "auto", "steps": 0}, ValueError, "`steps` of at least 1"),
    ],
)
def test_rejects_arguments(settings, error, message):
    with pytest.raises(error, match=message):
        RobustValidationCallback(**settings)


def test_arguments_are_those_of_the_evaluators():
    needed = {"pgd": {}, "auto": {}, "smallest_eps": {"moves": {"x": 1}}}
    fields = [each for name, given in needed.items() for each in dataclasses.fields(make_evaluator(name, given))]
    taken = {each.name for each in fields if each.init}
    assert taken == set(EvaluatorArguments.__annotations__)
    assert make_evaluator("pgd", {"steps": None, "restarts": 2}) == PGDEvaluator(restarts=2)


def test_yaml(tmp_path):
    """What the shell says reaches the evaluator, and the saved file gives an equal one."""
    args = ["--robust_validation.evaluator=smallest_eps", "--robust_validation.moves={lateral_px: 20}"]
    cli = RobustCLI(args=["--seed_everything=0", "--model=tests.boring.Boring", *args], run=False)
    saved = tmp_path / "saved.yaml"
    saved.write_text(cli.parser.dump(cli.config, skip_none=False))
    again = RobustCLI(args=[f"--config={saved}"], run=False)
    for each in (cli, again):
        (callback,) = (c for c in each.trainer.callbacks if isinstance(c, RobustValidationCallback))
        assert callback.moves == {"lateral_px": 20.0}
        assert callback.evaluator == "smallest_eps"
    assert yaml.safe_load(saved.read_text())["robust_validation"]["init_args"]["evaluator"] == "smallest_eps"
