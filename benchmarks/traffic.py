"""Averages, soups, attacks and preprocessing on detection and segmentation: rendered traffic, no download.

    python benchmarks/traffic.py [--seeds 0 1 2] [--out runs/traffic] [--jobs 2]

Every row is a command of ``lightning-robust`` over 2,000 rendered scenes, twelve epochs unless its name
says more; finished ones are kept in ``results.json`` and not run again. SWA as Zhang et al. 2020 (arXiv:2012.12645)
have it for object detection: after twelve epochs with the usual schedule twelve more, in each of which the rate falls
from a quarter of its peak to a hundredth of that, and the mean of the weights at the end of these; 24 epochs with one
schedule are what it has to be compared with. Theirs falls along half a cosine, SWACallback's along a line. In percent:
mean average precision over COCO's thresholds and at 0.5, mean intersection over union of the drivable area, on 256
held-out scenes; then precision under PGD with 10 steps at eps 2/255 (128 of them), and under preprocessing that
differs, the median and the worst of ten entries, one a family but the crop. Rendering is not in what training took.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import torch
from rows import COST, MIXED, Columns, measured_run, options, quiet_trainer, run_rows
from torch import Tensor

from lightning_robust import AdversarialCallback
from lightning_robust.cli import RobustCLI
from lightning_robust.decoding import Boxes, mean_average_precision, yolo_boxes
from lightning_robust.demo.lanes.data import MEAN, STD
from lightning_robust.demo.traffic.detector import TrafficDetector, true_boxes
from lightning_robust.deployment.pixels.catalogue import perturbations
from lightning_robust.deployment.pixels.operations import quantise
from lightning_robust.functional.pixels import PixelSpace

CONFIG = "configs/traffic.yaml"
FGSM = ["--adversarial.method=fgsm_rs", "--adversarial.eps=2/255", "--adversarial.val_eps=[]"]
EMA = ["--swa.kind=ema", "--swa.start=0", "--swa.every=1", "--swa.half_life=0.25 epochs", "--swa.bn_samples=1000"]
LONGER = ["--trainer.max_epochs=24", "--model.schedule_epochs=12"]
SWA = [*LONGER, "--swa.start=12", "--swa.lr=[1e-3,1e-5]", "--swa.bn_samples=1000"]
SOUP = ["ingredients=epochs", "monitor=val/map", "mode=max", "bn_samples=1000"]
ROWS: dict[str, list[str]] = {
    "plain": [],
    "plain, 24 epochs": ["--trainer.max_epochs=24"],
    "SWA, 12 and 12 epochs": SWA,
    "EMA": EMA,
    "greedy soup of epochs": [f"--greedy_soup.{setting}" for setting in SOUP],
    "FGSM-RS": FGSM,
    "preprocessing": [
        "--model.preprocessing_weight=1",
        "--model.preprocessing_entries=all",
        "--model.preprocessing_warmup_epochs=8.4",
    ],
}
ENTRIES = ("resize_nearest", "shift_one_pixel", "color_matrix", "color_range", "jpeg_75", "levels_6_bit")
ENTRIES += ("bgr", "gain_080", "gamma_07", "noise_6")
COLUMNS: Columns = {
    "mAP": ("val/map", 100, ".1f"),
    "at 0.5": ("val/map50", 100, ".1f"),
    "mIoU": ("val/miou", 100, ".1f"),
    "PGD-10": ("val/map_pgd10", 100, ".1f"),
    "preprocessing, median": ("val/map_median", 100, ".1f"),
    "worst": ("val/map_worst", 100, ".1f"),
    **COST,
}


@torch.no_grad()
def precision_under(model: TrafficDetector, batches: list[tuple[Tensor, dict[str, Tensor]]], name: str) -> float:
    """The mean average precision on scenes of which the deployed side prepares each picture in another way."""
    (entry,) = perturbations([name])
    space, found, known = PixelSpace(MEAN, STD), [], []
    for images, targets in batches:
        pixels = entry.deployed(quantise(space.to_pixels(images)))
        found.append(yolo_boxes(model(space.from_pixels(pixels)).detections, 0.02, 0.6))
        known.append(true_boxes(model.move_targets(targets, entry.matrix(*images.shape[2:]).float())))
    return mean_average_precision(_together(found), _together(known))["map"]


def _together(batches: list[Boxes]) -> Boxes:
    """The boxes of all batches, in as many slots as the fullest picture needs."""
    pictures = [each for boxes in batches for each in zip(boxes.xyxy, boxes.scores, boxes.labels, strict=True)]
    there = [
        (xyxy[kept], scores[kept], labels[kept]) for xyxy, scores, labels in pictures for kept in [~scores.isnan()]
    ]
    return Boxes.stack(there)


def measured(cli: RobustCLI) -> dict[str, float]:
    """All columns but the cost, of the weights that training returned."""
    attack = AdversarialCallback(eps="2/255", val_eps=["2/255"], val_steps=10, val_batches=4)
    trainer = quiet_trainer([attack])
    trainer.validate(cli.model, cli.datamodule, verbose=False)
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    (attacked,) = (value for tag, value in found.items() if tag.startswith("adversarial/val_map@"))
    data = cli.datamodule
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()]
    under = [precision_under(cli.model.eval(), batches, name) for name in ENTRIES]
    return {
        **{tag: found[tag] for tag in ("val/map", "val/map50", "val/miou")},
        "val/map_pgd10": attacked,
        "val/map_median": statistics.median(under),
        "val/map_worst": min(under),
    }


def trained(name: str, seed: int, folder: Path) -> dict[str, float]:
    """One row: train by its command, then measure."""
    arguments = [f"--trainer.precision={MIXED}", *ROWS[name]]
    return measured_run(CONFIG, seed, folder, arguments, measured, idle="soup" in name)


def main() -> None:
    """Run what is missing and print the table."""
    given = options(__doc__, "runs/traffic", ROWS)
    print("\n" + run_rows(given, trained).table(given.only, given.seeds, COLUMNS))


if __name__ == "__main__":
    main()
