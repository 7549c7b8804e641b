"""A detector in a fit whose batches hold a dict for each picture, as torchvision's detectors take them."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_robust import DeploymentParityCallback
from lightning_robust.decoding import match_boxes, mean_average_precision, torchvision_boxes, yolo_boxes
from lightning_robust.deployment.graph.export import frozen_copy
from tests.boring import make_trainer

COUNT = 24


class Spot(pl.LightningModule):
    """One box around the light in each picture, by its moments; every other picture has about that box for a target."""

    def __init__(self):
        super().__init__()
        self.stretch = nn.Parameter(torch.ones(()))

    def forward(self, pictures):
        light = pictures.mean(1)
        light = light / light.sum((1, 2), keepdim=True)
        found = []
        for dim in (1, 2):
            share = light.sum(dim)
            places = torch.arange(share.shape[1], device=share.device).to(share) + 0.5
            mean = (share * places).sum(1)
            found += [(mean, self.stretch * (12 * (share * (places - mean[:, None]).square()).sum(1)).sqrt())]
        (x, width), (y, height) = found
        score = 0.3 + 4 * pictures.mean((1, 2, 3))
        return torch.stack([x, y, width, height, score], 1)[:, :, None]

    def decode(self, outputs):
        return {"boxes": yolo_boxes(outputs)}

    def known(self, values, batch):
        return {"boxes": match_boxes(values["boxes"], torchvision_boxes(batch[1]))[:, : values["boxes"].shape[1]] >= 0}

    def truth(self, batch):
        return {"boxes": torchvision_boxes(batch[1])}

    def training_step(self, batch, batch_idx):
        return (self(batch[0])[:, 2:4] - 9).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx), batch_size=len(batch[0]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-6)


def scenes():
    """Pictures with a bright and uneven box of 8 to 15 pixels, and for each a dict with one beside it, or with none."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for index in range(COUNT):
        picture = torch.zeros(3, 32, 48)
        left, top, width, height = (int(torch.randint(8, 16, (), generator=generator)) for _ in range(4))
        picture[:, top : top + height, left : left + width] = 0.5 + torch.rand(height, width, generator=generator)
        box = torch.tensor([[left + 1.5, top, left + 1.5 + width, top + height]])[: index % 2]
        made.append((picture, {"boxes": box, "labels": torch.zeros(len(box), dtype=torch.long), "name": str(index)}))
    return made


def collate(samples):
    pictures, targets = zip(*samples, strict=True)
    return torch.stack(pictures), list(targets)


def fit(folder, module, **settings):
    settings = {"perturbations": "none", "num_samples": COUNT, "pass_samples": COUNT, "localise": False} | settings
    callback = DeploymentParityCallback(["torch-bf16"], **settings)
    loader = DataLoader(scenes(), 10, collate_fn=collate)
    trainer = make_trainer(folder, [callback], max_epochs=1)
    trainer.fit(module, loader, loader)
    return callback.report, trainer.callback_metrics


def test_precision_is_that_of_the_labels_of_its_pictures(tmp_path):
    """Of 24 pictures in another order; bf16 rounds places to a sixteenth of a pixel, which crosses thresholds."""
    module = Spot()
    _, metrics = fit(tmp_path, module)
    # in the order of the pass, which says what comes first of equal scores
    order = sorted(range(COUNT), key=lambda place: f"{place:05b}"[::-1])
    pictures, targets = collate([scenes()[place] for place in order])
    truth, found = torchvision_boxes(targets), {}
    for name, dtype in (("exact", torch.float64), ("low", torch.bfloat16)):
        outputs = frozen_copy(module).to(dtype)(pictures.to(dtype))
        found[name] = mean_average_precision(yolo_boxes(outputs), truth)["map"]
    assert all(0.1 < each < 0.5 for each in found.values())  # every other box is none of the truth
    assert found["low"] != found["exact"]
    assert float(metrics["parity/torch-bf16/boxes_map"]) == pytest.approx(found["low"])
    worse = float(metrics["parity/torch-bf16/boxes_map_worse"])
    assert worse == pytest.approx(found["exact"] - found["low"])


def test_known_sees_the_dicts_of_its_pictures(tmp_path):
    """24 pictures of batches of 10: the boxes of every other one are known, and none of those without a target."""
    module = Spot()
    report, metrics = fit(tmp_path, module)
    pictures = torch.stack([picture for picture, _ in scenes()])
    exact = yolo_boxes(frozen_copy(module).double()(pictures.double())).centre_px
    error = (yolo_boxes(frozen_copy(module).bfloat16()(pictures.bfloat16()).float()).centre_px - exact).abs()[:, 0]
    assert report.unit == "boxes_centre_px_known_p99"
    assert 0 < error[1::2].max() != error[::2].max() > 0
    for name, part in (("known", error[1::2]), ("guessed", error[::2])):
        found = float(metrics[f"parity/torch-bf16/boxes_centre_px_{name}_max"])
        assert found == pytest.approx(float(part.max()), rel=1e-5)
