"""Blocks of both sides: calm ones count more, clipped ones not at all, and what noise leaves in their means."""

import torch

from lightning_robust.deployment.fingerprint.blocks import block_colors
from lightning_robust.deployment.fingerprint.motion import Motion


def _noise(std: float, seed: int = 1) -> torch.Tensor:
    return std * torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_noise_of_means_is_the_variance_over_the_pixels_of_a_block():
    flat = torch.full((4, 3, 64, 64), 100.0, dtype=torch.float64)
    blocks = block_colors(flat, flat + _noise(6.0), Motion())
    assert abs(blocks.noise / (36 / 16) - 1) < 0.05
    assert abs(float((blocks.deployed - blocks.trained).square().mean()) / blocks.noise - 1) < 0.1


def test_calm_blocks_count_more():
    """Half the picture is flat; there the sides are equal. In the other half detail is wrong by a level."""
    trained = torch.full((4, 3, 64, 64), 100.0, dtype=torch.float64)
    trained[..., 32:] += _noise(20.0)[..., 32:]
    deployed = trained.clone()
    deployed[..., 32:] += 1.0
    blocks = block_colors(trained, deployed, Motion())
    assert float((blocks.deployed - blocks.trained).mean()) < 0.05
    assert blocks.noise < 1e-3


def test_clipped_blocks_are_left_out():
    trained = 100.0 + _noise(10.0)
    trained[..., :8, :] = 250.0
    deployed = (trained + 20).clamp(max=255)
    blocks = block_colors(trained, deployed, Motion())
    assert float(blocks.trained.max()) < 200
    assert float((blocks.deployed - blocks.trained - 20).abs().max()) < 1e-9
