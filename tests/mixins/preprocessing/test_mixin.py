"""PreprocessingMixin against a few lines of independent code: the loss, the passes, what is left out and refused."""

import math
import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import seed_everything
from torch import nn

from lightning_robust import DeploymentParityCallback, PreprocessingMixin
from lightning_robust.decoding import Boxes
from lightning_robust.deployment.pixels.catalogue import CATALOGUE
from lightning_robust.functional.picture_motion import move_points
from lightning_robust.functional.stability import symmetric_divergence

from ...boring import Boring, Pictures, make_trainer

SEEN = []
"""Batches that the host was given: not on the module, where a quiet run would put the list back."""
STILL = ["bgr", "gamma", "compression"]


class Plain(Boring):
    """Without dropout, so that a second pass gives the same."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.net[4] = nn.Identity()


class Perturbed(PreprocessingMixin, Plain):
    def __init__(self, **settings):
        seed_everything(0)
        super().__init__(**{"preprocessing_weight": 0.7, "preprocessing_entries": STILL} | settings)


class PointHost(Boring):
    """Finds one point in a picture by the middle of its mass; knows how points move."""

    def forward(self, images):
        height, width = images.shape[-2:]
        mass = self.net[0](images).square().mean(1)
        mass = mass / mass.sum((1, 2), keepdim=True)
        rows, columns = torch.arange(height).to(images), torch.arange(width).to(images)
        return torch.stack([(mass.sum(1) * columns).sum(1), (mass.sum(2) * rows).sum(1)], 1)[:, None]

    def decode(self, outputs):
        return {"point": outputs}

    def moved(self, values, matrix):
        return {"point": move_points(values["point"], matrix)}

    def move_targets(self, targets, matrix):
        return move_points(targets, matrix)

    def training_step(self, batch, batch_idx):
        SEEN.append(batch)
        return (self(batch[0]) - batch[1]).square().mean()


class Points(PreprocessingMixin, PointHost):
    def __init__(self, **settings):
        super().__init__(**{"preprocessing_weight": 1.0, "preprocessing_entries": ["shift", "crop"]} | settings)


def batch(count=8):
    return Pictures(count).images, Pictures(count).labels


def step(module, given):
    logged = {}
    module.train()
    module.log = lambda *_, **__: None
    module._log_means = logged.update
    return module.training_step(given, 0), logged


def fed(module):
    passed = []
    module.net.register_forward_hook(lambda _, args, __: passed.append(args[0].detach()))
    return passed


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_closed_form(share):
    """(1 - s) L(x, y) + s L(Tx, y) + w D, of one pass of both, with BatchNorm's statistics of both."""
    module = Perturbed(preprocessing_share=share)
    x, y = batch()
    passed = fed(module)
    loss, logged = step(module, (x, y))
    (both,) = passed
    assert torch.equal(both[:8], x)
    other = both[8:]
    assert (other - x).abs().mean() > 1e-3
    twin = Perturbed().train()
    clean, moved = twin.net(torch.cat([x, other])).chunk(2)
    entropy, distance = nn.functional.cross_entropy, symmetric_divergence(clean, moved).mean()
    expected = (1 - share) * entropy(clean, y) + share * entropy(moved, y) + 0.7 * distance
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert logged["preprocessing/consistency"].item() == pytest.approx(distance.item(), abs=1e-6)
    assert ("preprocessing/loss" in logged) == (share > 0)
    torch.testing.assert_close(module.net[1].running_mean, twin.net[1].running_mean)


def test_many_pictures_go_in_two_passes_of_the_batchs_size():
    """Each half has its pictures in both versions, so that BatchNorm normalises a picture and its twin alike."""
    module = Perturbed()
    passed = fed(module)
    x = torch.cat([Pictures(16).images] * 2)
    step(module, (x, torch.cat([Pictures(16).labels] * 2)))
    assert [len(each) for each in passed] == [32, 32]
    assert torch.equal(torch.cat([each[:16] for each in passed]), x)
    other = torch.cat([each[16:] for each in passed])
    for row in range(32):
        assert (other[row] - x).abs().mean((1, 2, 3)).argmin() in (row, (row + 16) % 32)


def test_targets_move_with_the_pictures_and_answers_are_held_to_moved_answers():
    """The host is given moved points, group by group; an ideal finder of points would have no distance at all."""
    module = Points(preprocessing_groups=4)
    x, y = torch.rand(8, 3, 16, 16), torch.rand(8, 1, 2) * 8 + 4
    SEEN.clear()
    _, logged = step(module, (x, y))
    clean, moved = SEEN
    assert torch.equal(clean[1], y)
    gaps = moved[1] - y
    assert (gaps != 0).any()
    for group in range(4):
        # the two pictures of a group move alike: p -> a p + b along each axis
        (first, second), (before, after) = moved[1][group::4, 0], y[group::4, 0]
        factor = (second - first) / (after - before)
        assert ((factor > 0.99) & (factor < 1.6)).all()
    assert logged["preprocessing/consistency"] > 0


