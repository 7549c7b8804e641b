"""The rendered traffic as a LightningDataModule."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_robust.checks import check_positive
from lightning_robust.demo.lanes.loading import coin
from lightning_robust.demo.lanes.rendered import RenderedData
from lightning_robust.demo.traffic.rendering import Traffic, render_traffic

_CHUNK = 64
TrafficBatch = tuple[Tensor, dict[str, Tensor]]


class TrafficDataset(Dataset[TrafficBatch]):
    """Rendered scenes in memory as bytes, some flipped left to right.

    Args:
        traffic: The pictures and their labels.
        flips: Whether the keys of `EpochSampler` decide about flips.
        seed: Seed of the flips.
    """

    def __init__(self, traffic: Traffic, flips: bool, seed: int) -> None:
        self.traffic, self.flips, self.seed = traffic, flips, seed

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.traffic.images)

    def __getitem__(self, key: int) -> TrafficBatch:
        """One picture (3, H, W) and its targets."""
        images, targets = self.__getitems__([key])
        return images[0], {name: value[0] for name, value in targets.items()}

    def __getitems__(self, keys: list[int]) -> TrafficBatch:
        """Several pictures at once, uint8 (N, 3, H, W), and their targets."""
        numbers = torch.as_tensor(keys)
        images, boxes, labels, drivable = (value[numbers % len(self)] for value in self.traffic)
        if self.flips:
            turned = coin(numbers, self.seed)
            images[turned], drivable[turned] = images[turned].flip(3), drivable[turned].flip(2)
            boxes[turned] = flip_boxes(boxes[turned], images.shape[3])
        return images, {"boxes": boxes, "labels": labels, "drivable": drivable}


def flip_boxes(boxes: Tensor, width: int) -> Tensor:
    """Boxes (..., 4) of a picture that is flipped left to right.

    Example:
        >>> flip_boxes(torch.tensor([0.0, 2.0, 3.0, 4.0]), 10).tolist()
        [7.0, 2.0, 10.0, 4.0]
    """
    left, top, right, bottom = boxes.unbind(-1)
    return torch.stack([width - right, top, width - left, bottom], -1)


class _TrafficRendering(Dataset[Traffic]):
    """Renders a chunk of pictures for each item, so that worker processes can share the work."""

    def __init__(self, indices: Tensor, seed: int, size: tuple[int, int]) -> None:
        self.chunks, self.seed, self.size = torch.split(indices, _CHUNK), seed, size

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: int) -> Traffic:
        return render_traffic(self.chunks[number], seed=self.seed, height=self.size[0], width=self.size[1])


class TrafficData(RenderedData):
    """Road scenes that are rendered in ``setup``; needs no download.

    Batches are ``(images, targets)``: normalised float32 (N, 3, H, W), and ``"boxes"`` (N, 11, 4) in pixels from the
    left and upper edge, NaN behind the last one, ``"labels"`` (N, 11), numbers among `CLASSES`, -1 behind the last one,
    and ``"drivable"`` (N, H, W), 1 where a pixel shows the road.

    Rendering happens once, in `setup`: about 15 ms of a core a picture, 150 kB of memory each.

    Args:
        num_train: Pictures to train on.
        num_val: Pictures to validate on.
        batch_size: Pictures in a batch.
        height: Height of the rendered pictures, a multiple of 16.
        width: Width of the rendered pictures, a multiple of 16.
        seed: Another seed gives other scenes, another order, other flips.
        num_workers: Processes that load batches; the pictures are in memory, so 0 is fast.
        render_workers: Processes that render in `setup`; 0 renders in this one.
    """

    def __init__(
        self,
        num_train: int = 2000,
        num_val: int = 256,
        batch_size: int = 32,
        height: int = 144,
        width: int = 256,
        seed: int = 0,
        num_workers: int = 0,
        render_workers: int = 2,
    ) -> None:
        check_positive(num_train=num_train, num_val=num_val)
        super().__init__(batch_size, seed, num_workers, render_workers)
        self.save_hyperparameters()
        self.num_train, self.num_val, self.height, self.width = num_train, num_val, height, width

    def setup(self, stage: str | None = None) -> None:
        """Renders the pictures of the stage, once."""
        if stage in (None, "fit") and self._train is None:
            self._train = self._render(torch.arange(self.num_train), flips=True)
        if self._val is None:
            self._val = self._render(-1 - torch.arange(self.num_val), flips=False)

    def _render(self, indices: Tensor, flips: bool) -> TrafficDataset:
        rendering = _TrafficRendering(indices, self.seed, (self.height, self.width))
        return TrafficDataset(Traffic(*self.render_chunks(rendering, len(indices))), flips, self.seed)
