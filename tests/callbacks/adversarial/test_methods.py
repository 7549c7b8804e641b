"""Methods of adversarial training own their arguments: the short form, the objects, and what each refuses."""

import copy
import math
import typing
from contextlib import nullcontext

import jsonargparse
import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_robust import AdversarialCallback, RobustValidationCallback
from lightning_robust.callbacks.adversarial import (
    AWP,
    FGM,
    FGSM,
    FGSMRS,
    MART,
    NFGSM,
    PGD,
    TRADES,
    EmbeddingPGD,
    Free,
    FreeLB,
)
from lightning_robust.callbacks.adversarial.guard import OverfittingGuard
from lightning_robust.callbacks.adversarial.short_form import METHODS, ShortForm, argument_names
from lightning_robust.cli import RobustCLI

from ...boring import Boring, make_trainer

ARGUMENTS = {
    "steps": 3,
    "step_size": 0.05,
    "norm": "l2",
    "attack_precision": "32",
    "beta": 3.0,
    "gamma": 0.05,
    "target_key": 2,
    "embedding": "embedding",
    "guard_every_n_steps": 5,
    "guard_limit": 4.0,
    "on_collapse": "shrink",
}
NEEDED = {"fgm": {"embedding": "e"}, "freelb": {"embedding": "e"}}
TAKES = {
    "fgsm": {"step_size", "norm", "attack_precision", "guard_every_n_steps", "guard_limit", "on_collapse"},
    "fgsm_rs": {"step_size", "norm", "attack_precision", "guard_every_n_steps", "guard_limit", "on_collapse"},
    "nfgsm": {"attack_precision", "guard_every_n_steps", "guard_limit", "on_collapse"},
    "pgd": {"steps", "step_size", "norm", "attack_precision", "embedding"},
    "free": {"steps"},
    "trades": {"steps", "step_size", "norm", "beta", "target_key"},
    "mart": {"steps", "step_size", "norm", "beta", "target_key"},
    "awp": {"steps", "step_size", "norm", "attack_precision", "gamma"},
    "fgm": {"step_size", "attack_precision", "embedding"},
    "freelb": {"steps", "step_size", "embedding"},
}
PAIRS = [(method, name) for method in METHODS for name in ARGUMENTS]
ON_EMBEDDING = {"fgm": FGM, "pgd": EmbeddingPGD, "freelb": FreeLB}


def test_every_argument_of_the_methods_has_a_pair():
    assert (
        set(METHODS)
        == set(TAKES)
        == set(typing.get_args(typing.get_type_hints(AdversarialCallback.__init__)["method"])[0].__args__)
    )
    assert ARGUMENTS.keys() == {name for name in ShortForm.__annotations__ if not name.startswith("val_")}
    owned = {name for cls in (*METHODS.values(), EmbeddingPGD) for name in argument_names(cls)}
    assert owned == ARGUMENTS.keys()


@pytest.mark.parametrize(("method", "name"), [pair for pair in PAIRS if pair[1] not in TAKES[pair[0]]])
def test_rejects_argument_of_another_method(method, name):
    with pytest.raises(ValueError, match=f"Expected no `{name}`"):
        AdversarialCallback(method, **NEEDED.get(method, {}) | {name: ARGUMENTS[name]})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [name for name in ARGUMENTS if name != "embedding"])
def test_with_an_embedding_the_methods_on_embeddings_take_their_own_arguments_alone(method, name):
    arguments = {"embedding": "e", name: ARGUMENTS[name]}
    cls = ON_EMBEDDING.get(method)
    if cls is None:
        with pytest.raises(ValueError, match="Expected no `embedding`|Expected no `" + name):
            AdversarialCallback(method, **arguments)
    elif name in argument_names(cls):
        assert getattr(AdversarialCallback(method, **arguments).attack, name) == ARGUMENTS[name]
    else:
        with pytest.raises(ValueError, match=f"Expected no `{name}`"):
            AdversarialCallback(method, **arguments)


@pytest.mark.parametrize(("method", "name"), [pair for pair in PAIRS if pair[1] in TAKES[pair[0]]])
def test_takes_its_own_arguments(method, name):
    callback = AdversarialCallback(method, **NEEDED.get(method, {}) | {name: ARGUMENTS[name]})
    assert getattr(callback.attack, name) == getattr(callback, name) == ARGUMENTS[name]


