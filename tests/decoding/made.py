"""Boxes for these tests."""

import numpy as np
import torch

from lightning_robust.decoding import Boxes


def scattered(seed=0, pictures=6, most=8, classes=3):
    """Boxes that overlap little, in pictures of different numbers of them, one of them without any."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for picture in range(pictures):
        count = 0 if picture == 1 else int(torch.randint(1, most, (), generator=generator))
        corner = torch.randperm(25, generator=generator)[:count, None] // torch.tensor([1, 5]) % 5 * 60.0
        size = 20 + 30 * torch.rand(count, 2, generator=generator)
        scores = 0.3 + 0.6 * torch.rand(count, generator=generator)
        labels = torch.randint(classes, (count,), generator=generator)
        found.append((torch.cat([corner, corner + size], 1), scores, labels))
    return Boxes.stack(found)


def coco_case(seed, pictures=12, classes=3, most=8):
    """Detections that are near the truth, beside it or of the wrong class, with scores that often are equal."""
    draw = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(pictures):
        count = int(draw.integers(0, most))
        corner, size = draw.uniform(0, 200, (count, 2)), draw.uniform(5, 60, (count, 2))
        labels = draw.integers(0, classes, count)
        truth.append((np.concatenate([corner, corner + size], 1), np.ones(count), labels))
        keep = draw.random(count) < 0.8
        noise = draw.normal(0, 3, (count, 4)) * draw.random((count, 1)) * 2
        near = (np.concatenate([corner, corner + size], 1) + noise)[keep]
        more = int(draw.integers(0, 5))
        elsewhere, extent = draw.uniform(0, 200, (more, 2)), draw.uniform(5, 60, (more, 2))
        edges = np.concatenate([near, np.concatenate([elsewhere, elsewhere + extent], 1)])
        edges[:, 2:] = np.maximum(edges[:, 2:], edges[:, :2] + 1)
        wrong = np.where(draw.random(count) < 0.9, labels, 0)[keep]
        classes_found = np.concatenate([wrong, draw.integers(0, classes, more)])
        found.append((edges, np.round(draw.random(len(edges)), 2), classes_found))
    return stacked(truth), stacked(found)


def stacked(pictures):
    return Boxes.stack([tuple(torch.as_tensor(each) for each in picture) for picture in pictures])
