"""Chroma planes that were shrunk or moved alone are named as such, with the numbers that were planted."""

import pytest
import torch
from torch.nn.functional import avg_pool2d, interpolate

from lightning_robust.deployment.fingerprint.search import fingerprint
from lightning_robust.deployment.pixels.operations import BT601, mix_channels
from tests.deployment.fingerprint.samples import scenes


def split(x):
    ycc = mix_channels(BT601, x)
    return ycc[:, :1], ycc[:, 1:]


def joined(luma, chroma):
    return (mix_channels(BT601.inverse(), torch.cat([luma, chroma], 1)) * 255).round().clamp(0, 255) / 255


def test_colours_of_half_the_resolution_upsampled_bilinearly_have_less_detail():
    x = scenes(2)
    luma, chroma = split(x)
    found = fingerprint(x, joined(luma, interpolate(avg_pool2d(chroma, 2), x.shape[-2:], mode="bilinear")))
    assert [cause.name for cause in found.causes] == ["compression"]
    assert found.causes[0].parameters["kind"] == "chroma"
    assert found.causes[0].parameters["sharpness"] < 0.8


@pytest.mark.parametrize("by", [1, -2])
def test_colours_that_lie_beside_their_brightness_are_measured(by):
    x = scenes(2)
    luma, chroma = split(x)
    found = fingerprint(x, joined(luma, chroma.roll(by, 3)))
    assert [cause.name for cause in found.causes] == ["compression"]
    assert found.causes[0].parameters["kind"] == "siting"
    moved = [found.causes[0].parameters[axis] for axis in ("dx", "dy")]
    assert moved == pytest.approx([by, 0], abs=0.15)
    assert f"{moved[0]:+.2f} pixels right" in found.causes[0].sentence


def test_saturation_is_no_lost_detail():
    x = scenes(2)
    luma, chroma = split(x)
    found = fingerprint(x, joined(luma, 0.6 * chroma))
    assert all(cause.name != "compression" for cause in found.causes)