@pytest.mark.parametrize(
    ("method", "settings", "name"),
    [
        ("free", {"ratio": 0.5}, "ratio"),
        ("trades", {"ratio": 0.5}, "ratio"),
        ("free", {"every_n_steps": 2}, "every_n_steps"),
        ("fgm", {"embedding": "e", "input_key": [0, 1]}, "input_key"),
        ("fgm", {"embedding": "e", "seed": 1}, "seed"),
        ("pgd", {"embedding": "e", "seed": 1}, "seed"),
        ("pgd", {"embedding": "e", "norm": "l2"}, "norm"),
        ("pgd", {"embedding": "e", "mean": 0.5}, "mean"),
        ("fgm", {"embedding": "e", "std": 0.5}, "std"),
        ("freelb", {"embedding": "e", "bounds": "none"}, "bounds"),
        ("fgm", {"embedding": "e", "val_eps": [0.1]}, "val_eps"),
        ("pgd", {"embedding": "e", "val_steps": 3}, "val_steps"),
        ("fgm", {"embedding": "e", "eps": [0.1, 0.2], "input_key": [0, 1]}, "eps"),
        ("fgsm", {"on_collapse": "shrink", "steps": 3}, "steps"),
        ("pgd", {"target_key": 2}, "target_key"),
    ],
)
def test_rejects_arguments_without_meaning(method, settings, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        AdversarialCallback(method, **settings)


def test_rejects_arguments_beside_an_object_and_unknown_ones():
    with pytest.raises(ValueError, match=r"Write method=PGD\(steps=...\)"):
        AdversarialCallback(PGD(), steps=3)
    with pytest.raises(TypeError, match=r"unexpected argument 'step_sise'\. Did you mean 'step_size'"):
        AdversarialCallback("pgd", step_sise=0.1)


@pytest.mark.parametrize(
    ("method", "settings", "expected"),
    [
        ("fgsm", {"norm": "l2", "step_size": "4/255"}, FGSM(norm="l2", step_size="4/255")),
        ("fgsm_rs", {"on_collapse": "rollback", "steps": 5}, FGSMRS(on_collapse="rollback", steps=5)),
        ("nfgsm", {"guard_limit": 2.0}, NFGSM(guard_limit=2.0)),
        ("pgd", {"steps": 3}, PGD(steps=3)),
        ("pgd", {"steps": 3, "embedding": "e"}, EmbeddingPGD("e", steps=3)),
        ("free", {"steps": 4}, Free(steps=4)),
        ("trades", {"beta": 3.0, "target_key": 2}, TRADES(beta=3.0, target_key=2)),
        ("mart", {"beta": 3.0, "steps": 4}, MART(beta=3.0, steps=4)),
        ("awp", {"gamma": 0.02, "norm": "l2"}, AWP(gamma=0.02, norm="l2")),
        ("fgm", {"embedding": "e"}, FGM("e")),
        ("freelb", {"embedding": "e", "step_size": 0.2}, FreeLB("e", step_size=0.2)),
    ],
)
def test_the_short_form_equals_the_object(method, settings, expected):
    short = AdversarialCallback(method, eps=0.1, **settings)
    assert short.attack == expected == AdversarialCallback(expected, eps=0.1).attack
    assert copy.deepcopy(short).attack == expected
    assert AdversarialCallback(method, **NEEDED.get(method, {})).attack != expected or method == "fgm"


def test_both_forms_train_alike(tmp_path):
    weights = []
    for settings in ({"method": "pgd", "steps": 2, "norm": "l2"}, {"method": PGD(steps=2, norm="l2")}):
        pl.seed_everything(1)
        module = Boring()
        make_trainer(tmp_path, [AdversarialCallback(eps=0.3, val_eps=[], **settings)], max_epochs=1).fit(module)
        weights.append(module.net[5].weight.detach())
    assert torch.equal(*weights)


@pytest.mark.parametrize("method", ["fgsm", "fgsm_rs", "nfgsm"])
@pytest.mark.parametrize("action", ["pgd", "rollback"])
def test_after_a_collapse_pgd_takes_over_and_nothing_is_probed(tmp_path, monkeypatch, method, action):
    """Each step has as many passes as asked, and the guard is silent: PGD beside PGD would tell nothing."""
    judge, probes = OverfittingGuard.judge, []

    def counted(guard, trainer, *args):
        probes.append(trainer.global_step)
        judge(guard, trainer, *args)

    monkeypatch.setattr(OverfittingGuard, "judge", counted)
    callback = AdversarialCallback(
        method, eps=0.3, guard_every_n_steps=1, guard_limit=1.0001, on_collapse=action, steps=3, val_eps=[]
    )
    with pytest.warns(UserWarning, match="catastrophic overfitting"):
        make_trainer(tmp_path, [callback], max_epochs=2).fit(Boring())
    assert callback.attack.guard.use_pgd
    assert callback._bill.record.passes / callback._bill.steps == 3
    assert callback.attack.guard.collapses == 1
    assert probes == [*range(len(probes))]
    assert 1 <= len(probes) <= 4


class Vectors(pl.LightningModule):
    """A classifier of vectors (N, 6), or of signals (N, 3, 6)."""

    def __init__(self, shape=(6,), scale=1.0):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 2))
        generator = torch.Generator().manual_seed(0)
        self.values = torch.rand(32, *shape, generator=generator) * scale
        self.used = []

    def forward(self, values):
        return self.net(values)

    def training_step(self, batch, batch_idx):
        if self.training:
            self.used.append(batch[0])
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def train_dataloader(self):
        return torch.utils.data.DataLoader([(value, index % 2) for index, value in enumerate(self.values)], 16)

    val_dataloader = train_dataloader


