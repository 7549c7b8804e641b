"""AdversarialCallback on classification, lanes, dict batches and text; what it must leave alone."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from lightning_robust import AdversarialCallback, NoEffectWarning
from lightning_robust.callbacks.adversarial.free import FreeTraining
from lightning_robust.callbacks.adversarial.guard import OverfittingGuard
from lightning_robust.callbacks.attacked_batches import AttackInputs, BatchPixels, attack_batch
from lightning_robust.callbacks.module_loss import ModuleLoss
from lightning_robust.demo.lanes import LaneData, LaneDetector
from lightning_robust.functional.attacks import fgsm, pgd
from lightning_robust.structures import get_item

from ...boring import BATCH_FORMS, Boring, Manual, ManualWithLoss, Pictures, make_trainer


def train(folder, callback, module=None, datamodule=None, **settings):
    pl.seed_everything(1)
    module = module or Boring()
    callbacks = callback if isinstance(callback, list) else [callback]
    trainer = make_trainer(folder, callbacks, **({"max_epochs": 2} | settings))
    trainer.fit(module, datamodule=datamodule)
    return trainer, module


class Seen(Boring):
    """Notes the inputs that its training step was really called with, on the class, which no quiet run puts back."""

    def __init__(self, form="tuple"):
        super().__init__(form)
        type(self).inputs, type(self).modes = [], []

    def forward(self, images):
        if self.training:
            self.inputs.append(images.detach().clone())
        self.modes.append(self.training)
        return super().forward(images)


def test_trains_on_the_attack_that_functional_gives(tmp_path):
    """The first step's inputs are fgsm on the module in evaluation mode, at its initial weights."""
    module = Seen()
    start = {k: v.clone() for k, v in module.state_dict().items()}
    callback = AdversarialCallback("fgsm", eps=0.1, val_eps=[], attack_precision="32", guard_every_n_steps=0)
    train(tmp_path, callback, module)
    images, labels = next(iter(module.train_dataloader()))
    reference = Boring().eval()
    reference.load_state_dict(start)
    expected = fgsm(
        lambda x: nn.functional.cross_entropy(reference(x), labels, reduction="sum"), images, 0.1, bounds=(0, 1)
    )
    torch.testing.assert_close(module.inputs[0], expected, rtol=0, atol=1e-6)
    assert module.modes[:2] == [False, True]


@pytest.mark.parametrize("form", BATCH_FORMS)
def test_every_batch_form_stays_in_the_ball_and_the_callers_is_left_alone(tmp_path, form):
    given, module = [], Seen(form)

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            part = get_item(batch, BATCH_FORMS[form][0])
            given.append((part, part.clone()))

    callback = AdversarialCallback("fgsm_rs", eps="8/255", input_key=BATCH_FORMS[form][0], val_eps=[])
    train(tmp_path, [callback, Watch()], module, max_epochs=1)
    assert len(given) == len(module.inputs) == 4
    for (tensor, before), used in zip(given, module.inputs, strict=True):
        assert torch.equal(tensor, before)
        assert 0 < (used - before).abs().max() <= 8 / 255 + 1e-7
        assert used.min() >= 0
        assert used.max() <= 1


def test_eps_is_in_pixels_of_normalised_inputs(tmp_path):
    mean, std = torch.tensor([0.5, 0.4, 0.3]).reshape(3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).reshape(3, 1, 1)

    class Normalised(Seen):
        def _loader(self, pictures):
            loader = super()._loader(pictures)
            collate = loader.collate_fn
            loader.collate_fn = lambda samples: ((collate(samples)[0] - mean) / std, collate(samples)[1])
            return loader

    module = Normalised()
    callback = AdversarialCallback(
        "pgd", eps=0.05, steps=3, mean=[0.5, 0.4, 0.3], std=[0.2, 0.25, 0.3], val_batches=1, val_steps=1
    )
    train(tmp_path, callback, module, max_epochs=1)
    clean = torch.cat([batch[0] for batch in Boring().train_dataloader()])
    pixels = torch.cat(module.inputs) * std + mean
    assert (pixels - clean).abs().max() == pytest.approx(0.05, abs=1e-6)
    with pytest.raises(ValueError, match="Set `mean` and `std`"):
        train(tmp_path, AdversarialCallback("fgsm", eps=0.05), Normalised(), max_epochs=1)


