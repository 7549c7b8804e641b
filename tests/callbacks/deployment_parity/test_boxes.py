"""A detector in a fit whose batches hold a dict for each picture, as torchvision's detectors take them."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_robust import DeploymentParityCallback
from lightning_robust.decoding import match_boxes, torchvision_boxes, yolo_boxes
from lightning_robust.deployment.graph.export import frozen_copy
from tests.boring import make_trainer

COUNT = 24


class Spot(pl.LightningModule):
    """One box around the light in each picture, by its moments; every other picture has that box for a target."""

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
        return torch.stack([x, y, width, height, torch.full_like(x, 0.9)], 1)[:, :, None]

    def decode(self, outputs):
        return {"boxes": yolo_boxes(outputs)}

    def known(self, values, batch):
        return {"boxes": match_boxes(values["boxes"], torchvision_boxes(batch[1]))[:, : values["boxes"].shape[1]] >= 0}

    def training_step(self, batch, batch_idx):
        return (self(batch[0])[:, 2:4] - 9).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-6)


def scenes():
    """Pictures with a bright box of 8 to 15 pixels, and for each a dict with it, or with no box at all."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for index in range(COUNT):
        picture = torch.zeros(3, 32, 48)
        left, top, width, height = (int(torch.randint(8, 16, (), generator=generator)) for _ in range(4))
        picture[:, top : top + height, left : left + width] = 1.0
        box = torch.tensor([[left, top, left + width, top + height]])[: index % 2].float()
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