METHOD_SETTINGS = [("fgsm", {}), ("nfgsm", {}), ("pgd", {"steps": 2}), ("free", {"steps": 2}), ("trades", {"steps": 2})]


@pytest.mark.parametrize(("method", "settings"), METHOD_SETTINGS)
def test_vectors_and_signals_are_perturbed_by_channel(tmp_path, method, settings):
    """In the ball of each channel's own units, within its range; the shape stays."""
    for shape in ((3,), (3, 3), (3, 2, 3, 4)):
        module = Vectors(shape)
        clean, std = module.values, torch.tensor([0.2, 0.5, 1.0]).reshape(1, 3, *[1] * (len(shape) - 1))
        module.values = (clean - 0.5) / std
        callback = AdversarialCallback(
            method, eps=0.1, mean=0.5, std=[0.2, 0.5, 1.0], val_batches=1, val_steps=1, **settings
        )
        trainer = make_trainer(tmp_path, [callback], max_epochs=1)
        trainer.fit(module)
        assert trainer.callback_metrics["adversarial/val_loss@0.1"] > trainer.callback_metrics["val/loss"]
        if method == "trades":
            continue
        pixels = [used * std + 0.5 for used in module.used]
        assert pixels[0].shape == (16, *shape)
        reach = {"nfgsm": 0.3, "free": 0.1}.get(method, 0.1)
        moved = (pixels[-1] - (clean[:16] if method == "free" else clean[16:])).abs().amax(0)
        assert 0.09 < moved.max() <= reach + 1e-6
        assert all(each.min() >= -1e-6 and each.max() <= 1 + 1e-6 for each in pixels)