class Guarded(Boring):
    """Everything that an attack through ``training_step`` could disturb."""

    def __init__(self):
        super().__init__()
        self.accuracy = MulticlassAccuracy(4)

    def training_step(self, batch, batch_idx):
        logits = self(batch[0])
        self.accuracy(logits, batch[1])
        self.log("train/acc", self.accuracy)
        loss = nn.functional.cross_entropy(logits, batch[1])
        self.log_dict({"train/loss": loss})
        return {"loss": loss, "logits": logits}


@pytest.mark.parametrize("breaks", [False, True])
def test_an_attack_leaves_no_trace(tmp_path, breaks):
    class Look(pl.Callback):
        def state(self, trainer, module):
            return {
                "rng": torch.get_rng_state().tolist(),
                "modes": [part.training for part in module.modules()],
                "buffers": [buffer.tolist() for buffer in module.buffers()],
                "counts": module.accuracy.update_count,
                "grads": [None if p.grad is None else p.grad.tolist() for p in module.parameters()],
                "attributes": sorted(vars(module)),
                "logged": sorted(trainer.logged_metrics),
                "grad mode": torch.is_grad_enabled(),
            }

        def on_after_backward(self, trainer, pl_module):
            pl_module.net[4].eval()
            before = self.state(trainer, pl_module)
            batch = (Pictures(8).images, Pictures(8).labels)
            view = BatchPixels(AttackInputs([0]), batch, [0.1])
            loss = ModuleLoss(pl_module, lambda part: pl_module.training_step(part, 0))

            def perturb(loss_of, pixels, radius):
                if breaks:
                    raise KeyError("planted")
                return fgsm(loss_of, pixels, radius)

            if breaks:
                with pytest.raises(KeyError, match="planted"):
                    attack_batch(trainer, view, perturb, loss)
            else:
                attack_batch(trainer, view, perturb, loss)
            assert self.state(trainer, pl_module) == before
            self.checked = True
            pl_module.net[4].train()

    look = Look()
    train(tmp_path, look, Guarded(), max_epochs=1)
    assert look.checked


def test_accumulated_gradients_do_not_leak(tmp_path):
    """The same gradient at the step whether the batch comes whole or in four parts, since attacks add none."""

    class Norms(pl.Callback):
        def __init__(self):
            self.found = []

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            self.found.append(torch.cat([p.grad.flatten() for p in pl_module.parameters()]).norm().item())

    class Plain(Boring):
        """Neither BatchNorm nor dropout, whose results depend on how a batch is cut."""

        def __init__(self, size):
            super().__init__()
            self.net[1], self.net[4] = nn.Identity(), nn.Identity()
            self.size = size

        def train_dataloader(self):
            return DataLoader(Pictures(16), self.size)

    found = []
    for size, accumulate in ((16, 1), (4, 4)):
        norms = Norms()
        pl.seed_everything(1)
        module = Plain(size)
        settings = {"accumulate_grad_batches": accumulate, "max_epochs": 1}
        make_trainer(
            tmp_path, [AdversarialCallback("fgsm", eps=0.1, val_eps=[], attack_precision="32"), norms], **settings
        ).fit(module)
        found.append(norms.found)
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_ratio_mixes_the_losses(tmp_path):
    """With a ratio of 0 the weights are those of plain training, with eps 0 too."""
    _, plain = train(tmp_path, [])
    _, none = train(tmp_path, AdversarialCallback("fgsm", eps=0.1, ratio=0.0, val_eps=[]), Twice())
    _, half = train(tmp_path, AdversarialCallback("fgsm", eps=0.1, ratio=0.5, val_eps=[]), Twice())
    with pytest.warns(NoEffectWarning, match="eps is 0"):
        _, zero = train(tmp_path, AdversarialCallback("fgsm", eps=0, val_eps=[]))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(zero.state_dict()[name], tensor)
    weights = [m.net[5].weight for m in (half, none)]
    assert not torch.equal(*weights)


class Twice(Boring):
    pass


