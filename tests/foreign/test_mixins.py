"""The mixins before foreign modules on pictures; their losses are recomputed from what the network was fed."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.nn.functional import cross_entropy, kl_div

from lightning_robust import PreprocessingMixin, RegMixupMixin, RotationSSLMixin, UATMixin

from . import modules_pictures, modules_transformers
from .by_hand import get, put
from .matrix import pair
from .numbers import CLOSE, check_validated, has_batchnorm
from .runner import fit, fresh, loader_of, plain_run

pytestmark = pytest.mark.foreign
GUESTS = [g for g in [*modules_pictures.GUESTS, *modules_transformers.GUESTS] if g.host is not None]
SETTINGS = {
    "preprocessing": {"preprocessing_weight": 1.0, "preprocessing_entries": ["shift", "jpeg_90", "gamma", "bgr"]},
    "regmixup": {"regmixup_weight": 1.0},
    "rotation": {"rotation_weight": 0.5, "rotation_turns": "all"},
    "uat_ot": {"uat_ot_weight": 1.0, "uat_steps": 2, "uat_eps": 0.05},
    "uat_ft": {"uat_ft_weight": 1.0, "uat_target": "ema", "uat_steps": 2, "uat_eps": 0.05},
}
TAGS = {
    "preprocessing": "preprocessing/loss",
    "regmixup": "regmixup/loss",
    "rotation": "rotation/loss",
    "uat_ot": "uat/ot",
    "uat_ft": "uat/ft",
}
SMOOTH = [g for g in GUESTS if not has_batchnorm(g)]
"""Without BatchNorm or dropout: what a row gives does not depend on the pass that it is in."""


def robust(guest, key, **more):
    """What changes the guest into the same with a mixin, its last sample of each batch without a label for UAT."""
    keys = {"input_key": guest.inputs[0], "target_key": guest.classes if guest.classes is not None else 1}
    settings = SETTINGS[key] | keys | ({"rotation_features": guest.features} if key == "rotation" else {}) | more

    def change(module, train, val):
        mixins = PreprocessingMixin, RegMixupMixin, RotationSSLMixin, UATMixin
        made = type(f"Robust{guest.host.__name__}", (*mixins, guest.host), {})(**settings)
        made.load_state_dict(module.state_dict())
        batches = list(train)
        if key.startswith("uat"):
            target = keys["target_key"]
            batches = [put(b, target, _without_last(get(b, target))) for b in batches]
        return made, loader_of(batches), val

    return change


def _without_last(targets):
    targets = targets.clone()
    targets[-1] = -1
    return targets


@pytest.mark.parametrize(("guest", "key"), [pair(guest, key) for guest in GUESTS for key in SETTINGS])
def test_mixin_on_a_module_nobody_here_wrote(guest, key, tmp_path):
    refused = guest.name == "metadata" and key != "regmixup"
    if refused:
        with pytest.raises(
            MisconfigurationException, match=r"forward to take the inputs of a batch alone.* Define a method"
        ):
            fit(guest, change=robust(guest, key), folder=tmp_path)
        return
    run = fit(guest, change=robust(guest, key), folder=tmp_path)
    said = [each for each in run.warnings if "each loss takes a pass of its own" not in each]
    if (guest.name, key) == ("unet", "preprocessing"):
        # of masks nobody has said how they move
        assert "move the picture and are left out" in said.pop()
    assert said == []
    assert 0 < run.logged[TAGS[key]] < 10
    run.state = {name: tensor for name, tensor in run.state.items() if not name.startswith("rotation_head")}
    check_validated(run)


class Fed(pl.Callback):
    """Keeps the pictures that the network's first layer is fed in a training step."""

    def __init__(self):
        self.pictures = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.module, self.batch = pl_module, batch
        self.pictures.clear()
        layers = [part for part in pl_module.modules() if isinstance(part, torch.nn.Conv2d)]
        self.handle = layers[0].register_forward_hook(
            lambda part, args, out: self.pictures.append(args[0].detach().clone())
        )

    def on_train_batch_end(self, *_):
        self.handle.remove()


def one_step(guest, key, folder, **settings):
    """The first step with a mixin: what was logged, what the network was fed, and the network as it was before."""
    fed = Fed()
    run = fit(guest, [fed], robust(guest, key, **settings), folder, max_steps=1, limit_val_batches=0)
    module = run.module
    module.load_state_dict(run.tape.start)
    module.log = module.log_dict = lambda *args, **kwargs: None
    return run.logged, fed, module


