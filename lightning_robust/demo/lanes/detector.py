"""The lane detector as a LightningModule: loss, metrics, optimiser."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional

from lightning_robust.demo.lanes.anchors import rescale, row_anchors
from lightning_robust.demo.lanes.data import normalise
from lightning_robust.demo.lanes.metrics import Bend, Found, LateralError, Swing
from lightning_robust.demo.lanes.network import ColumnHead, LaneNetwork, LaneOutput, lane_loss
from lightning_robust.demo.optimisation import adamw, one_cycle_length
from lightning_robust.functional.picture_motion import move_columns, rescale_motion
from lightning_robust.mixins import PreprocessingMixin, RegMixupMixin, RotationSSLMixin, UATMixin
from lightning_robust.mixins.preprocessing.consistency import Distance


class LaneDetector(pl.LightningModule):
    """Finds the left and the right line of the lane the camera is in.

    The graph of `forward` ends in pixel columns of the original frame: a soft-argmax over cells. Trained with AdamW
    and a one-cycle schedule on batches ``(images, columns)`` of `LaneData`.

    Logs `train/loss`, `val/loss`, `val/lateral_px`, `val/bend_px`, `val/swing_px` and `val/found`.

    Args:
        frame_height: Height of the original frame in pixels.
        frame_width: Width of the original frame in pixels.
        height: Height of the network's input, a multiple of 16.
        width: Width of the network's input, a multiple of 16.
        channels: Channels at a quarter of the resolution.
        hidden: Width of the layer that sees the whole picture.
        learning_rate: Peak of the one-cycle schedule.
        weight_decay: Weight decay of AdamW, on weights of two or more dimensions.
        warmup: Share of the steps until the peak.
        sequence_length: Frames in a validation sequence, for `val/swing_px`.
    """

    keep_fp32 = ("head",)
    """What stays fp32 in fp16 and bf16 engines: in half precision the head alone would cost 0.6 px."""

    def __init__(
        self,
        frame_height: int = 540,
        frame_width: int = 960,
        height: int = 144,
        width: int = 256,
        channels: int = 32,
        hidden: int = 256,
        learning_rate: float = 4e-3,
        weight_decay: float = 0.02,
        warmup: float = 0.15,
        sequence_length: int = 8,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.frame_height, self.frame_width = frame_height, frame_width
        self.height, self.width, self.sequence_length = height, width, sequence_length
        self.learning_rate, self.weight_decay, self.warmup = learning_rate, weight_decay, warmup
        self.network = LaneNetwork(height, width, channels, hidden)
        self.head = ColumnHead(frame_width)
        self.example_input_array = torch.zeros(2, 3, height, width)
        self.lateral, self.found, self.bend, self.swing = LateralError(), Found(), Bend(), Swing()
        self._seen = 0

    @property
    def rows(self) -> Tensor:
        """Row anchors in pixels of the original frame, float64, (R,)."""
        return rescale(row_anchors(self.height), self.height, self.frame_height)

    def preprocess(self, frames: Tensor) -> Tensor:
        """A camera's frames as `forward` takes them: resized with antialiasing, normalised, channels first.

        Args:
            frames: RGB, uint8, (N, H, W, 3), any height and width.

        Returns:
            (N, 3, height, width), float32.
        """
        images = functional.interpolate(
            frames.permute(0, 3, 1, 2).float(),
            (self.height, self.width),
            mode="bilinear",
            antialias=True,
            align_corners=False,
        )
        return normalise(images)

    def forward(self, images: Tensor) -> LaneOutput:
        """Pixel columns in the original frame and presence, each (N, 2, R), of normalised pictures (N, 3, H, W)."""
        output: LaneOutput = self.head(self.logits(images))
        return output

    def logits(self, images: Tensor) -> Tensor:
        """Scores of every cell and of "absent", (N, 2, R, W + 1)."""
        logits: Tensor = self.network(images)
        return logits

    def features(self, images: Tensor) -> Tensor:
        """The hidden vector that sees the whole picture, (N, hidden)."""
        return self.network.features(images)

    def loss(self, logits: Tensor, columns: Tensor) -> Tensor:
        """The training loss of logits (N, 2, R, W + 1) against true columns (N, 2, R), a scalar."""
        return lane_loss(logits, columns, self.frame_width)

    def decode(self, outputs: LaneOutput | tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """The lines in the task's own units.

        Args:
            outputs: From `forward`, or the same two tensors from an engine.

        Returns:
            `lateral_px`, the columns in pixels with NaN where there is no line; `present`, bool; each (N, 2, R).
        """
        columns, presence = outputs
        present = presence >= 0.5
        return {"lateral_px": columns.masked_fill(~present, torch.nan), "present": present}

    def known(self, values: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """The points that the model knows: no more than a 96th of the frame's width (10 px of 960) beside the truth.

        Args:
            values: From `decode`.
            batch: The pictures and their true columns.

        Returns:
            `lateral_px`, bool, (N, 2, R).
        """
        return {"lateral_px": (values["lateral_px"] - batch[1]).abs() < self.frame_width / 96}

    def truth(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """The true lines of a batch, as `decode` gives those that were found."""
        return {"lateral_px": batch[1], "present": ~batch[1].isnan()}

    def moved(self, values: dict[str, Tensor], matrix: Tensor) -> dict[str, Tensor]:
        """The lines of a picture whose content was moved.

        Args:
            values: From `decode`.
            matrix: The motion in pixels of the network's input, (3, 3).
        """
        return {"lateral_px": self.move_targets(values["lateral_px"], matrix)}

    def move_targets(self, columns: Tensor, matrix: Tensor) -> Tensor:
        """True columns (N, 2, R) of a picture whose content was moved; NaN where its lines leave the rows.

        Args:
            columns: In pixels of the original frame.
            matrix: The motion in pixels of the network's input, (3, 3).
        """
        of_input, of_frame = (self.height, self.width), (self.frame_height, self.frame_width)
        return move_columns(columns, self.rows, rescale_motion(matrix, of_input, of_frame))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        images, columns = batch
        loss = self.loss(self.logits(images), columns)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Counts frames from zero, to tell sequences apart."""
        self._seen = 0

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and metrics of a batch."""
        images, columns = batch
        logits = self.logits(images)
        lines = self.decode(self.head(logits))["lateral_px"]
        sequence = (torch.arange(len(images)) + self._seen) // self.sequence_length
        self._seen += len(images)
        self.lateral.update(lines, columns)
        self.found.update(lines, columns)
        self.bend.update(lines, columns)
        self.swing.update(lines, columns, sequence)
        self.log("val/loss", self.loss(logits, columns), sync_dist=True, batch_size=len(images))
        metrics = {"lateral_px": self.lateral, "bend_px": self.bend, "swing_px": self.swing, "found": self.found}
        self.log_dict({f"val/{name}": metric for name, metric in metrics.items()}, batch_size=len(images))

    def predict_step(self, batch: Any, batch_idx: int) -> LaneOutput:
        """Columns and presence of a batch, or of pictures alone."""
        return self.forward(batch[0] if isinstance(batch, (tuple, list)) else batch)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW without decay on biases and norms; one cycle over the estimated steps of the run.

        Raises:
            MisconfigurationException: If the length of the run is not known beforehand.
        """
        optimizer = adamw(self, self.learning_rate, self.weight_decay)
        steps = one_cycle_length(self.trainer, self.warmup)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.learning_rate, total_steps=steps, pct_start=self.warmup, final_div_factor=1e3
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class RobustLaneDetector(PreprocessingMixin, RegMixupMixin, RotationSSLMixin, UATMixin, LaneDetector):
    """The lane detector with every mixin, each off until its weight is set.

    Arguments are those of the mixins and of the detector, with defaults for those that depend on the network.

    Args:
        rotation_features: See RotationSSLMixin.
        uat_class_dim: See UATMixin; the cells are the last dimension.
        preprocessing_class_dim: See PreprocessingMixin.
        preprocessing_distance: See PreprocessingMixin; pixels tell more than the divergence over cells.
        preprocessing_unit: See PreprocessingMixin; pixels of the original frame.
        **kwargs: All others.
    """

    def __init__(
        self,
        *,
        rotation_features: str = "network.coarse",
        uat_class_dim: int = -1,
        preprocessing_class_dim: int = -1,
        preprocessing_distance: Distance = "values",
        preprocessing_unit: float | None = 7.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            rotation_features=rotation_features,
            uat_class_dim=uat_class_dim,
            preprocessing_class_dim=preprocessing_class_dim,
            preprocessing_distance=preprocessing_distance,
            preprocessing_unit=preprocessing_unit,
            **kwargs,
        )
