"""The traffic detector as a LightningModule: loss, metrics, optimiser."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from lightning_robust.decoding import Boxes, Masks, segmentation_masks, yolo_boxes
from lightning_robust.decoding.overlap import match_boxes
from lightning_robust.demo.optimisation import adamw, known_steps
from lightning_robust.demo.traffic.data import TrafficBatch
from lightning_robust.demo.traffic.metrics import AreaOverlap, BoxPrecision
from lightning_robust.demo.traffic.network import DetectionHead, TrafficLogits, TrafficNetwork, TrafficOutput
from lightning_robust.demo.traffic.objects import CLASSES
from lightning_robust.demo.traffic.targets import traffic_loss
from lightning_robust.functional.picture_motion import move_masks
from lightning_robust.mixins import PreprocessingMixin, RegMixupMixin, RotationSSLMixin

_OVERLAP = 0.6
"""The most that two boxes of one class may overlap."""
_ALL = 0.02
"""The score from which a box counts in the mean average precision."""
_LEFT_OF = 0.3
"""The share of a box that has to stay in the picture when it moves."""


class TrafficDetector(pl.LightningModule):
    """Finds vehicles, signs and the drivable area.

    The graph of `forward` ends in boxes in pixels and probabilities, one for each cell of a grid, and in the logits of
    a mask. Trained with AdamW and a one-cycle schedule on batches ``(images, targets)`` of `TrafficData`.

    Logs `train/loss`, `val/loss`, `val/map`, `val/map50` and `val/miou`.

    Args:
        height: Height of the network's input, a multiple of 16.
        width: Width of the network's input, a multiple of 16.
        channels: Channels at a quarter of the resolution.
        learning_rate: Peak of the one-cycle schedule.
        weight_decay: Weight decay of AdamW, on weights of two or more dimensions.
        warmup: Share of the steps until the peak.
        threshold: The probability from which `decode` takes a box.
        schedule_epochs: Epochs after which the rate has come to its end and stays, as SWA's further epochs need it; all
            epochs of the run if None.
    """

    keep_fp32 = ("head",)
    """What stays fp32 in fp16 and bf16 engines: pixels up to 256 have steps of an eighth in half precision."""

    def __init__(
        self,
        height: int = 144,
        width: int = 256,
        channels: int = 32,
        learning_rate: float = 4e-3,
        weight_decay: float = 0.02,
        warmup: float = 0.15,
        threshold: float = 0.3,
        schedule_epochs: int | None = None,
    ) -> None:
        super().__init__()
        if height % 16 or width % 16 or height < 16 or width < 16:
            raise ValueError(f"Expected multiples of 16, but got height={height} and width={width}. Round them up.")
        self.save_hyperparameters()
        self.height, self.width, self.threshold = height, width, threshold
        self.learning_rate, self.weight_decay, self.warmup = learning_rate, weight_decay, warmup
        self.schedule_epochs = schedule_epochs
        self.network, self.head = TrafficNetwork(len(CLASSES), channels), DetectionHead()
        self.example_input_array = torch.zeros(2, 3, height, width)
        self.map, self.map50, self.miou = BoxPrecision(), BoxPrecision((0.5,)), AreaOverlap(2)

    def forward(self, images: Tensor) -> TrafficOutput:
        """Detections (N, 4 + C, A) and the mask's logits (N, 1, H, W) of normalised pictures (N, 3, H, W)."""
        return self._output(self.logits(images))

    def logits(self, images: Tensor) -> TrafficLogits:
        """What the loss compares."""
        logits: TrafficLogits = self.network(images)
        return logits

    def loss(self, logits: TrafficLogits, targets: dict[str, Tensor]) -> Tensor:
        """The training loss of logits against the targets of a batch, a scalar."""
        return traffic_loss(logits, targets["boxes"], targets["labels"], targets["drivable"])

    def decode(self, outputs: TrafficOutput | tuple[Tensor, Tensor]) -> dict[str, Boxes | Masks]:
        """The boxes and the drivable area, 1 in a mask of classes.

        Args:
            outputs: From `forward`, or the same two tensors from an engine.
        """
        return self._decode(outputs, self.threshold)

    def dense(self, outputs: TrafficOutput) -> dict[str, Tensor]:
        """What can be compared place by place, for PreprocessingMixin.

        Args:
            outputs: From `forward`.

        Returns:
            `boxes` (N, 4, A), NaN in cells without an object; probabilities: `scores` (N, C, A), `mask` (N, 1, H, W).
        """
        boxes, scores = outputs.detections[:, :4], outputs.detections[:, 4:]
        absent = scores.amax(1, keepdim=True) < self.threshold
        return {"boxes": boxes.masked_fill(absent, torch.nan), "scores": scores, "mask": outputs.drivable.sigmoid()}

    def known(self, values: dict[str, Boxes | Masks], batch: TrafficBatch) -> dict[str, Tensor]:
        """The boxes that the model knows: those that overlap a true one by at least half.

        Args:
            values: From `decode`.
            batch: The pictures and their targets.

        Returns:
            `boxes`, bool, (N, K).
        """
        boxes = values["boxes"]
        if not isinstance(boxes, Boxes):
            raise TypeError(f"Expected Boxes from `decode`, but got {type(boxes).__name__}.")
        return {"boxes": match_boxes(boxes, true_boxes(batch[1]))[:, : boxes.shape[1]] >= 0}

    def truth(self, batch: TrafficBatch) -> dict[str, Boxes | Masks]:
        """The true boxes and drivable area of a batch, as `decode` gives those that were found."""
        return {"boxes": true_boxes(batch[1]), "mask": Masks(batch[1]["drivable"].long(), 2)}

    def moved(self, values: dict[str, Any], matrix: Tensor) -> dict[str, Any]:
        """Boxes and mask of a picture whose content was moved.

        Args:
            values: From `decode`.
            matrix: The motion in pixels of the network's input, (3, 3).
        """
        return {"boxes": values["boxes"].moved(matrix, (self.height, self.width)), "mask": values["mask"].moved(matrix)}

    def move_targets(self, targets: dict[str, Tensor], matrix: Tensor) -> dict[str, Tensor]:
        """Targets of pictures whose content was moved: boxes end at the border, those of which little is left are none.

        Args:
            targets: Of a batch.
            matrix: The motion in pixels of the network's input, (3, 3).
        """
        truth = true_boxes(targets)
        whole, clipped = truth.moved(matrix), truth.moved(matrix, (self.height, self.width))
        share = clipped.size_px.clamp(min=0).prod(-1) / whole.size_px.prod(-1)
        stays = (share >= _LEFT_OF) & (targets["labels"] >= 0)
        return {
            "boxes": clipped.xyxy.masked_fill(~stays[..., None], torch.nan),
            "labels": targets["labels"].masked_fill(~stays, -1),
            "drivable": move_masks(targets["drivable"], matrix),
        }

    def training_step(self, batch: TrafficBatch, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        images, targets = batch
        loss = self.loss(self.logits(images), targets)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: TrafficBatch, batch_idx: int) -> None:
        """Loss and metrics of a batch."""
        images, targets = batch
        logits = self.logits(images)
        found = self._decode(self._output(logits), _ALL)
        truth = true_boxes(targets)
        self.map.update(found["boxes"], truth)
        self.map50.update(found["boxes"], truth)
        self.miou.update(found["mask"], Masks(targets["drivable"].long(), 2))
        self.log("val/loss", self.loss(logits, targets), sync_dist=True, batch_size=len(images))
        metrics = {"val/map": self.map, "val/map50": self.map50, "val/miou": self.miou}
        self.log_dict(metrics, batch_size=len(images))

    def predict_step(self, batch: Any, batch_idx: int) -> TrafficOutput:
        """Detections and mask of a batch, or of pictures alone."""
        return self.forward(batch[0] if isinstance(batch, (tuple, list)) else batch)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW without decay on biases and norms; one cycle over the estimated steps of the run.

        Raises:
            MisconfigurationException: If the length of the run is not known beforehand.
        """
        optimizer = adamw(self, self.learning_rate, self.weight_decay)
        steps: float = known_steps(self.trainer)
        if self.schedule_epochs is not None and self.trainer.max_epochs:
            steps *= self.schedule_epochs / self.trainer.max_epochs
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: one_cycle(step / steps, self.warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _output(self, logits: TrafficLogits) -> TrafficOutput:
        return TrafficOutput(self.head(logits.heat, logits.sides), logits.drivable)

    def _decode(self, outputs: TrafficOutput | tuple[Tensor, Tensor], threshold: float) -> dict[str, Any]:
        detections, drivable = outputs
        return {"boxes": yolo_boxes(detections, threshold, _OVERLAP), "mask": segmentation_masks(drivable)}


def one_cycle(share: float, warmup: float) -> float:
    """The rate relative to its peak: half a cosine up from a 25th, half a cosine down to a 25,000th, where it stays.

    Args:
        share: Of the cycle that is over.
        warmup: Share at which the peak is.

    Example:
        >>> [round(one_cycle(share, 0.2), 3) for share in (0, 0.2, 0.6, 1, 2)]
        [0.04, 1.0, 0.5, 0.0, 0.0]
    """
    rises = share < warmup
    start, end = (0.04, 1.0) if rises else (1.0, 4e-5)
    way = share / warmup if rises else min((share - warmup) / (1 - warmup), 1.0)
    return end + (start - end) * (1 + math.cos(math.pi * way)) / 2


def true_boxes(targets: dict[str, Tensor]) -> Boxes:
    """The boxes of a batch's targets, with a score of 1."""
    labels = targets["labels"]
    scores = torch.ones_like(targets["boxes"][..., 0]).masked_fill(labels < 0, torch.nan)
    return Boxes(targets["boxes"], scores, labels)


class RobustTrafficDetector(PreprocessingMixin, RegMixupMixin, RotationSSLMixin, TrafficDetector):
    """The traffic detector with the mixins that fit boxes, each off until its weight is set.

    RegMixupMixin refuses targets of boxes, which have no mixture, at the first batch. UATMixin, which compares class
    probabilities of whole pictures, is not among them. Arguments are those of the mixins and of the detector.

    Args:
        rotation_features: See RotationSSLMixin.
        **kwargs: All others.
    """

    def __init__(self, *, rotation_features: str = "network.coarse", **kwargs: Any) -> None:
        super().__init__(rotation_features=rotation_features, **kwargs)
