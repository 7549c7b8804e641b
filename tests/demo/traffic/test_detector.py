"""The LightningModule and its data: what it logs, learns, decodes, and what moves with a picture."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch

from lightning_robust.decoding import Masks, mean_iou
from lightning_robust.demo.traffic import RobustTrafficDetector, TrafficData, TrafficDetector
from lightning_robust.demo.traffic.data import flip_boxes
from lightning_robust.demo.traffic.detector import one_cycle, true_boxes
from lightning_robust.demo.traffic.metrics import AreaOverlap
from lightning_robust.demo.traffic.network import TrafficOutput

SIZE = {"height": 64, "width": 96}


@pytest.fixture(scope="module")
def data():
    module = TrafficData(num_train=16, num_val=8, batch_size=8, render_workers=0, **SIZE)
    module.setup("fit")
    return module


def trainer(**settings):
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **settings,
    )  # fmt: skip


def test_fit_logs_and_saves(data, tmp_path):
    pl.seed_everything(0)
    fitting = trainer(max_epochs=1)
    model = TrafficDetector(channels=8, **SIZE)
    fitting.fit(model, datamodule=data)
    assert {"train/loss", "val/loss", "val/map", "val/map50", "val/miou"} <= set(fitting.callback_metrics)
    assert 0 <= fitting.callback_metrics["val/map"] <= fitting.callback_metrics["val/map50"] <= 1
    fitting.save_checkpoint(tmp_path / "traffic.ckpt")
    loaded = TrafficDetector.load_from_checkpoint(tmp_path / "traffic.ckpt", weights_only=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def test_a_perfect_output_has_precision_one(data):
    """Boxes and mask of the truth, as a network would give them, through validation."""
    model = TrafficDetector(channels=8, **SIZE)
    _, targets = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    truth = true_boxes(targets)
    sides = truth.size_px.nan_to_num(1.0)
    probabilities = torch.nn.functional.one_hot(truth.labels.clamp(min=0), 5) * (truth.labels >= 0)[..., None]
    detections = torch.cat([truth.centre_px.nan_to_num(0.0), sides, probabilities.float()], -1).transpose(1, 2)
    drivable = (targets["drivable"][:, None].float() - 0.5) * 8
    found = model.decode(TrafficOutput(detections, drivable))
    known = model.truth((None, targets))
    assert {name: value.score(known[name]) for name, value in found.items()} == {
        "boxes": {"map": 1.0},
        "mask": {"miou": 1.0},
    }
    model.map.update(found["boxes"], truth)
    assert float(model.map.compute()) == 1.0
    assert mean_iou(found["mask"], Masks(targets["drivable"].long(), 2)) == 1.0
    known = model.known(found, (None, targets))["boxes"]
    assert torch.equal(known, found["boxes"].present)


def test_overlap_over_batches_is_that_of_all_pictures():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randint(2, (6, 5, 7), generator=generator) for _ in range(2))
    metric = AreaOverlap(2)
    for rows in (slice(0, 2), slice(2, 6)):
        metric.update(Masks(ours[rows], 2), Masks(theirs[rows], 2))
    assert float(metric.compute()) == pytest.approx(mean_iou(Masks(ours, 2), Masks(theirs, 2)))


def test_a_batch_can_be_learnt(data):
    torch.manual_seed(0)
    model = TrafficDetector(channels=8, **SIZE)
    images, targets = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(15):
        loss = model.loss(model.logits(images), targets)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]


def test_flips_turn_picture_boxes_and_mask(data):
    plain, keys = data._train, torch.arange(16)
    images, targets = plain.__getitems__(keys.tolist())
    turned = (images != plain.traffic.images).flatten(1).any(1)
    assert 2 < turned.sum() < 14
    assert torch.equal(images[turned].flip(3), plain.traffic.images[turned])
    assert torch.equal(targets["drivable"][turned].flip(2), plain.traffic.drivable[turned])
    back = flip_boxes(targets["boxes"][turned], 96)
    torch.testing.assert_close(back, plain.traffic.boxes[turned], equal_nan=True)
    assert torch.equal(targets["labels"], plain.traffic.labels)


def test_moved_targets_are_those_of_the_moved_drawing(data):
    """A shift by whole pixels: boxes as of polygons that were drawn further right and up, the mask as its own crop."""
    from lightning_robust.demo.lanes.sampling import sample_scene
    from lightning_robust.demo.traffic.drawing import project_objects
    from lightning_robust.demo.traffic.objects import sample_objects
    from lightning_robust.demo.traffic.rendering import keep_visible

    model, size, (right, down) = TrafficDetector(channels=8, **SIZE), (64, 96), (5, -3)
    numbers = torch.arange(4)
    scene = sample_scene(numbers, 3, torch.zeros_like(numbers), size)
    matrix = torch.tensor([[1.0, 0, right], [0, 1, down], [0, 0, 1]])
    checked = 0
    for drawn in project_objects(sample_objects(numbers, 3, scene), scene, size):
        for _, _, box in keep_visible(drawn, torch.zeros(size, dtype=torch.bool)):
            if box[0] < 1 or box[1] < 4 or box[2] > 90 or box[3] > 63:
                continue  # what the border cuts shows another part when it moves
            targets = {
                "boxes": torch.tensor([[box]]).float(), "labels": torch.zeros(1, 1, dtype=torch.long),
                "drivable": torch.zeros(1, *size, dtype=torch.uint8),
            }  # fmt: skip
            expected = [box[0] + right, box[1] + down, box[2] + right, box[3] + down]
            shifted = [
                each._replace(polygons=tuple(p + torch.tensor([float(right), float(down)]) for p in each.polygons))
                for each in drawn
            ]
            again = [found for _, _, found in keep_visible(shifted, torch.zeros(size, dtype=torch.bool))]
            assert model.move_targets(targets, matrix)["boxes"][0, 0].tolist() == expected
            assert expected in again
            checked += 1
    assert checked >= 2
    _, targets = next(iter(data.val_dataloader()))
    moved = model.move_targets(targets, matrix)["drivable"]
    assert torch.equal(moved[:, :-3, 5:], targets["drivable"][:, 3:, :-5])


def test_what_leaves_the_picture_has_no_target():
    """Of a box of 10 pixels 4 and 2 stay: three tenths are asked for."""
    model = TrafficDetector(channels=8, **SIZE)
    targets = {
        "boxes": torch.tensor([[[0.0, 5, 10, 15]]]),
        "labels": torch.tensor([[3]]),
        "drivable": torch.zeros(1, 64, 96, dtype=torch.uint8),
    }
    for left, label in ((6, 3), (8, -1)):
        moved = model.move_targets(targets, torch.tensor([[1.0, 0, -left], [0, 1, 0], [0, 0, 1]]))
        assert moved["labels"].tolist() == [[label]]
        assert bool(moved["boxes"].isnan().all()) == (label < 0)


def test_mixtures_of_boxes_are_refused(data):
    model = RobustTrafficDetector(channels=8, regmixup_weight=1, **SIZE)
    with pytest.raises(TypeError, match="lists of boxes have no mixture"):
        trainer(max_steps=1, limit_val_batches=0, num_sanity_val_steps=0).fit(model, datamodule=data)


def test_preprocessing_mixin_trains_on_moved_boxes(data):
    """Its loss and the consistency of both outputs are finite, and gradients reach the network."""
    pl.seed_everything(0)
    model = RobustTrafficDetector(
        channels=8, preprocessing_weight=0.1, preprocessing_entries=["shift_half_pixel", "jpeg_90"], **SIZE
    )
    before = model.network.stem[0].weight.detach().clone()
    fitting = trainer(max_steps=2, limit_val_batches=0, num_sanity_val_steps=0)
    fitting.fit(model, datamodule=data)
    assert fitting.callback_metrics["preprocessing/loss"].isfinite()
    assert fitting.callback_metrics["preprocessing/consistency"] >= 0
    assert not torch.equal(before, model.network.stem[0].weight)


def test_dense_values_are_those_of_cells_with_an_object():
    model = TrafficDetector(channels=8, **SIZE)
    detections = torch.arange(18.0).reshape(1, 9, 2) / 20
    detections[:, 4:, 0] = 0.2
    found = model.dense(TrafficOutput(detections, torch.zeros(1, 1, 2, 2)))
    assert found["boxes"][0, :, 0].isnan().all()
    assert torch.equal(found["boxes"][0, :, 1], detections[0, :4, 1])
    assert torch.equal(found["scores"], detections[:, 4:])
    assert (found["mask"] == 0.5).all()


def test_the_rate_is_that_of_one_cycle_and_stays():
    """Torch's OneCycleLR over 21 steps, whose warm-up ends at step 0.15 * 21 - 1, and then its last rate."""
    (weight,) = torch.nn.Linear(1, 1, bias=False).parameters()
    optimizer = torch.optim.SGD([weight], 1.0)
    expected = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=21, pct_start=0.15, final_div_factor=1e3, cycle_momentum=False
    )
    for step in range(21):
        assert one_cycle(step / 20, 2.15 / 20) == pytest.approx(expected.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        if step < 20:
            expected.step()
    model = TrafficDetector(channels=8, schedule_epochs=2, **SIZE)
    model.trainer = SimpleNamespace(estimated_stepping_batches=40, max_epochs=4)
    schedule = model.configure_optimizers()["lr_scheduler"]["scheduler"].lr_lambdas[0]
    assert schedule(3) == 1.0
    assert schedule(20) == schedule(39) == pytest.approx(4e-5)


def test_rejects_bad_sizes():
    with pytest.raises(ValueError, match="multiples of 16"):
        TrafficDetector(height=100)
    with pytest.raises(ValueError, match="`num_val` to be positive, but got 0"):
        TrafficData(num_val=0)
