"""Batches that are perturbed in groups."""

import pytest
import torch

from lightning_robust.deployment.pixels.catalogue import CATALOGUE
from lightning_robust.deployment.pixels.draws import draw
from lightning_robust.functional.pixels import PixelSpace
from lightning_robust.mixins.preprocessing.groups import Group, perturb_groups


@pytest.mark.parametrize("name", CATALOGUE)
def test_what_normalisation_leaves_of_black_and_white_is_perturbed(name):
    """In fp32 both come back from it up to 6e-8 outside of [0, 1], where a power is not a number."""
    pixels = torch.tensor([0.0, 1.0]).repeat(96).view(1, 3, 8, 8)
    for space in (
        PixelSpace(0.44, 0.2),
        PixelSpace((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        PixelSpace(0.52, 0.25),
    ):
        inputs = space.from_pixels(pixels)
        drawn = draw(CATALOGUE[name], (1, 8, 8), generator=torch.Generator().manual_seed(0))
        perturbed = space.to_pixels(perturb_groups(inputs, space, [Group(slice(None), drawn)]))
        assert bool(((perturbed > -0.3) & (perturbed < 1.3)).all())