@pytest.mark.parametrize(
    ("method", "settings", "passes"),
    [
        ("fgsm", {}, 1),
        ("fgsm_rs", {}, 1),
        ("nfgsm", {}, 1),
        ("pgd", {"steps": 3}, 3),
        ("free", {"steps": 2}, 0),
        ("trades", {"steps": 3}, 3),
        ("mart", {"steps": 3}, 3),
        ("awp", {"steps": 3}, 3),
        ("fgm", {"embedding": "embedding"}, 1),
        ("pgd", {"embedding": "embedding", "steps": 3}, 3),
        ("freelb", {"embedding": "embedding", "steps": 3}, 2),
    ],
)
@pytest.mark.parametrize("part_without_gradient", [False, True])
def test_every_method_pays_the_bill(tmp_path, method, settings, passes, part_without_gradient):
    """Passes in closed form, the time, and the share of samples that the loss leaves out, for all methods."""

    class Billed(Vectors):
        def __init__(self):
            super().__init__((3, 2, 2))
            self.embedding = nn.Embedding(5, 4)
            self.head = nn.Linear(4, 2)

        def forward(self, values):
            used = torch.arange(len(values)) % 4 > 0 if part_without_gradient else torch.ones(len(values)).bool()
            tokens = self.head(self.embedding(torch.arange(len(values))[:, None].expand(-1, 3) % 5).mean(1))
            return (self.net(values) + tokens) * used[:, None]

    callback = AdversarialCallback(method, eps=0.1, val_eps=[], **settings)
    trainer = make_trainer(tmp_path, [callback], max_epochs=1)
    with pytest.warns(UserWarning, match="25% of.*ignored label") if part_without_gradient else nullcontext():
        trainer.fit(Billed())
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert metrics["adversarial/passes"] == passes
    assert 0 < metrics["adversarial/time_share"] < 1
    assert metrics["adversarial/zero_gradients"] == (0.25 if part_without_gradient else 0.0)