def test_robust_metrics_in_fit_validate_and_test(tmp_path):
    class Full(Boring):
        def validation_step(self, batch, batch_idx):
            logits = self(batch[0])
            self.log("val/acc", (logits.argmax(1) == batch[1]).float().mean())
            super().validation_step(batch, batch_idx)

        def test_step(self, batch, batch_idx):
            self.log("test/loss", self._loss(batch))

        def test_dataloader(self):
            return self.val_dataloader()

    callback = AdversarialCallback("fgsm", eps=0.1, val_eps=["4/255", 0.1, 0.3], val_steps=5)
    keeper = ModelCheckpoint(tmp_path, monitor="adversarial/val_loss@0.1", auto_insert_metric_name=False)
    trainer, module = train(tmp_path, [callback, keeper], Full(), enable_checkpointing=True)
    fit = {k: float(v) for k, v in trainer.callback_metrics.items()}
    losses = [fit["val/loss"], *(fit[f"adversarial/val_loss@{eps:g}"] for eps in (4 / 255, 0.1, 0.3))]
    assert losses == sorted(losses)
    assert losses[3] > 10 * losses[0]
    assert fit["adversarial/val_acc@0.3"] <= fit["adversarial/val_acc@0.1"] <= fit["val/acc"]
    assert float(keeper.best_model_score) == pytest.approx(fit["adversarial/val_loss@0.1"])
    (validated,) = trainer.validate(module, verbose=False)
    (tested,) = trainer.test(module, verbose=False)
    assert validated["adversarial/val_loss@0.3"] == pytest.approx(losses[3], rel=1e-4)
    assert tested["adversarial/test_loss@0.3"] == pytest.approx(losses[3], rel=1e-4)


class Scored(Boring):
    """Losses of each sample to climb, accuracy to look at."""

    def attack_loss(self, batch):
        return nn.functional.cross_entropy(self(batch[0]), batch[1], reduction="none")

    def validation_step(self, batch, batch_idx):
        logits = self(batch[0])
        self.log("val/acc", (logits.argmax(1) == batch[1]).float().mean())
        self.log("val/loss", nn.functional.cross_entropy(logits, batch[1]))


def test_solved_samples_are_attacked_no_further(tmp_path):
    """Accuracy is not higher than without, for fewer gradients; restarts never lower the loss."""
    pl.seed_everything(0)
    _, module = train(tmp_path, [], Scored(), max_epochs=8)
    found, seen = {}, {}
    for name, settings in (
        ("all", {}),
        ("dropped", {"val_drop_solved": True}),
        ("restarted", {"val_restarts": 4}),
    ):
        counted = []

        class Counted(Scored):
            def attack_loss(self, batch, counted=counted):
                counted.append(len(batch[0]))
                return super().attack_loss(batch)

        twin = Counted()
        twin.load_state_dict(module.state_dict())
        callback = AdversarialCallback("fgsm", eps=0.15, val_eps=[0.1, 0.15, 0.3], val_steps=10, **settings)
        (found[name],) = make_trainer(tmp_path, [callback]).validate(twin, verbose=False)
        seen[name] = sum(counted)
    for eps in ("0.1", "0.15", "0.3"):
        accuracy, loss = f"adversarial/val_acc@{eps}", f"adversarial/val_loss@{eps}"
        assert found["dropped"][accuracy] <= found["all"][accuracy] + 1e-6
        assert found["restarted"][loss] >= found["all"][loss] - 1e-6
    assert found["all"]["adversarial/val_acc@0.3"] < 0.3
    assert seen["dropped"] < 0.8 * seen["all"]


def test_leaving_out_what_is_solved_needs_a_classifier(tmp_path):
    class Pair(Scored):
        def forward(self, images):
            return self.net(images), None

        def attack_loss(self, batch):
            return nn.functional.cross_entropy(self(batch[0])[0], batch[1], reduction="none")

        def validation_step(self, batch, batch_idx):
            self.log("val/loss", nn.functional.cross_entropy(self(batch[0])[0], batch[1]))

    callback = AdversarialCallback("fgsm", eps=0.1, val_drop_solved=True)
    with pytest.warns(UserWarning, match="Set val_drop_solved=False for other tasks"):
        make_trainer(tmp_path, [callback]).validate(Pair(), verbose=False)
    with pytest.raises(ValueError, match="`val_restarts` of at least 1"):
        AdversarialCallback("fgsm", eps=0.1, val_steps=0, val_drop_solved=True)


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
def test_batches_left_out_by_the_module_stay_out(tmp_path):
    class Skips(Seen):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    _, module = train(tmp_path, AdversarialCallback("fgsm", eps=0.1, val_eps=[]), Skips(), max_epochs=1)
    assert len(module.inputs) == 3


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("fgsm_rs", {"guard_every_n_steps": 1}),
        ("pgd", {"steps": 2}),
        ("free", {"steps": 2}),
        ("trades", {"steps": 2}),
    ],
)
def test_single_samples_and_a_smaller_last_batch(tmp_path, method, settings):
    class Uneven(Boring):
        def __init__(self, size):
            super().__init__(lr=0.002)
            self.net[1] = nn.Identity()
            self.size = size

        def train_dataloader(self):
            return DataLoader(Pictures(17), self.size)

    for size, batches in ((8, 3), (1, 17)):
        callback = AdversarialCallback(method, eps=0.1, val_batches=1, **settings)
        trainer, module = train(tmp_path, callback, Uneven(size), max_epochs=1)
        assert trainer.global_step == batches
        assert all(torch.isfinite(p).all() for p in module.parameters())