@pytest.mark.parametrize("guest", SMOOTH, ids=str)
def test_regmixup_of_what_the_network_was_fed(guest, tmp_path):
    logged, fed, module = one_step(guest, "regmixup", tmp_path)
    pictures, labels = get(fed.batch, guest.inputs[0]), get(fed.batch, guest.classes)
    (both,) = fed.pictures
    mixed = both[len(pictures) :]
    share, order = _share_and_order(pictures, mixed)
    logits = module(mixed)
    expected = share * cross_entropy(logits, labels) + (1 - share) * cross_entropy(logits, labels[order])
    assert logged["regmixup/loss"] == pytest.approx(expected.item(), **CLOSE)


def _share_and_order(pictures, mixed):
    """The share and the permutation that give the mixtures: those with the smallest error, which is none."""
    count = len(pictures)
    flat, target = pictures.flatten(1).double(), mixed.flatten(1).double()
    direction = flat[:, None] - flat[None]
    offset = target[:, None] - flat[None]
    shares = (direction * offset).sum(2) / direction.square().sum(2).clamp(min=1e-12)
    errors = (offset - shares[..., None] * direction).square().sum(2)
    errors[torch.eye(count, dtype=torch.bool)] = (target - flat).square().sum(1)
    order = errors.argmin(1)
    others = order != torch.arange(count)
    assert errors.min(1).values.max() < 1e-9
    share = shares[torch.arange(count), order][others].mean().item() if others.any() else 1.0
    return share, order


@pytest.mark.parametrize("guest", SMOOTH, ids=str)
def test_preprocessing_of_what_the_network_was_fed(guest, tmp_path):
    logged, fed, module = one_step(guest, "preprocessing", tmp_path)
    clean, labels = get(fed.batch, guest.inputs[0]), get(fed.batch, guest.classes)
    both = fed.pictures[0] if len(fed.pictures[0]) == 2 * len(clean) else torch.cat(fed.pictures[:2])
    assert torch.equal(both[: len(clean)], clean)
    perturbed = both[len(clean) :]
    assert 1e-3 < (perturbed - clean).abs().mean() < 0.5
    p, q = module(clean).log_softmax(1), module(perturbed).log_softmax(1)
    assert logged["preprocessing/loss"] == pytest.approx(cross_entropy(q, labels).item(), **CLOSE)
    distance = (
        kl_div(q, p, reduction="batchmean", log_target=True) + kl_div(p, q, reduction="batchmean", log_target=True)
    ) / 2
    assert logged["preprocessing/consistency"] == pytest.approx(distance.item(), **CLOSE)


@pytest.mark.parametrize("guest", SMOOTH, ids=str)
def test_rotation_of_all_turns(guest, tmp_path):
    logged, fed, module = one_step(guest, "rotation", tmp_path)
    pictures = get(fed.batch, guest.inputs[0])
    kept = []
    module.get_submodule(guest.features).register_forward_hook(lambda part, args, out: kept.append(out))
    losses = []
    for turn in range(4):
        module(pictures.rot90(turn, (2, 3)))
        features = kept[-1] if kept[-1].ndim == 2 else kept[-1].mean(1)
        logits = module.rotation_head(features)
        losses.append(cross_entropy(logits, torch.full((len(pictures),), turn)))
    assert logged["rotation/loss"] == pytest.approx(torch.stack(losses).mean().item(), **CLOSE)


@pytest.mark.parametrize("key", ["uat_ot", "uat_ft"])
@pytest.mark.parametrize("guest", SMOOTH, ids=str)
def test_uat_on_the_neighbour_that_was_found(guest, key, tmp_path):
    target = {}
    if key == "uat_ft":
        torch.save(plain_run(guest).state, tmp_path / "target.pt")
        target = {"uat_target": str(tmp_path / "target.pt")}
    logged, fed, module = one_step(guest, key, tmp_path, **target)
    clean = get(fed.batch, guest.inputs[0])[-1:]
    (neighbour, *_) = [each for each in fed.pictures[::-1] if len(each) == 1]
    assert (neighbour - clean).abs().max() <= 0.05
    assert 0 <= neighbour.min() <= neighbour.max() <= 1
    before, after = module(clean).log_softmax(1), module(neighbour).log_softmax(1)
    if key == "uat_ot":
        expected = kl_div(after, before, reduction="batchmean", log_target=True)
    else:
        target = fresh(guest, plain_run(guest).state).eval()
        expected = cross_entropy(module(neighbour), target(clean).argmax(1))
    assert logged["uat/ot" if key == "uat_ot" else "uat/ft"] == pytest.approx(expected.item(), **CLOSE)