class LastHost(PointHost):
    def forward(self, images):
        return super().forward(images.movedim(3, 1))


class PointsLast(PreprocessingMixin, LastHost): ...


class ClipHost(PointHost):
    def forward(self, clips):
        return super().forward(clips.flatten(0, 1)).unflatten(0, clips.shape[:2]).mean(1)


class PointsOfClips(PreprocessingMixin, ClipHost): ...


@pytest.mark.parametrize(
    ("kind", "arrange"),
    [(PointsLast, lambda x: x.movedim(1, 3)), (PointsOfClips, lambda x: x[:, None].repeat(1, 2, 1, 1, 1))],
)
def test_other_arrangements_train_as_pictures_do(kind, arrange):
    """Channels last, and clips whose frames are one picture: the same losses, with targets that move."""
    x, y = torch.rand(8, 3, 16, 16), torch.rand(8, 1, 2) * 8 + 4
    found = []
    for each, inputs in ((Points, x), (kind, arrange(x).contiguous())):
        seed_everything(0)
        settings = {"preprocessing_weight": 1.0, "preprocessing_entries": ["shift", "crop", "gain_offset"]}
        module = each(**settings, preprocessing_groups=4)
        loss, logged = step(module, (inputs, y))
        found.append([loss.item(), *(value.item() for value in logged.values())])
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert min(found[0]) > 0


def test_without_move_targets_what_moves_is_left_out_once():
    class MaskHost(Boring):
        def forward(self, images):
            return self.net[0](images)

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

    class Masks(PreprocessingMixin, MaskHost):
        pass

    module = Masks(preprocessing_weight=1.0, preprocessing_entries=["crop", "bgr"], preprocessing_groups=1)
    x, masks = (255 * torch.rand(4, 3, 8, 8)).round() / 255, torch.randint(4, (4, 8, 8))
    passed = []
    module.net[0].register_forward_hook(lambda _, args, __: passed.append(args[0]))
    with pytest.warns(UserWarning, match=r"crop move the picture and are left out.* `move_targets\(targets, matrix\)`"):
        step(module, (x, masks))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            step(module, (x, masks))
    assert all(torch.equal(each[4:], each[:4].flip(1)) for each in passed)
    only = Masks(preprocessing_weight=1.0, preprocessing_entries=["crop"])
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(MisconfigurationException, match="to have one that applies"),
    ):
        step(only, (x, masks))


def test_classes_do_not_move_and_need_no_method():
    module = Perturbed(preprocessing_entries=["shift", "crop", "letterbox"], preprocessing_share=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, logged = step(module, batch())
    assert logged["preprocessing/consistency"] > 0


def test_grey_pictures_leave_colour_out_once():
    class Grey(PreprocessingMixin, Boring):
        def __init__(self, **settings):
            super().__init__(preprocessing_weight=1.0, **settings)
            self.net[0] = nn.Conv2d(1, 4, 3, padding=1)

    x, y = torch.rand(8, 1, 8, 8), torch.arange(8) % 4
    module = Grey()
    with pytest.warns(UserWarning, match="color_matrix, nv12, bgr need three channels and are left out"):
        step(module, (x, y))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(module, (x, y))
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(MisconfigurationException, match=r"pictures of 1 channel\(s\)"),
    ):
        step(Grey(preprocessing_entries=["bgr"]), (x, y))


@pytest.mark.parametrize(
    ("inputs", "error", "match"),
    [
        (torch.rand(8, 192), TypeError, r"Expected pictures .* shape \(8, 192\)"),
        (torch.randint(255, (8, 3, 8, 8)), TypeError, "got torch.int64"),
        (torch.randn(8, 3, 8, 8), ValueError, r"Set `mean` and `std`"),
        (torch.full((8, 3, 8, 8), torch.nan), ValueError, "nan"),
    ],
)
def test_rejects_inputs(inputs, error, match):
    with pytest.raises(error, match=match):
        step(Perturbed(), (inputs, torch.zeros(8, dtype=torch.long)))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"preprocessing_weight": -1.0}, "`preprocessing_weight` of at least 0"),
        ({"preprocessing_weight": math.nan}, "`preprocessing_weight` of at least 0"),
        ({"preprocessing_share": 1.2}, "from 0 to 1, but got 1.2"),
        ({"preprocessing_share": math.nan}, "from 0 to 1"),
        ({"preprocessing_entries": ["jpg_90"]}, "Did you mean 'jpeg_90'"),
        ({"preprocessing_entries": []}, "at least one entry"),
        ({"preprocessing_entries": "none"}, "preprocessing_weight=0 is off"),
        ({"preprocessing_ranges": {"shift": [0, 1]}}, "none of .* draws"),
        ({"preprocessing_ranges": {"quality": [60, 101]}}, "within"),
        ({"preprocessing_candidates": 3}, "no `preprocessing_candidates` with preprocessing_draw='random'"),
        ({"preprocessing_draw": "worst", "preprocessing_candidates": 0}, "at least 1"),
        ({"preprocessing_draw": "best"}, "preprocessing_draw"),
        ({"preprocessing_distance": "kl"}, "preprocessing_distance"),
        ({"preprocessing_unit": 0.0}, "preprocessing_unit"),
        ({"preprocessing_groups": 0}, "preprocessing_groups"),
        ({"preprocessing_warmup_epochs": -1}, "preprocessing_warmup_epochs"),
    ],
)
def test_rejects_settings(settings, match):
    with pytest.raises(ValueError, match=match):
        Perturbed(**settings)