@pytest.mark.parametrize(("method", "settings"), [("fgsm_rs", {"attack_precision": "32"}), ("trades", {"steps": 2})])
def test_compiled_modules_and_mixed_precision_train_the_same_way(tmp_path, method, settings):
    """A compiled network gives the weights of the plain one; in bf16-mixed they are near."""
    weights = {}
    for name, precision in (("plain", "32-true"), ("compiled", "32-true"), ("mixed", "bf16-mixed")):
        pl.seed_everything(0)
        module = Boring()
        module.net[4] = nn.Identity()
        if name == "compiled":
            module.net.compile(backend="eager")
        callback = AdversarialCallback(method, eps=0.1, val_batches=1, **settings)
        trainer, _ = train(tmp_path, callback, module, max_epochs=1, precision=precision)
        assert trainer.callback_metrics["adversarial/val_loss@0.1"] > trainer.callback_metrics["val/loss"]
        weights[name] = torch.cat([p.detach().flatten() for p in module.parameters()])
    torch.testing.assert_close(weights["compiled"], weights["plain"], rtol=1e-4, atol=1e-5)
    assert (weights["mixed"] - weights["plain"]).norm() < 0.15 * weights["plain"].norm()


def test_training_on_attacks_makes_robust(tmp_path):
    measured = {}
    for name, ratio in (("plain", 0.0), ("robust", 1.0)):
        callback = AdversarialCallback("pgd", eps=0.25, steps=3, ratio=ratio, val_eps=[0.25])
        trainer, _ = train(tmp_path, callback, max_epochs=15)
        measured[name] = float(trainer.callback_metrics["adversarial/val_loss@0.25"])
    assert measured["robust"] < 0.5 * measured["plain"]


def test_the_bill(tmp_path):
    trainer, _ = train(tmp_path, AdversarialCallback("pgd", eps=0.1, steps=5, warmup_epochs=4, val_eps=[]))
    metrics = trainer.callback_metrics
    assert metrics["adversarial/passes"].item() == 5
    assert metrics["adversarial/eps"].item() == pytest.approx(0.05)
    assert 0 < metrics["adversarial/time_share"].item() < 1


def test_every_nth_batch(tmp_path):
    trainer, _ = train(tmp_path, AdversarialCallback("fgsm", eps=0.1, every_n_steps=2, val_eps=[]), Seen())
    clean = torch.cat([batch[0] for batch in Boring().train_dataloader()]).split(16)
    used = trainer.lightning_module.inputs
    moved = [not torch.equal(tensor, clean[index % 4]) for index, tensor in enumerate(used)]
    assert moved == [False, True] * 4 or moved == [True, False] * 4


def test_masked_gradients_are_warned_about(tmp_path):
    class Saturated(Boring):
        def forward(self, images):
            return super().forward((images * 0).round() + images.detach() + (images - images.detach()) * 0)

    with pytest.warns(UserWarning, match="of the gradients are zero"):
        train(tmp_path, AdversarialCallback("fgsm", eps=0.1, val_eps=[]), Saturated())


class Random(Boring):
    """Draws noise also in evaluation mode."""

    def forward(self, images):
        return super().forward(images) + torch.randn(len(images), 4)


class Probable(Boring):
    """Takes probabilities for logits."""

    def forward(self, images):
        return super().forward(images).softmax(1)


@pytest.mark.parametrize(("module", "doubt"), [(Random, "random outputs"), (Probable, "outputs are probabilities")])
def test_doubts_about_robust_metrics_are_said(tmp_path, module, doubt):
    with pytest.warns(UserWarning, match=f"may mean little: .*{doubt}"):
        train(tmp_path, AdversarialCallback("fgsm", eps=0.1), module(), max_epochs=1)


