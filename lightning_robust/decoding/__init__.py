"""What a network's outputs say, in the task's own units: boxes, masks of classes, key points.

For the method ``decode`` of a module: each helper is one call, and what it returns can be compared where order and
number differ from one runtime to the next. :class:`Boxes` are matched before they are compared; :class:`Masks` are
compared by class.

Example:
    >>> import torch
    >>> outputs = {"logits": torch.tensor([[[4.0, 0.0]]]), "pred_boxes": torch.tensor([[[0.5, 0.5, 0.2, 0.4]]])}
    >>> detr_boxes(outputs, height=100, width=200).xyxy.round().tolist()
    [[[80.0, 30.0, 120.0, 70.0]]]
"""

from lightning_robust.decoding.alignment import Alignment as Alignment
from lightning_robust.decoding.alignment import Decoded as Decoded
from lightning_robust.decoding.average_precision import mean_average_precision as mean_average_precision
from lightning_robust.decoding.boxes import Boxes as Boxes
from lightning_robust.decoding.detections import detr_boxes as detr_boxes
from lightning_robust.decoding.detections import torchvision_boxes as torchvision_boxes
from lightning_robust.decoding.detections import yolo_boxes as yolo_boxes
from lightning_robust.decoding.keypoints import heatmap_keypoints as heatmap_keypoints
from lightning_robust.decoding.masks import Masks as Masks
from lightning_robust.decoding.masks import mean_iou as mean_iou
from lightning_robust.decoding.masks import segmentation_masks as segmentation_masks
from lightning_robust.decoding.overlap import box_iou as box_iou
from lightning_robust.decoding.overlap import match_boxes as match_boxes
from lightning_robust.decoding.overlap import nms as nms