def test_trades_perturbs_several_inputs_together(tmp_path):
    """The first loss and step, with the attack and both terms written out for two inputs of other shapes and radii."""

    class Two(pl.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(3)
            self.one, self.two = nn.Linear(12, 4), nn.Linear(5, 4)
            self.shapes = []

        def forward(self, pictures, values):
            self.shapes.append((tuple(pictures.shape), tuple(values.shape)))
            return self.one(pictures.flatten(1)).tanh() * self.two(values)

        def training_step(self, batch, batch_idx):
            raise AssertionError

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

        def train_dataloader(self):
            generator = torch.Generator().manual_seed(0)
            values, pictures = torch.rand(8, 5, generator=generator), torch.rand(8, 3, 2, 2, generator=generator)
            rows = [{"v": values[i], "p": pictures[i], "y": i % 4} for i in range(8)]
            return torch.utils.data.DataLoader(rows, 8)

    module = Two()
    reference = copy.deepcopy(module)
    callback = AdversarialCallback(
        "trades", eps=[0.05, 0.2], steps=2, beta=3.0, input_key=["p", "v"], target_key="y", val_eps=[]
    )
    trainer = make_trainer(tmp_path, [callback], max_epochs=1)
    trainer.fit(module)
    (batch,) = module.train_dataloader()
    pictures, values, classes = batch["p"], batch["v"], batch["y"]
    target = reference(pictures, values).softmax(1).detach()
    clean = torch.cat([pictures.flatten(1), values], 1)
    radius = torch.cat([torch.full((1, 12), 0.05), torch.full((1, 5), 0.2)], 1)
    generator = torch.Generator().manual_seed(1_000_003)
    low, high = (clean - radius).clamp(min=0), (clean + radius).clamp(max=1)
    point = (clean + torch.empty_like(clean).uniform_(-1, 1, generator=generator) * radius).clamp(low, high)
    for _ in range(2):
        point.requires_grad_()
        predicted = reference(point[:, :12].reshape(8, 3, 2, 2), point[:, 12:]).log_softmax(1)
        (gradient,) = torch.autograd.grad((target * (target.log() - predicted)).sum(), point)
        point = (point.detach() + 1.25 * radius * gradient.sign()).clamp(low, high)
    logits = reference(pictures, values)
    natural = nn.functional.cross_entropy(logits, classes)
    attacked = reference(point[:, :12].reshape(8, 3, 2, 2), point[:, 12:]).log_softmax(1)
    robust = (logits.softmax(1) * (logits.log_softmax(1) - attacked)).sum(1).mean()
    assert trainer.callback_metrics["adversarial/natural_loss"].item() == pytest.approx(natural.item(), rel=1e-5)
    assert trainer.callback_metrics["adversarial/divergence"].item() == pytest.approx(robust.item(), rel=1e-4)
    (natural + 3 * robust).backward()
    for name, parameter in reference.named_parameters():
        expected = parameter.detach() - 0.1 * parameter.grad
        torch.testing.assert_close(module.get_parameter(name).detach(), expected, rtol=1e-4, atol=1e-6)
    # both in one pass; those of the attack leave no trace
    assert module.shapes == [((16, 3, 2, 2), (16, 5))]


def test_trades_finds_what_forward_takes(tmp_path):
    """Without `input_key`: the first floating-point input is perturbed, the others come along as they are."""
    seen = []

    class Masked(Vectors):
        def forward(self, image, mask, scale=None):
            seen.append((image.detach(), mask, scale))
            return self.net(image * mask) * scale

        def train_dataloader(self):
            rows = [{"label": i % 2, "mask": (v > 0.2).float(), "image": v} for i, v in enumerate(self.values)]
            return torch.utils.data.DataLoader(rows, 16)

        def on_before_batch_transfer(self, batch, dataloader_idx):
            return batch | {"scale": torch.tensor(2.0)}

    callback = AdversarialCallback("trades", eps=0.1, steps=2, target_key="label", val_eps=[])
    trainer = make_trainer(tmp_path, [callback], max_steps=1, limit_val_batches=0)
    module = Masked()
    start = copy.deepcopy(module)
    trainer.fit(module)
    images, mask, scale = seen[-1]
    clean, kept = module.values[:16], (module.values[:16] > 0.2).float()
    assert torch.equal(images[:16], clean)
    assert 0.09 < (images[16:] - clean).abs().max() <= 0.1
    assert torch.equal(mask, torch.cat([kept, kept]))
    assert scale.shape == ()
    natural = nn.functional.cross_entropy(start.net(clean * kept) * 2, torch.arange(16) % 2)
    assert trainer.callback_metrics["adversarial/natural_loss"].item() == pytest.approx(natural.item(), rel=1e-5)


def test_free_moves_each_input_by_its_own_eps(tmp_path):
    class Two(Vectors):
        def forward(self, values):
            return self.net(values[0] + values[1])

        def training_step(self, batch, batch_idx):
            self.used.append([part.clone() for part in batch[:2]])
            return nn.functional.cross_entropy(self(batch[:2]), batch[2])

        def train_dataloader(self):
            rows = [(value, 1 - value, index % 2) for index, value in enumerate(self.values)]
            return torch.utils.data.DataLoader(rows, 16)

    module = Two()
    callback = AdversarialCallback("free", eps=[0.1, 0.03], steps=2, input_key=[0, 1], bounds="none", val_eps=[])
    make_trainer(tmp_path, [callback], max_epochs=1, limit_val_batches=0).fit(module)
    clean = module.values[:16], 1 - module.values[:16]
    moved = [(used - part).abs().max().item() for used, part in zip(module.used[1], clean, strict=True)]
    assert moved == [pytest.approx(0.1, abs=1e-6), pytest.approx(0.03, abs=1e-6)]


class Captioned(Vectors):
    """Batches of vectors and texts, the last one smaller; notes which it was trained on."""

    def __init__(self, count=28, skips=()):
        super().__init__()
        self.count, self.skips, self.seen = count, skips, []

    def training_step(self, batch, batch_idx):
        self.seen.append((len(batch[0]), batch[1][0]["text"]))
        if self.seen[-1][1] in self.skips:
            return None
        return nn.functional.cross_entropy(self(batch[0]), torch.stack([each["y"] for each in batch[1]]))

    def train_dataloader(self):
        rows = [(value, {"y": torch.tensor(place % 2), "text": str(place)}) for place, value in enumerate(self.values)]
        join = lambda rows: (torch.stack([row[0] for row in rows]), [row[1] for row in rows])  # noqa: E731
        return torch.utils.data.DataLoader(rows[: self.count], 8, collate_fn=join)


def free(tmp_path, module, epochs):
    callback = AdversarialCallback("free", eps=0.1, steps=2, bounds="none", val_eps=[])
    trainer = make_trainer(tmp_path, [callback], max_epochs=epochs, limit_val_batches=0)
    trainer.fit(module)
    return trainer


def test_free_holds_the_batch_with_its_texts_and_numbers_of_tensors(tmp_path):
    """Over the end of an epoch too, whose last batch has fewer tensors than the first one of the next."""
    module = Captioned(20)
    assert free(tmp_path, module, 3).global_step == 9
    whole, rest = [(8, "0")] * 2, [(4, "16")]
    assert module.seen == [*whole, *rest, *rest, (8, "8"), (8, "8"), *whole, *rest]


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
def test_free_goes_on_behind_a_batch_that_is_skipped(tmp_path):
    module = Captioned(skips=["8"])
    free(tmp_path, module, 2)
    assert [text for _, text in module.seen] == ["0", "0", "16", "16", "0", "0", "16", "16"]
    module = Captioned(skips=["16"])
    free(tmp_path, module, 2)
    assert [text for _, text in module.seen] == ["0", "0", "16", "24", "24", "8", "8", "24"]


def test_the_guard_probes_in_every_so_many_batches_where_few_are_attacked():
    guard = OverfittingGuard(2.0, "warn")
    assert [index for index in range(0, 200, 7) if guard.is_due(index, 50)] == [0, 56, 105, 154]
    again = OverfittingGuard(2.0, "warn")
    again.load_state_dict(guard.state_dict())
    assert not again.is_due(196, 50)
    assert [index for index in range(200) if OverfittingGuard(2.0, "warn").is_due(index, 0)] == []


def test_a_warm_up_over_epochs_of_unknown_length_is_refused(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([(torch.rand(4), 1) for _ in range(64)])

    module = Vectors()
    module.train_dataloader = lambda: torch.utils.data.DataLoader(Stream(), 16)
    callback = AdversarialCallback("pgd", eps=0.1, steps=1, warmup_epochs=1, bounds="none", val_eps=[])
    with pytest.raises(MisconfigurationException, match="loader of a known length for a warm-up"):
        make_trainer(tmp_path, [callback], max_epochs=1, limit_val_batches=0).fit(module)


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
def test_freelb_logs_and_gathers_once_a_step(tmp_path):
    """Three passes a step; what the module counts and gathers is that of one, and a skipped batch is skipped."""

    class Gathers(Vectors):
        def __init__(self):
            super().__init__()
            self.embedding, self.gathered, self.passes = nn.Embedding(5, 2), [], []
            self.register_buffer("steps", torch.zeros((), dtype=torch.long))
            self.embedding.register_forward_hook(lambda *_: PASSES.append(1))

        def training_step(self, batch, batch_idx):
            if batch_idx == 1:
                return None
            self.steps += 1
            loss = nn.functional.cross_entropy(
                self(batch[0]) + self.embedding(torch.arange(16)[:, None] % 5).mean(1), batch[1]
            )
            self.gathered.append(loss.detach())
            return {"loss": loss, "place": batch_idx}

        def on_train_batch_end(self, outputs, batch, batch_idx):
            assert batch_idx == 1 or outputs["place"] == batch_idx

    PASSES = []
    module = Gathers()
    callback = AdversarialCallback("freelb", eps=0.1, steps=3, embedding="embedding", val_eps=[])
    make_trainer(tmp_path, [callback], max_epochs=1, limit_val_batches=0).fit(module)
    assert (len(PASSES), len(module.gathered), module.steps.item()) == (3, 1, 1)


@pytest.mark.parametrize("method", ["fgm", "pgd"])
def test_a_loss_for_each_sample_is_climbed_behind_an_embedding_too(tmp_path, method):
    weights = []
    for reduction in ("none", "mean"):

        class Own(Vectors):
            def __init__(self, reduction=reduction):
                super().__init__()
                torch.manual_seed(0)
                self.embedding, self.reduction = nn.Embedding(5, 2), reduction

            def attack_loss(self, batch):
                logits = self.embedding(torch.arange(16)[:, None] % 5).mean(1)
                return nn.functional.cross_entropy(logits, batch[1], reduction=self.reduction)

            def training_step(self, batch, batch_idx):
                return self.attack_loss(batch).mean()

        module = Own()
        settings = {"embedding": "embedding", "attack_precision": "32", "eps": 0.3}
        make_trainer(tmp_path, [AdversarialCallback(method, **settings)], limit_val_batches=0).fit(module)
        weights.append(module.embedding.weight.detach())
    torch.testing.assert_close(*weights)


def test_vectors_that_are_no_pixels_are_refused_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=r"got \[.*bounds='none'"):
        make_trainer(tmp_path, [AdversarialCallback("fgsm", val_eps=[])]).fit(Vectors(scale=9.0))
    module = Vectors(scale=9.0)
    callback = AdversarialCallback("fgsm", eps=0.5, bounds="none", val_eps=[])
    make_trainer(tmp_path, [callback], max_epochs=1).fit(module)
    assert (module.used[0] - module.values[:16]).abs().max().item() == pytest.approx(0.5, abs=1e-5)


def parsed(*args):
    cli = RobustCLI(args=["--seed_everything=0", "--model=tests.boring.Boring", *args], run=False)
    (callback,) = (c for c in cli.trainer.callbacks if isinstance(c, AdversarialCallback))
    return cli, callback


CLASS = "lightning_robust.callbacks.adversarial"


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--adversarial.method=pgd", "--adversarial.steps=3"], PGD(steps=3)),
        (["--adversarial={method: pgd, eps: 8/255, steps: 7}", "--adversarial.steps=4"], PGD(steps=4)),
        ([f"--adversarial.method={{class_path: {CLASS}.PGD, init_args: {{steps: 5}}}}"], PGD(steps=5)),
        ([f"--adversarial.method={CLASS}.TRADES", "--adversarial.method.beta=2"], TRADES(beta=2.0)),
        (["--adversarial.method=freelb", "--adversarial.embedding=e"], FreeLB("e")),
    ],
)
def test_yaml_and_shell(tmp_path, args, expected):
    """All spellings give the method, and the saved file gives an equal one."""
    cli, callback = parsed(*args)
    assert callback.attack == expected
    saved = tmp_path / "saved.yaml"
    saved.write_text(cli.parser.dump(cli.config, skip_none=False))
    again = RobustCLI(args=[f"--config={saved}"], run=False)
    assert again.config.adversarial == cli.config.adversarial
    (reloaded,) = (c for c in again.trainer.callbacks if isinstance(c, AdversarialCallback))
    assert reloaded.attack == expected
    assert isinstance(yaml.safe_load(saved.read_text())["adversarial"]["init_args"], dict)


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--adversarial.method=fgsm", "--adversarial.beta=3"], "Expected no `beta` with method='fgsm'"),
        (["--adversarial.method=pgd", "--adversarial.stepz=3"], "Did you mean 'steps'"),
        (["--adversarial.val_step=3"], "Did you mean 'val_steps'"),
    ],
)
def test_the_shell_names_wrong_arguments(capsys, args, complaint):
    with pytest.raises((SystemExit, ValueError)) as stopped:
        parsed(*args)
    assert complaint in capsys.readouterr().err + str(stopped.value)


