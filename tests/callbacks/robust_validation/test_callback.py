"""RobustValidationCallback alone, and as AdversarialCallback brings it along."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader

from lightning_robust import AdversarialCallback, RobustValidationCallback
from lightning_robust.functional.attacks import pgd

from ...boring import Boring, Pictures, make_trainer
from ...functional.test_ascent import Toy


class Scored(Boring):
    """Logs an accuracy, and gives the attack the loss of each sample."""

    def attack_loss(self, batch):
        return nn.functional.cross_entropy(self(batch[0]), batch[1], reduction="none")

    def validation_step(self, batch, batch_idx):
        logits = self(batch[0])
        self.log("val/acc", (logits.argmax(1) == batch[1]).float().mean())
        self.log("val/loss", nn.functional.cross_entropy(logits, batch[1]))


def validate(folder, callbacks, module):
    (metrics,) = make_trainer(folder, callbacks).validate(module, verbose=False)
    return metrics


@pytest.fixture
def trained(tmp_path):
    pl.seed_everything(1)
    module = Scored()
    make_trainer(tmp_path, max_epochs=6).fit(module)
    return module


def test_matches_reference(tmp_path, trained):
    """The metrics are those of PGD on each batch, written out by hand."""
    metrics = validate(tmp_path, [RobustValidationCallback(0.2, steps=4, seed=3)], trained)
    network, correct = trained.eval(), []
    for index, (images, labels) in enumerate(
        zip(Pictures().images.split(16), Pictures().labels.split(16), strict=True)
    ):
        attacked = pgd(
            lambda x, labels=labels: nn.functional.cross_entropy(network(x), labels, reduction="none"),
            images,
            0.2,
            steps=4,
            bounds=(0, 1),
            generator=torch.Generator().manual_seed(3 + index),
        )
        correct.append((network(attacked).argmax(1) == labels).float())
    assert metrics["adversarial/val_acc@0.2"] == pytest.approx(torch.cat(correct).mean().item(), abs=1e-6)
    assert metrics["adversarial/val_acc@0.2"] < metrics["val/acc"]


@pytest.mark.parametrize(
    "settings",
    [
        {"eps": [0.1]},
        {"eps": ["4/255", 0.3], "steps": 3, "restarts": 2, "batches": 2},
        {"eps": [0.15], "drop_solved": True, "batches": None},
        {"eps": [0.1], "steps": 0},
    ],
)
def test_alone_equals_brought_along(tmp_path, trained, settings):
    alone = validate(tmp_path, [RobustValidationCallback(**settings)], trained)
    of_callback = {f"val_{name}": value for name, value in settings.items()}
    along = validate(tmp_path, [AdversarialCallback("fgsm", eps=0.1, ratio=0.0, **of_callback)], trained)
    assert alone == along
    assert any(tag.startswith("adversarial/val_acc@") for tag in alone)


def test_training_is_as_without_it(tmp_path):
    weights = []
    for callbacks in ([], [RobustValidationCallback(0.1, steps=2)]):
        pl.seed_everything(1)
        module = Boring()
        make_trainer(tmp_path, callbacks).fit(module)
        weights.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    assert torch.equal(*weights)


@pytest.mark.parametrize("arguments", [{}, {"val_eps": []}])
def test_it_takes_over_beside_adversarial_training(tmp_path, arguments):
    """The radii are those of RobustValidationCallback alone, each attack is run once, and both places are refused."""
    calls = []

    class Counted(Boring):
        def attack_loss(self, batch):
            if self.trainer.validating or self.trainer.state.stage == "validate":
                calls.append(len(batch[0]))
            return self._loss(batch)

    robust = RobustValidationCallback(0.2, steps=3, batches=1)
    adversarial = AdversarialCallback("fgsm", eps=0.1, **arguments)
    pl.seed_everything(1)
    trainer = make_trainer(tmp_path, [adversarial, robust], max_epochs=1)
    trainer.fit(Counted())
    tags = {tag for tag in trainer.callback_metrics if "@" in tag}
    assert tags == {"adversarial/val_loss@0.2"}
    # three steps of PGD, and for the doubts one FGSM step and three losses
    assert len(calls) == 7
    with pytest.raises(MisconfigurationException, match="`val_steps` of AdversarialCallback beside"):
        make_trainer(tmp_path, [AdversarialCallback("fgsm", val_steps=3), robust]).fit(Boring())


def test_radii_of_several_inputs_keep_their_proportions(tmp_path):
    moved = {}

    class Two(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(6, 2)

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.net(torch.cat([batch["a"], batch["b"]], 1).flatten(1)), batch["y"])

        def validation_step(self, batch, batch_idx):
            for name in ("a", "b"):
                moved[name] = (batch[name] - 0.5).abs().max().item()
            self.log("val/loss", self.training_step(batch, batch_idx))

        def val_dataloader(self):
            rows = [{"a": torch.full((1, 1, 3), 0.5), "b": torch.full((1, 1, 3), 0.5), "y": torch.tensor(0)}] * 8
            return torch.utils.data.DataLoader(rows, 4)

    validate(tmp_path, [RobustValidationCallback(0.2, input_key=["a", "b"], proportions=[1.0, 0.25])], Two())
    assert moved == {"a": pytest.approx(0.2, abs=1e-6), "b": pytest.approx(0.05, abs=1e-6)}


class Hilly(pl.LightningModule):
    """An ordinary classifier: its step gives the mean loss of a batch."""

    def __init__(self, weights=None):
        super().__init__()
        self.toy = Toy(0)
        self.net = self.toy.net
        self.weights = weights

    def forward(self, points):
        return self.net(points)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1], self.weights)

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def val_dataloader(self):
        return torch.utils.data.DataLoader(list(zip(self.toy.points, self.toy.classes, strict=True)), 50)


class HillyEach(Hilly):
    """The same with a loss for each sample."""

    def attack_loss(self, batch):
        return nn.functional.cross_entropy(self(batch[0]), batch[1], reduction="none")


@pytest.mark.parametrize("drop_solved", [False, True])
def test_restarts_of_an_ordinary_module_are_worth_those_with_a_loss_for_each(tmp_path, drop_solved):
    found = {}
    for module in (Hilly(), HillyEach()):
        for restarts in (1, 10):
            robust = RobustValidationCallback(0.06, steps=2, restarts=restarts, drop_solved=drop_solved)
            metrics = validate(tmp_path, [robust], module)
            found[type(module), restarts] = metrics["adversarial/val_acc@0.06"]
    for restarts in (1, 10):
        assert found[Hilly, restarts] == pytest.approx(found[HillyEach, restarts], abs=1 / 150 + 1e-6)
    assert found[Hilly, 10] < found[Hilly, 1] - 0.01


@pytest.mark.parametrize("module", [Hilly(weights=torch.tensor([1.0, 5.0])), "fails on one"])
def test_restarts_that_are_compared_by_the_batch_are_warned_about(tmp_path, module):
    """With class weights the mean of the single losses is another number; some steps do not take a single sample."""
    if module == "fails on one":

        class Paired(Hilly):
            def training_step(self, batch, batch_idx):
                first, second = batch[1].unbind() if len(batch[1]) < 2 else batch[1][:2]
                return super().training_step(batch, batch_idx) + 0 * (first + second)

        module = Paired()
    with pytest.warns(UserWarning, match="`restarts` help little.*Define `attack_loss"):
        validate(tmp_path, [RobustValidationCallback(0.06, steps=2, restarts=2)], module)


def test_a_module_that_remembers_is_not_taken_for_a_random_one(tmp_path, recwarn):
    """Each pass moves a queue that the loss depends on; every pass of the check finds it as it was."""

    class Remembers(Scored):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def attack_loss(self, batch):
            self.seen += 1
            return super().attack_loss(batch) * (1 + self.seen)

    module = Remembers()
    validate(tmp_path, [RobustValidationCallback(0.1, steps=2)], module)
    assert not [w for w in recwarn if "mean little" in str(w.message)]
    assert module.seen == 0


@pytest.mark.parametrize("skipped", [0, 1])
def test_batches_without_a_loss_are_left_out(tmp_path, trained, skipped):
    """The metrics are those of the same attack on the other batches alone."""

    class Skips(Boring):
        validation_step = Scored.validation_step

        def training_step(self, batch, batch_idx):
            return None if torch.equal(batch[0], batches[skipped]) else super().training_step(batch, batch_idx)

    batches = Pictures().images.split(16)
    module, found = Skips(), []
    module.load_state_dict(trained.state_dict())
    rest = [pair for index in range(4) if index != skipped for pair in list(Pictures())[16 * index : 16 * index + 16]]
    callback = RobustValidationCallback([0.1, 0.2], steps=0)
    with pytest.warns(UserWarning, match="no loss for 1 of 4 batches, so the metrics under attack leave them out"):
        found.append(validate(tmp_path, [callback], module))
    trainer = make_trainer(tmp_path, [RobustValidationCallback([0.1, 0.2], steps=0)])
    found += trainer.validate(module, DataLoader(rest, 16), verbose=False)
    attacked = [{name: value for name, value in metrics.items() if "@" in name} for metrics in found]
    assert len(attacked[0]) == 4
    assert attacked[0] == pytest.approx(attacked[1], abs=1e-6)


def test_a_failure_is_a_warning_that_names_the_callback(tmp_path):
    class Odd(Boring):
        def training_step(self, batch, batch_idx):
            return None

    with pytest.warns(UserWarning, match="RobustValidationCallback: robust validation failed.*to return a loss"):
        metrics = validate(tmp_path, [RobustValidationCallback(0.1)], Odd())
    assert list(metrics) == ["val/loss"]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"eps": "8/0"}, "`eps`"),
        ({"norm": "l1"}, "`norm`"),
        ({"steps": -1}, "`steps`"),
        ({"restarts": 0}, "`restarts` of at least 1"),
        ({"steps": 0, "drop_solved": True}, "`drop_solved`"),
        ({"proportions": [1.0, 2.0]}, "`proportions` for each of 1 inputs"),
        ({"input_key": ["a", "b"], "proportions": [0.0, 1.0]}, "the first above 0, but got"),
        ({"input_key": ["a", "b"], "norm": "l2"}, "one `input_key` with norm='l2', but got"),
        ({"bounds": [1.0, 0.0]}, "`bounds`"),
    ],
)
def test_rejects_bad_settings(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        RobustValidationCallback(**settings)
