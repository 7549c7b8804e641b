"""Unsupervised adversarial training against its definition, its sources of pictures and of targets."""

import copy
import time

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_robust import AdversarialCallback, NoEffectWarning, UATMixin
from lightning_robust.demo.lanes import RobustLaneDetector
from lightning_robust.functional.attacks import pgd
from lightning_robust.functional.weights import Weights

from ...boring import Boring, Pictures, make_trainer

BOTH = {"uat_eps": 0.1, "uat_steps": 3}


class Host(Boring):
    """All of its train pictures have labels, but for every fourth."""

    def __init__(self):
        super().__init__()
        self.loaders = None

    def train_dataloader(self):
        pictures = Pictures(32)
        labels = torch.where(torch.arange(32) % 4 < 3, pictures.labels, -1)
        return DataLoader(TensorDataset(pictures.images, labels, torch.arange(32)), 8)

    def _loss(self, batch):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


class Unsupervised(UATMixin, Host):
    def __init__(self, **settings):
        seed_everything(0)
        super().__init__(**(BOTH | settings))


def fit(tmp_path, module, loader=None, **settings):
    seed_everything(1)
    trainer = make_trainer(tmp_path, **({"max_epochs": 2} | settings))
    trainer.fit(module, loader)
    return trainer, module


def alone(module):
    module.train()
    module.log = lambda *_, **__: None
    return module


def mixed_batch():
    pictures = Pictures(12)
    labels = pictures.labels.clone()
    labels[[1, 4, 5, 9]] = -1
    return pictures.images, labels, torch.arange(12)


@pytest.fixture
def pair():
    """A module and its twin, without dropout, that have seen nothing."""

    def make(**settings):
        module = alone(Unsupervised(**settings))
        module.net[4].p = 0.0
        return module, copy.deepcopy(module)

    return make


def neighbours(module, twin, loss, u, stream):
    """The attack in evaluation mode, from the same random start."""
    generator = module._generator(stream)
    return pgd(lambda z: loss(twin.eval()(z)), u, 0.1, steps=3, bounds=(0, 1), generator=generator)


def test_online_targets_are_their_definition(pair):
    """Cross entropy of the labelled rows + weight * KL(p(u), stopped, in evaluation mode || p(u + delta))."""
    module, twin = pair(uat_ot_weight=0.8)
    x, y, numbers = mixed_batch()
    u = x[y < 0]
    clean = nn.functional.cross_entropy(twin(x[y >= 0]), y[y >= 0])
    goal = twin.eval()(u).detach().softmax(1)

    def kl(logits):
        return (goal * (goal.log() - logits.log_softmax(1))).sum(1)

    moved = neighbours(module, twin, kl, u, 3)
    expected = clean + 0.8 * kl(twin.train()(moved)).mean()
    assert module.training_step((x, y, numbers), 0).item() == pytest.approx(expected.item(), rel=1e-5)


def test_fixed_targets_are_those_of_the_checkpoint(tmp_path, pair):
    trainer, teacher = fit(tmp_path, Boring(), max_epochs=3)
    trainer.save_checkpoint(tmp_path / "teacher.ckpt")
    module, twin = pair(uat_ft_weight=1.5, uat_target=str(tmp_path / "teacher.ckpt"))
    module._target.weights = module._target.read(module.uat_target)
    x, y, _ = mixed_batch()
    u = x[y < 0]
    labels = teacher.eval()(u).argmax(1)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert torch.equal(module._target.classes(u, None), labels)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])
    entropy = nn.functional.cross_entropy
    clean = entropy(twin(x[y >= 0]), y[y >= 0])
    moved = neighbours(module, twin, lambda z: entropy(z, labels, reduction="none"), u, 4)
    expected = clean + 1.5 * entropy(twin.train()(moved), labels)
    assert module.training_step((x, y), 0).item() == pytest.approx(expected.item(), rel=1e-5)


def test_two_loaders_and_labels_of_minus_one_are_the_same(pair):
    x, y, _ = mixed_batch()
    marked, named = pair(uat_ot_weight=1.0)[0], pair(uat_ot_weight=1.0, uat_unlabelled_key="unlabelled.0")[0]
    batch = {"labelled": (x[y >= 0], y[y >= 0]), "unlabelled": [x[y < 0]]}
    assert marked.training_step((x, y), 0).item() == pytest.approx(named.training_step(batch, 0).item(), rel=1e-6)


