"""Kernels, convolution, clouds and generators."""

import torch
from torch.nn.functional import conv2d, interpolate, pad

from lightning_robust.deployment.pixels.corruptions.patterns import cloud, coloured, convolve, luma, seeded, splat


def test_splat_keeps_weight_and_mean():
    points = torch.rand(50, 2, dtype=torch.float64) * 6 - 3
    kernel = splat(points, 4)
    axis = torch.arange(-4, 5, dtype=torch.float64)
    assert abs(kernel.sum().item() - 1) < 1e-12
    means = torch.stack([(kernel * axis[None]).sum(), (kernel * axis[:, None]).sum()])
    torch.testing.assert_close(means, points.mean(0), rtol=0, atol=1e-12)


def test_convolve_matches_reference():
    """Convolution as defined, over a repeated border: torch's own is a correlation."""
    pictures, kernel = torch.rand(2, 3, 19, 27), torch.rand(7, 7)
    wide = pad(pictures, (3, 3, 3, 3), mode="replicate").flatten(0, 1)[:, None]
    expected = conv2d(wide, kernel.flip(0, 1)[None, None])[:, 0].view_as(pictures)
    torch.testing.assert_close(convolve(pictures, kernel), expected, rtol=1e-5, atol=1e-5)


def test_a_kernel_may_be_larger_than_the_picture():
    flat = torch.full((1, 1, 4, 5), 0.25)
    torch.testing.assert_close(convolve(flat, torch.full((9, 9), 1 / 81)), flat)


def test_clouds_count_in_heights():
    """A cloud of twice the size shows the same shapes, and a rougher one has more of the fine ones."""
    small, large = (cloud((n, 2 * n), seeded("x"), 2.0) for n in (64, 128))
    assert small.min() == 0
    assert small.max() == 1
    again = interpolate(large[None, None], scale_factor=0.5, mode="area")[0, 0]
    assert torch.corrcoef(torch.stack([small.flatten(), again.flatten()]))[0, 1] > 0.95
    fine = [cloud((64, 64), seeded("x"), decay).diff().abs().mean().item() for decay in (2.2, 1.4)]
    assert fine[0] < fine[1]


def test_seeds_depend_on_name_and_picture():
    x, y = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    drawn = [torch.rand(3, generator=g).tolist() for g in (seeded("a"), seeded("b"), seeded("a", x), seeded("a", y))]
    assert len({tuple(each) for each in drawn}) == 4
    assert torch.rand(3, generator=seeded("a", x.clone())).tolist() == drawn[2]


def test_grey_pictures_take_the_brightness_of_a_colour():
    rgb = (0.2, 0.4, 0.6)
    assert coloured(rgb, torch.zeros(1, 3, 2, 2)).flatten().tolist() == torch.tensor(rgb).tolist()
    grey = coloured(rgb, torch.zeros(1, 1, 2, 2)).item()
    assert abs(grey - (0.299 * 0.2 + 0.587 * 0.4 + 0.114 * 0.6)) < 1e-6
    assert luma(torch.full((1, 1, 2, 2), 0.3)).unique().tolist() == torch.tensor([0.3]).tolist()