def test_worst_takes_the_draw_with_the_largest_loss_of_each_group():
    """Of a gain of about one and a channel swap, a classifier of reds is always given the swap."""

    class Reds(PreprocessingMixin, Plain):
        def forward(self, images):
            return 20 * torch.stack([images[:, 0].mean((1, 2)), images[:, 2].mean((1, 2))], 1) + 0 * self.net[5].bias[0]

    x, y = torch.zeros(8, 3, 8, 8), torch.zeros(8, dtype=torch.long)
    x[:, 0] = 1.0
    settings = {"preprocessing_weight": 1.0, "preprocessing_entries": ["bgr", "gain_105"], "preprocessing_share": 0.5}
    module = Reds(
        **settings, preprocessing_draw="worst", preprocessing_candidates=12, preprocessing_ranges={"gain": [0.99, 1.01]}
    )
    modes = [part.training for part in module.train().modules()]
    before = torch.get_rng_state()
    _, logged = step(module, (x, y))
    # swapped, the loss of logits 20 and 0 is 20 to seven digits; a group misses the swap once in 4096 draws
    assert logged["preprocessing/loss"].item() == pytest.approx(20, abs=0.01)
    assert [part.training for part in module.modules()] == modes
    assert torch.equal(before, torch.get_rng_state())
    assert all(p.grad is None for p in module.parameters())


class Passes(DeploymentParityCallback):
    """A parity callback whose passes find what a test says."""

    found = None

    @property
    def sensitivity(self):
        return self.found

    def on_validation_epoch_end(self, trainer, pl_module):
        pass

    def on_fit_end(self, trainer, pl_module):
        pass


def _draws(folder, found, epochs=1, **settings):
    """How often each entry was drawn in a fit whose parity passes found this."""
    counts = {}
    passes = Passes(targets=["torch-bf16"], perturbations=["bgr", "gamma_09", "nv12"])
    passes.found = found
    module = Perturbed(preprocessing_entries="measured", preprocessing_groups=16, **settings)
    choose = module._preprocessing._choose

    def counted(step):
        groups = choose(step)
        for group in groups:
            counts[group.drawn.entry.name] = counts.get(group.drawn.entry.name, 0) + 1
        return groups

    module._preprocessing._choose = counted
    trainer = make_trainer(folder, [passes], max_epochs=epochs, limit_val_batches=0)
    trainer.fit(module)
    return counts, module


@pytest.mark.filterwarnings("ignore::lightning_robust.NoEffectWarning")
def test_measured_entries_are_drawn_in_proportion(tmp_path):
    """Of 4 x 4 x 16 draws; binomial bounds of four standard deviations."""
    alike, _ = _draws(tmp_path, None, 4)
    assert set(alike) == {"bgr", "gamma_09", "nv12"}
    assert all(abs(count - 256 / 3) < 31 for count in alike.values())
    counts, module = _draws(tmp_path, {"bgr": 3.0, "gamma_09": 1.0, "nv12": math.nan, "mine": 9.0}, 4)
    assert set(counts) == {"bgr", "gamma_09"}
    assert abs(counts["bgr"] - 192) < 28
    checkpoint = {}
    module.on_save_checkpoint(checkpoint)
    assert checkpoint["preprocessing_sensitivity"] == {"bgr": 3.0, "gamma_09": 1.0}
    again = Perturbed(preprocessing_entries="measured")
    again.on_load_checkpoint(checkpoint)
    assert again._preprocessing.sensitivity == {"bgr": 3.0, "gamma_09": 1.0}