def test_robust_validation_beside_two_loaders(tmp_path):
    """Training batches are nested, those of validation are the host's own; both are attacked."""
    pictures = Pictures(32)
    loaders = {
        "labelled": DataLoader(TensorDataset(pictures.images[:16], pictures.labels[:16]), 8),
        "unlabelled": DataLoader(TensorDataset(pictures.images[16:]), 8),
    }
    module = Unsupervised(uat_ot_weight=1.0, uat_unlabelled_key="unlabelled.0")
    attack = AdversarialCallback(
        "fgsm", eps=0.1, input_key="labelled.0", val_input_key=0, val_eps=[0.1], guard_every_n_steps=0
    )
    seed_everything(1)
    trainer = make_trainer(tmp_path, [attack], max_epochs=1)
    trainer.fit(module, loaders)
    metrics = trainer.callback_metrics
    assert metrics["adversarial/val_loss@0.1"] > metrics["val/loss"]
    assert metrics["adversarial/zero_gradients"] == 0
    assert metrics["uat/ot"] > 0
    (alone,) = make_trainer(tmp_path, [AdversarialCallback("fgsm", eps=0.1)]).validate(module, verbose=False)
    assert alone["adversarial/val_loss@0.1"] == pytest.approx(metrics["adversarial/val_loss@0.1"].item(), rel=1e-4)


@pytest.mark.parametrize("missing", ["labelled", "unlabelled"])
def test_a_loader_that_has_ended(tmp_path, missing):
    """The other part is trained on alone, and it is said once."""
    pictures = Pictures(48)
    whole = TensorDataset(pictures.images, pictures.labels)
    sizes = {"labelled": 48, "unlabelled": 48, missing: 16}
    loaders = {
        name: DataLoader(torch.utils.data.Subset(whole, range(size)), 8, shuffle=False) for name, size in sizes.items()
    }
    module = Unsupervised(uat_ot_weight=1.0, uat_unlabelled_key="unlabelled.0")
    combined = CombinedLoader(loaders, "max_size")
    if missing == "unlabelled":
        with pytest.warns(UserWarning, match="the loader of unlabelled samples has ended"):
            trainer, _ = fit(tmp_path, module, combined, max_epochs=1)
    else:
        trainer, _ = fit(tmp_path, module, combined, max_epochs=1)
    assert trainer.global_step == 6
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_nothing_without_a_label_is_said(tmp_path):
    with pytest.warns(NoEffectWarning, match="no sample without a label was seen"):
        fit(tmp_path, Unsupervised(uat_ot_weight=1.0), DataLoader(Pictures(16), 8), max_epochs=1)


def test_the_target_trained_first_is_fixed_then(tmp_path):
    class Look(Unsupervised):
        targets, weights = [], []

        def on_train_epoch_start(self):
            self.weights.append(self.net[5].weight.detach().clone())
            super().on_train_epoch_start()
            self.targets.append(self._target.weights)

    module = Look(uat_ft_weight=1.0, uat_target_epochs=2)
    trainer, _ = fit(tmp_path, module, max_epochs=4)
    assert module.targets[:2] == [None, None]
    assert module.targets[2] is module.targets[3]
    assert any(torch.equal(tensor, module.weights[2]) for tensor in module.targets[3] if tensor.ndim == 2)
    assert trainer.callback_metrics["uat/ft"] > 0


def test_a_target_that_never_comes_is_said(tmp_path):
    with pytest.warns(NoEffectWarning, match="that after uat_target_epochs=5, and training ended before"):
        fit(tmp_path, Unsupervised(uat_ft_weight=1.0))


def test_the_target_is_asked_before_the_pass_of_a_compiled_network(tmp_path):
    """Its weights are copied into those of a compiled network, which autograd would find changed behind a pass."""
    module = Unsupervised(uat_ft_weight=1.0, uat_target_epochs=1)
    module.net.compile(backend="aot_eager")
    _, module = fit(tmp_path, module)
    assert module._target.weights is not None


def test_the_average_is_the_target(tmp_path):
    module = Unsupervised(uat_ft_weight=1.0, uat_target="ema", uat_half_life=2)
    fit(tmp_path, module, max_epochs=3)
    assert module._target.average.count == 12
    u = Pictures(8).images
    twin = copy.deepcopy(module).eval()
    weights = Weights(twin)
    weights.put(module._target.average.values())
    assert torch.equal(module._target.classes(u, None), twin(u).argmax(1))