def test_help_lists_the_arguments_of_methods_and_validation():
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(AdversarialCallback, "adversarial")
    text = parser.format_help()
    assert all(f"--adversarial.{name}" in text for name in ShortForm.__annotations__)
    assert "Weight of the divergence in trades" in text


def test_val_arguments_become_those_of_the_validation():
    callback = AdversarialCallback(
        "pgd", eps="8/255", norm="l2", val_eps=["4/255", 0.1], val_steps=5, val_restarts=2, val_batches=None, seed=3
    )
    validation = callback.validation
    assert isinstance(validation, RobustValidationCallback)
    assert (validation.eps, validation.steps, validation.restarts) == (["4/255", 0.1], 5, 2)
    assert (validation.batches, validation.norm, validation.seed) == (None, "l2", 3)
    solved = AdversarialCallback("pgd", val_drop_solved=True, target_key="label").validation
    assert (solved.drop_solved, solved.target_key) == (True, "label")
    assert AdversarialCallback("pgd", val_eps=[]).validation is None
    assert AdversarialCallback("fgm", embedding="e").validation is None


def test_checkpoints_of_earlier_versions_load():
    """They hold the state of the guard and of free training, whatever the method."""
    free = {"left": 0, "deltas": [], "batch": []}
    guard = {"ratio": 1.1, "first": 2.0, "use_pgd": True, "step_scale": 0.5, "collapses": 1, "good": {}}
    for method in ("fgsm_rs", "pgd", "free"):
        AdversarialCallback(method).load_state_dict({"guard": guard, "free": free})
    callback = AdversarialCallback("fgsm_rs")
    callback.load_state_dict({"guard": guard, "free": free})
    assert (callback.attack.guard.use_pgd, callback.attack.guard.step_scale) == (True, 0.5)
