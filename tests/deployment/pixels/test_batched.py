"""JPEG by matrix products against libjpeg."""

import pytest
import torch

from lightning_robust.deployment.pixels.batched import approximate_jpeg
from lightning_robust.deployment.pixels.operations import jpeg

from .pictures import picture


@pytest.mark.parametrize("quality", [75, 90, 95])
def test_jpeg_is_near_libjpeg(quality):
    """On pictures of texture a level is left, where libjpeg moves them by seven to nine; a third of a level in grey."""
    for channels, share in ((3, 0.18), (1, 0.25)):
        pictures = picture(channels=channels)
        exact = jpeg(pictures, quality)
        gap = (approximate_jpeg(pictures, torch.full((2,), quality)) - exact).abs().mean()
        assert gap < share * (exact - pictures).abs().mean()


def test_each_picture_has_its_quality():
    pictures = picture(height=21, width=30)
    both = approximate_jpeg(pictures, torch.tensor([60, 95]))
    for row, quality in enumerate((60, 95)):
        torch.testing.assert_close(
            both[row : row + 1], approximate_jpeg(pictures[row : row + 1], torch.tensor([quality])), rtol=0, atol=5e-3
        )
    moved = (both - pictures).abs().mean((1, 2, 3))
    assert moved[0] > 1.3 * moved[1]


def test_quality_100_of_a_flat_picture_changes_nothing():
    flat = torch.full((1, 1, 16, 16), 77 / 255)
    torch.testing.assert_close(approximate_jpeg(flat, torch.tensor([100])), flat, rtol=0, atol=1e-6)