def test_answers_are_kept_by_number(tmp_path):
    """The target model answers once for each sample of an epoch that comes again, and the same."""

    class Counted(Unsupervised):
        asked = 0

        def _classify(self, pictures):
            self.asked += len(pictures)
            return super()._classify(pictures)

    kept = Counted(uat_ft_weight=1.0, uat_target_epochs=1, uat_index_key=2)
    fit(tmp_path, kept, max_epochs=4)
    asked = Counted(uat_ft_weight=1.0, uat_target_epochs=1)
    fit(tmp_path, asked, max_epochs=4)
    assert (kept.asked, asked.asked) == (8, 24)
    for name, tensor in kept.state_dict().items():
        assert torch.equal(tensor, asked.state_dict()[name])


@pytest.mark.parametrize("accumulated", [1, 3])
def test_the_average_counts_optimizer_steps(tmp_path, accumulated):
    """With 3 of 4 batches accumulated an epoch has two steps, the second of one batch."""
    module = Unsupervised(uat_ft_weight=1.0, uat_target="ema", uat_half_life=2)
    seen = []

    class Steps(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.global_step > len(seen):
                seen.append(pl_module.net[0].weight.detach().clone())

    trainer, _ = fit(tmp_path, module, accumulate_grad_batches=accumulated, max_epochs=3, callbacks=[Steps()])
    steps = len(seen)
    assert module._target.average.count == trainer.global_step == steps == (12 if accumulated == 1 else 6)
    shares = [0.5 ** ((steps - 1 - place) / 2) for place in range(steps)]
    expected = sum(s * w for s, w in zip(shares, seen, strict=True)) / sum(shares)
    torch.testing.assert_close(module._target.average.values()[0], expected)


def test_answers_are_one_tensor_in_a_file(tmp_path):
    """50,000 answers take 0.4 MB; files of earlier versions, with a tensor for each picture, give the same ones."""
    module = Unsupervised(uat_ft_weight=1.0, uat_target="first", uat_index_key=2)
    target = module._target
    target.fix()
    asked = []
    target._classify = lambda pictures: asked.append(len(pictures)) or pictures.long()
    classes = torch.arange(50_000) * 7 % 10
    for rows in torch.randperm(50_000, generator=torch.Generator().manual_seed(0)).split(5_000):
        assert torch.equal(target.classes(classes[rows], rows), classes[rows])
    again = torch.tensor([49_999, 3, 3, 0])
    assert torch.equal(target.classes(torch.zeros(4), again), classes[again])
    assert sum(asked) == 50_000
    begin = time.perf_counter()
    torch.save(target.state_dict()["answers"], tmp_path / "answers.pt")
    assert time.perf_counter() - begin < 0.1
    assert (tmp_path / "answers.pt").stat().st_size < 2**20
    old = {"target": None, "average": None, "answers": {3: torch.tensor(1), 0: torch.tensor(2)}}
    target.reset()
    target.load_state_dict(old)
    assert target.state_dict()["answers"].tolist() == [2, -1, -1, 1]
    target.reset()
    target.load_state_dict(old | {"answers": {}})
    assert len(target.state_dict()["answers"]) == 0


def test_answers_of_many_classes_a_picture_are_kept_too():
    """Of segmentation: a map of classes for each picture."""
    target = Unsupervised(uat_ft_weight=1.0, uat_index_key=2)._target
    target.fix()
    maps = torch.arange(2 * 3 * 4).reshape(2, 3, 4)
    target._classify = lambda pictures: maps[: len(pictures)]
    assert torch.equal(target.classes(torch.zeros(2, 1), torch.tensor([5, 1])), maps)
    assert torch.equal(target.classes(torch.zeros(1, 1), torch.tensor([1])), maps[1:])


def test_tokens_are_refused_in_the_first_batch():
    module = alone(Unsupervised(uat_ot_weight=1.0))
    with pytest.raises(TypeError, match=r"floating point.*torch\.int64.*tokens have no neighbours"):
        module.training_step((torch.zeros(4, 5, dtype=torch.long), torch.full((4,), -1), None), 0)


@pytest.mark.parametrize("target", ["first", "ema"])
def test_resumes_with_its_target(tmp_path, target):
    settings = {"uat_ot_weight": 0.5, "uat_ft_weight": 1.0, "uat_target": target, "uat_target_epochs": 1}

    class Still(Unsupervised):
        def on_train_batch_start(self, batch, batch_idx):
            torch.manual_seed(1000 + self.global_step)

    _, whole = fit(tmp_path, Still(**settings), max_epochs=4)
    trainer, _ = fit(tmp_path, Still(**settings), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    torch.load(tmp_path / "stopped.ckpt", weights_only=True)
    seed_everything(99)
    resumed = Still(**settings)
    make_trainer(tmp_path, max_epochs=4).fit(resumed, ckpt_path=tmp_path / "stopped.ckpt")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_lane_detector(tmp_path):
    """Distributions over cells, roads without columns marked by -1, inputs normalised."""
    seed_everything(0)
    module = RobustLaneDetector(
        height=64,
        width=96,
        channels=8,
        hidden=16,
        uat_ot_weight=1.0,
        uat_ft_weight=1.0,
        uat_target="ema",
        uat_mean=0.4,
        uat_std=0.2,
        **BOTH,
    )
    images = (torch.rand(12, 3, 64, 96) - 0.4) / 0.2
    columns = torch.rand(12, 2, module.network.anchors) * 900
    columns[3, 1], columns[6:] = torch.nan, -1
    loader = DataLoader(TensorDataset(images, columns), 6)
    trainer = make_trainer(tmp_path, max_epochs=2, limit_val_batches=0)
    trainer.fit(module, loader, loader)
    assert {"uat/ot", "uat/ft"} <= set(trainer.callback_metrics)
    module.uat_mean, module.uat_std = None, None
    with pytest.raises(ValueError, match="Set `mean` and `std`"):
        make_trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(module, loader, loader)


def test_unlabelled_pictures_make_few_labels_robust(tmp_path):
    """8 labels alone, or with 56 pictures more: accuracy under PGD on new pictures."""
    found = {}
    pictures = Pictures(64)
    labels = torch.where(torch.arange(64) < 8, pictures.labels, -1)
    generator = torch.Generator().manual_seed(9)
    tested = (Pictures(64).images + 0.1 * torch.rand(64, 3, 8, 8, generator=generator)).clamp(0, 1)
    for weight in (0.0, 4.0):
        module = Unsupervised(uat_ot_weight=weight, uat_eps=0.2)
        rows = slice(None) if weight else slice(8)
        loader = DataLoader(TensorDataset(pictures.images[rows], labels[rows]), 64 if weight else 8, shuffle=True)
        fit(tmp_path, module, loader, max_epochs=80)
        module.eval()
        attacked = pgd(
            lambda z, module=module: nn.functional.cross_entropy(module(z), pictures.labels, reduction="none"),
            tested,
            0.2,
            steps=20,
            bounds=(0, 1),
            generator=torch.Generator().manual_seed(0),
        )
        found[weight] = (module(attacked).argmax(1) == pictures.labels).float().mean().item()
    assert found[4.0] > found[0.0] + 0.1


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="`uat_ot_weight` of at least 0"):
        Unsupervised(uat_ot_weight=-1.0)
    with pytest.raises(ValueError, match="`uat_steps` and `uat_target_epochs` of at least 1"):
        Unsupervised(uat_steps=0)
    with pytest.raises(ValueError, match="`uat_eps` as a number"):
        Unsupervised(uat_eps="8/0")
    with pytest.raises(ValueError, match="its answers change with the weights"):
        Unsupervised(uat_target="ema", uat_index_key=2)
    with pytest.raises(MisconfigurationException, match=r"the path of a checkpoint, but there is no 'nowhere\.ckpt'"):
        fit(tmp_path, Unsupervised(uat_ft_weight=1.0, uat_target="nowhere.ckpt"))

    class Wider(Boring):
        def __init__(self):
            super().__init__()
            self.net[5] = nn.Linear(256, 7)

    torch.save(Wider().state_dict(), tmp_path / "wider.pt")
    with pytest.raises(ValueError, match=r"to be of this module's shape.*\(4, 256\).*\(7, 256\)"):
        fit(tmp_path, Unsupervised(uat_ft_weight=1.0, uat_target=str(tmp_path / "wider.pt")))
    module, (x, y, _) = alone(Unsupervised(uat_ot_weight=1.0, uat_unlabelled_key="unlabelled")), mixed_batch()
    with pytest.raises(TypeError, match=r"Name their place in it, as 'unlabelled\.0'"):
        module.training_step({"labelled": (x[y >= 0], y[y >= 0]), "unlabelled": [x]}, 0)
    with pytest.raises(KeyError, match="a part 'labelled'"):
        module.training_step((x, y), 0)
    with pytest.raises(TypeError, match="set `uat_unlabelled_key`"):
        alone(Unsupervised(uat_ot_weight=1.0)).training_step((x, {"boxes": y}), 0)