class Segmenter(pl.LightningModule):
    """Two inputs in a dict, a loss for each pixel."""

    def __init__(self):
        super().__init__()
        self.net = nn.Conv2d(4, 2, 3, padding=1)
        self.used = []

    def training_step(self, batch, batch_idx):
        if self.training:
            self.used.append({key: value.clone() for key, value in batch.items()})
        both = torch.cat([batch["image"], batch["depth"]], 1)
        return nn.functional.cross_entropy(self.net(both), (batch["image"].mean(1) > 0.5).long())

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def train_dataloader(self):
        images = Pictures(16).images
        return DataLoader([{"image": image, "depth": image[:1] * 0.5} for image in images], 8)

    val_dataloader = train_dataloader


def test_several_inputs_each_with_its_own_eps(tmp_path):
    module = Segmenter()
    train(tmp_path, AdversarialCallback("fgsm", eps=[0.1, 0.02], input_key=["image", "depth"]), module, max_epochs=1)
    images = Pictures(16).images
    for index, used in enumerate(module.used):
        clean = images[8 * index : 8 * index + 8]
        assert (used["image"] - clean).abs().max().item() == pytest.approx(0.1, abs=1e-6)
        assert (used["depth"] - clean[:, :1] * 0.5).abs().max().item() == pytest.approx(0.02, abs=1e-6)


def test_lane_detector(tmp_path):
    """No change to the detector: its training loss rises under attack, its lines move."""
    callback = AdversarialCallback("fgsm", eps="4/255", val_eps=["4/255"], val_batches=1, val_steps=3)
    trainer, _ = train(
        tmp_path, callback, LaneDetector(), LaneData(num_train=16, num_val=8, batch_size=8), max_epochs=1
    )
    tags = [tag for tag in trainer.callback_metrics if tag.startswith("adversarial/val")]
    assert any("lateral_px" in tag for tag in tags)