@pytest.mark.filterwarnings("ignore::lightning_robust.NoEffectWarning", "ignore:.*ended before the epoch ended")
def test_a_run_that_follows_its_parity_passes_resumes_bit_for_bit(tmp_path):
    """Passes at every epoch; stopped in the middle of the second epoch, whose draws follow the first one's pass."""

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 6:
                trainer.save_checkpoint(tmp_path / "stopped.ckpt")

    def run(ckpt_path=None, extra=(), **settings):
        passes = DeploymentParityCallback(
            targets=["torch-bf16"], perturbations=["bgr", "gamma_09"], pass_samples=4, num_samples=4, localise=False
        )
        module = Perturbed(preprocessing_entries="measured")
        trainer = make_trainer(tmp_path, [passes, *extra], max_epochs=2, **settings)
        trainer.fit(module, ckpt_path=ckpt_path)
        return module, passes

    whole, passes = run()
    assert set(passes.sensitivity) == {"bgr", "gamma_09"}
    run(extra=[Save()], max_steps=6)
    saved = torch.load(tmp_path / "stopped.ckpt", weights_only=True)["preprocessing_sensitivity"]
    assert set(saved) == {"bgr", "gamma_09"}
    assert saved["bgr"] > 0
    resumed, _ = run(tmp_path / "stopped.ckpt")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


@pytest.mark.filterwarnings("ignore::lightning_robust.NoEffectWarning")
def test_an_empty_pass_draws_all_alike_and_says_so(tmp_path):
    with pytest.warns(UserWarning, match="measured no sensitivity .* so all are drawn alike"):
        counts, _ = _draws(tmp_path, {}, 4)
    assert all(abs(count - 256 / 3) < 31 for count in counts.values())


@pytest.mark.parametrize("passes", [[], [DeploymentParityCallback(targets=["torch-bf16"], perturbations="none")]])
def test_measured_without_passes_is_refused(tmp_path, passes):
    with pytest.raises(MisconfigurationException, match="a DeploymentParityCallback whose passes"):
        make_trainer(tmp_path, passes).fit(Perturbed(preprocessing_entries="measured"))


@pytest.mark.filterwarnings("ignore::lightning_robust.NoEffectWarning")
def test_weight_warms_up(tmp_path):
    """Over two epochs of four batches: an eighth of the weight at the first, all of it from the eighth on."""
    module = Perturbed(preprocessing_warmup_epochs=2.0)
    weights = []
    losses = module._preprocessing.losses

    def kept(step, state):
        found = losses(step, state)
        weights.append(found[-1].weight)
        return found

    module._terms[0] = type(module._terms[0])(module._terms[0].is_on, kept, module._preprocessing.prepare)
    make_trainer(tmp_path, max_epochs=3, limit_val_batches=0).fit(module)
    expected = [0.7 * min((number + 1) / 8, 1) for number in range(12)]
    assert weights == pytest.approx(expected)


def test_values_count_only_where_the_clean_prediction_knows_them():
    """A module whose `known` denies every point has no distance; the loss acts alone."""
    settings = {"preprocessing_entries": ["gamma"], "preprocessing_distance": "values"}

    class Knows(Points):
        def known(self, values, batch):
            return {"point": (values["point"] < self.border).all(-1)}

    x, y = torch.rand(8, 3, 16, 16), torch.rand(8, 1, 2) * 8 + 4
    for border, counts in ((-1.0, False), (1e6, True)):
        torch.manual_seed(0)
        module = Knows(**settings)
        module.border = border
        _, logged = step(module, (x, y))
        assert (logged["preprocessing/consistency"] > 0) == counts


def test_boxes_are_compared_as_plain_outputs_or_as_dense_values():
    """Boxes of `decode` have no place of their own: outputs stand for them, or what `dense` gives."""

    class Boxed(Points):
        def decode(self, outputs):
            edges = torch.cat([outputs, outputs + 1], -1)
            return {"boxes": Boxes(edges, edges[..., 0], edges[..., 0].long())}

    class Dense(Boxed):
        def dense(self, outputs):
            return {"x": outputs[..., 0], "nothing": torch.full_like(outputs, torch.nan)}

    class Plainly(Points):
        decode = moved = None

    x, y = torch.rand(8, 3, 16, 16), torch.rand(8, 1, 2) * 8 + 4
    found = {}
    for kind in (Boxed, Plainly, Dense):
        seed_everything(0)
        module = kind(preprocessing_entries=["gamma"], preprocessing_distance="values", preprocessing_unit=1.0)
        found[kind] = float(step(module, (x, y))[1]["preprocessing/consistency"])
    assert found[Boxed] == found[Plainly] > 0
    # the mean over both coordinates, of which x alone is in the first value; the second has no point
    assert 0 < found[Dense] < found[Boxed]


def test_no_catalogue_entry_is_without_a_draw():
    module = Perturbed(preprocessing_entries=[*CATALOGUE], preprocessing_groups=8)
    for seed in range(12):
        module._seed = seed
        loss, _ = step(module, batch())
        assert loss.isfinite()
