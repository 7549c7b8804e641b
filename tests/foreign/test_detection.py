"""A detector of transformers, with boxes in pixels: parity, sensitivity with moved boxes, training with the mixin."""

import lightning.pytorch as pl
import pytest
import torch

from lightning_robust import PreprocessingMixin, measure_parity
from lightning_robust.decoding import detr_boxes
from lightning_robust.deployment.engines import Built, Runtime, Subject, available
from lightning_robust.deployment.parity.result import BEYOND
from lightning_robust.deployment.pixels.catalogue import perturbations
from lightning_robust.functional import PixelSpace

from .guest import loaders
from .modules_transformers import Yolos, boxed, collate_boxes, transformers

pytestmark = pytest.mark.foreign
SIZE, QUERIES = 32, 5


class Detector(Yolos):
    """As in HuggingFace's notebook, with the two methods that give its boxes a unit."""

    def __init__(self):
        super().__init__()
        config = self.model.config
        config.update({"image_size": [SIZE, SIZE], "num_detection_tokens": QUERIES, "initializer_range": 0.3})
        torch.manual_seed(0)
        self.model = transformers.YolosForObjectDetection(config)
        torch.nn.init.normal_(self.model.vit.embeddings.detection_tokens)  # zeros would give one box five times

    def decode(self, outputs):
        return {"boxes": detr_boxes(outputs, SIZE, SIZE, threshold=0.0)}

    def moved(self, values, matrix):
        return {"boxes": values["boxes"].moved(matrix)}


class RobustDetector(PreprocessingMixin, Detector):
    """The same, held to its own boxes where the picture is perturbed."""


class Shuffled(Runtime):
    """PyTorch with its queries in another order and its boxes two pixels to the right."""

    def build(self, subject):
        @torch.no_grad()
        def run(args):
            found = subject.module(*args)
            order = [3, 0, 4, 2, 1]
            boxes = found["pred_boxes"][:, order] + torch.tensor([2 / SIZE, 0, 0, 0])
            return [{"logits": found["logits"][:, order], "pred_boxes": boxes}.get(name, found[name]) for name in found]

        return Built(run)


def test_parity_and_sensitivity_in_pixels():
    module = Detector().eval()
    pictures = torch.rand(6, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    report = measure_parity(
        Subject(module, (pictures,)),
        [*available(["onnxruntime-fp32", "emulated-fp16"]), Shuffled("shuffled", "fp32")],
        decode=module.decode,
        moved=module.moved,
        perturbations=perturbations(["shift_half_pixel"]),
        pixels=PixelSpace(),
    )
    assert report.notes == ()
    assert report.unit == "boxes_centre_px_p99"
    exported, half, shuffled = (report.targets[name].metrics for name in report.targets)
    assert exported["boxes_centre_px_max"] < 1e-3 < half["boxes_centre_px_max"] < 1
    assert exported["boxes_lost"] == exported["boxes_new"] == half["boxes_lost"] == 0
    assert shuffled["boxes_centre_px_p99"] == pytest.approx(2, rel=0.1)
    assert shuffled["boxes_centre_px_bias"] == pytest.approx(1, rel=0.1)  # of x and y
    assert shuffled["boxes_score_max"] < 1e-3
    assert {link.name for link in report.chain} >= {"export", "fp16", "preprocessing"}
    shift = report.sensitivity["shift_half_pixel"]
    assert shift[BEYOND] > 0
    assert shift[BEYOND] != shift["boxes_centre_px_mean"]


def test_training_with_the_mixin():
    """The mixin compares logits and boxes of each query; a distance of nothing would be 0."""
    train, val = loaders(boxed, collate_fn=collate_boxes)
    module = RobustDetector()
    module.preprocessing_weight, module.preprocessing_share, module.preprocessing_entries = 1.0, 0.0, "gamma"
    trainer = pl.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(module, train, val)
    assert 0 < trainer.callback_metrics["preprocessing/consistency"] < torch.inf