class Words(pl.LightningModule):
    """Whether a text has more small words than large ones; a transformer layer over an embedding with padding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 16, padding_idx=0)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.head = nn.Linear(16, 2)

    def forward(self, tokens):
        return self.head(self.layer(self.embedding(tokens)).mean(1))

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.003)

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(1, 20, (256, 12), generator=generator)
        tokens[::3, 9:] = 0
        labels = ((tokens < 10) & (tokens > 0)).sum(1) > (tokens >= 10).sum(1)
        return DataLoader(list(zip(tokens, labels.long(), strict=True)), 32)

    val_dataloader = train_dataloader


@pytest.mark.parametrize(("method", "settings"), [("fgm", {}), ("pgd", {"steps": 2}), ("freelb", {"steps": 2})])
def test_text(tmp_path, method, settings):
    callback = AdversarialCallback(method, eps=0.3, embedding="embedding", **settings)
    trainer, module = train(tmp_path, callback, Words(), max_epochs=12)
    assert float(trainer.callback_metrics["val/acc"]) > 0.9
    assert not module.embedding._forward_hooks


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
def test_an_embedding_that_is_built_late_is_found(tmp_path, hook):
    class Late(Words):
        def __init__(self):
            super().__init__()
            del self.embedding

    def build(self, stage=None):
        if not hasattr(self, "embedding"):
            self.embedding = nn.Embedding(20, 16, padding_idx=0)

    setattr(Late, hook, build)
    trainer, _ = train(tmp_path, AdversarialCallback("fgm", eps=0.3, embedding="embedding"), Late(), max_epochs=1)
    assert trainer.callback_metrics["adversarial/eps"] == pytest.approx(0.3)
    with pytest.raises(MisconfigurationException, match=r"Embeddings are at \['embedding'\]"):
        train(tmp_path, AdversarialCallback("fgm", eps=0.1, embedding="encoder"), Late())


def test_indices_are_sent_to_the_embedding(tmp_path):
    with pytest.raises(MisconfigurationException, match="set `embedding`"):
        train(tmp_path, AdversarialCallback("fgsm", eps=0.1), Words())
    with pytest.raises(TypeError, match="set `embedding`"):
        train(tmp_path, AdversarialCallback("fgsm", eps=0.1, input_key=0), Words())
    with pytest.raises(MisconfigurationException, match=r"Embeddings are at \['embedding'\]"):
        train(tmp_path, AdversarialCallback("fgm", eps=0.1, embedding="encoder.embed"), Words())


def test_trades_is_its_definition(tmp_path):
    """The first loss: cross entropy + beta KL(clean || attacked), the attack climbing the same divergence."""

    class Plain(Boring):
        def __init__(self):
            super().__init__()
            self.net[1], self.net[4] = nn.Identity(), nn.Identity()

    module = Plain()
    start = {k: v.clone() for k, v in module.state_dict().items()}
    callback = AdversarialCallback("trades", eps=0.1, steps=2, beta=3.0, val_eps=[])
    trainer, _ = train(tmp_path, callback, module, max_steps=1, limit_val_batches=0)
    reference = Plain()
    reference.load_state_dict(start)
    images, labels = next(iter(module.train_dataloader()))
    clean = reference(images).softmax(1)

    def divergence(x):
        return (clean.detach() * (clean.detach().log() - reference(x).log_softmax(1))).sum(1)

    generator = torch.Generator().manual_seed(1_000_003)
    attacked = pgd(divergence, images, 0.1, steps=2, bounds=(0, 1), generator=generator)
    natural = nn.functional.cross_entropy(reference(images), labels)
    robust = (clean * (clean.log() - reference(attacked).log_softmax(1))).sum(1).mean()
    metrics = trainer.callback_metrics
    assert metrics["adversarial/natural_loss"].item() == pytest.approx(natural.item(), rel=1e-5)
    assert metrics["adversarial/divergence"].item() == pytest.approx(robust.item(), rel=1e-3)
    (natural + 3 * robust).backward()
    step = start["net.5.weight"] - 0.05 * reference.net[5].weight.grad
    torch.testing.assert_close(module.net[5].weight.detach(), step, rtol=1e-4, atol=1e-6)


def test_free_replays_a_batch_and_moves_its_perturbation_by_the_same_gradient(tmp_path):
    """Two replays: the first of all is clean, the second is FGSM at the weights of the first step, then carried on."""

    class Plain(Seen):
        def __init__(self):
            super().__init__()
            self.net[1], self.net[4] = nn.Identity(), nn.Identity()

        def train_dataloader(self):
            return DataLoader(Pictures(64), 16)

    module = Plain()
    start = {k: v.clone() for k, v in module.state_dict().items()}
    callback = AdversarialCallback("free", eps=0.1, steps=2, val_eps=[])
    train(tmp_path, callback, module, max_epochs=1)
    inputs = module.inputs
    first, third = Pictures(64).images[:16], Pictures(64).images[32:48]
    assert len(inputs) == 4
    assert torch.equal(inputs[0], first)
    reference = Plain()
    reference.load_state_dict(start)
    labels = Pictures(64).labels[:16]
    step = fgsm(lambda x: nn.functional.cross_entropy(reference(x), labels), first, 0.1, bounds=(0, 1))
    torch.testing.assert_close(inputs[1], step, rtol=0, atol=1e-6)
    # the third step takes the third batch of the loader, with the perturbation carried on
    assert 0 < (inputs[2] - third).abs().max() <= 0.1 + 1e-6
    assert (inputs[3] - third).abs().max() <= 0.1 + 1e-6


def test_free_training_comes_back_from_the_bounds():
    """A black pixel that is pushed below 0 stays at 0, keeps its gradient, and follows it upwards afterwards."""
    free = FreeTraining(AttackInputs([0], None, None, "pixels"), replays=3)
    batch, seen = (torch.tensor([[[[0.0, 1.0, 0.5]]]]), torch.zeros(1)), []
    for slope in (-1.0, 1.0, 1.0):
        perturbed = free.perturbed(batch)[0]
        seen.append(perturbed.flatten().tolist())
        (slope * perturbed).sum().backward()
        free.update([0.25])
    seen.append(free.perturbed(batch)[0].flatten().tolist())
    assert seen == [[0.0, 1.0, 0.5], [0.0, 0.75, 0.25], [0.25, 1.0, 0.5], [0.25, 1.0, 0.75]]


class FakeTrainer:
    global_step = 7

    class strategy:
        @staticmethod
        def reduce(tensor, reduce_op):
            return tensor


@pytest.mark.parametrize(
    ("action", "expected"),
    [("warn", (False, 1.0)), ("pgd", (True, 1.0)), ("shrink", (False, 0.5)), ("rollback", (True, 1.0))],
)
def test_the_guard_fires_and_acts_once_the_losses_part(action, expected):
    module, guard = Boring(), OverfittingGuard(2.0, action)
    good = {k: v.clone() for k, v in module.state_dict().items()}
    guard.judge(FakeTrainer, module, [torch.tensor(2.0), torch.tensor(2.3)])
    # a quotient of 10 of losses that are small means nothing
    guard.judge(FakeTrainer, module, [torch.tensor(0.001), torch.tensor(0.01)])
    guard.judge(FakeTrainer, module, None)  # no rank has a loss
    assert (guard.collapses, guard.ratio) == (0, pytest.approx(10))
    with torch.no_grad():
        module.net[5].weight.zero_()
    with pytest.warns(UserWarning, match=r"catastrophic overfitting at step 7: .* is 10\.0 times"):
        guard.judge(FakeTrainer, module, [torch.tensor(0.5), torch.tensor(5.0)])
    assert (guard.use_pgd, guard.step_scale) == expected
    assert torch.equal(module.net[5].weight, good["net.5.weight"]) is (action == "rollback")
    again = OverfittingGuard(2.0, action)
    again.load_state_dict(guard.state_dict())
    assert (again.use_pgd, again.step_scale, again.collapses) == (*expected, 1)


def test_the_guard_is_silent_where_training_is_sound_and_measures_a_planted_collapse(tmp_path):
    """A module that recognises single steps: its loss under the probe is what PGD finds."""
    trainer, _ = train(tmp_path, AdversarialCallback("fgsm", eps=0.05, val_eps=[], guard_every_n_steps=2), max_epochs=3)
    assert 0.9 < trainer.callback_metrics["adversarial/guard_ratio"].item() < 2

    class Masked(Boring):
        """The gradient that a single step sees points the other way."""

        def forward(self, images):
            return super().forward(images + 2 * (images.detach() - images) * (images.detach() * 50).sin().sign())

    callback = AdversarialCallback("fgsm", eps=0.3, val_eps=[], guard_every_n_steps=1, guard_limit=1.01)
    with pytest.warns(UserWarning, match="catastrophic overfitting"):
        train(tmp_path, callback, Masked(), max_epochs=2)


def test_attack_loss_of_the_module_is_climbed(tmp_path):
    calls = []

    class Own(Boring):
        def attack_loss(self, batch):
            calls.append(len(batch[0]))
            return nn.functional.cross_entropy(self(batch[0]), batch[1], reduction="none")

    train(tmp_path, AdversarialCallback("pgd", eps=0.1, steps=3, val_eps=[]), Own(), max_epochs=1)
    assert calls == [16] * 12


def test_manual_optimisation_needs_an_attack_loss(tmp_path):
    with pytest.raises(MisconfigurationException, match="attack_loss"):
        train(tmp_path, AdversarialCallback("fgsm", eps=0.1), Manual())

    trainer, _ = train(tmp_path, AdversarialCallback("fgsm", eps=0.1, val_eps=[]), ManualWithLoss())
    assert trainer.global_step == 8


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"eps": "8/0"}, "8/255"),
        ({"eps": -0.1}, "8/255"),
        ({"eps": float("nan")}, "8/255"),
        ({"eps": [0.1, 0.2]}, "one for each of 1 inputs"),
        ({"eps": [0, "8/255"], "input_key": [0, 1]}, "`eps` of the first input above 0"),
        ({"method": "fab"}, "`method`"),
        ({"method": "fgm"}, "`embedding`"),
        ({"ratio": 1.5}, "`ratio`"),
        ({"method": "pgd", "steps": 0}, "`steps` of at least 1"),
        ({"method": "pgd", "step_size": -1}, "`step_size`"),
        ({"method": "free", "steps": 0}, "`steps` of at least 1"),
        ({"method": "freelb", "embedding": "e", "steps": 0}, "`steps` of at least 1"),
        ({"guard_limit": 0.5}, "`guard_limit`"),
        ({"on_collapse": "pgd", "steps": 0}, "`steps` of at least 1"),
        ({"every_n_steps": 0}, "`every_n_steps`"),
        ({"warmup_epochs": -1}, "`warmup_epochs`"),
        ({"val_steps": -1}, "`val_steps`"),
        ({"val_input_key": [0, 1]}, "`val_input_key`"),
        ({"bounds": [1.0, 0.0]}, "`bounds`"),
        ({"method": "pgd", "norm": "l2", "input_key": [0, 1]}, r"one `input_key` with norm='l2', but got \[0, 1\]"),
    ],
)
def test_rejects_bad_settings(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        AdversarialCallback(**settings)
