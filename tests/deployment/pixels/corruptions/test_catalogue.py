"""The catalogue of corruptions: names, what each promises, and that severity means severity."""

import pytest
import torch

from lightning_robust.demo.lanes.rendering import render_roads
from lightning_robust.deployment.pixels.corruptions import Corruption, corruptions
from lightning_robust.deployment.pixels.corruptions.names import CORRUPTION_NAMES

from ..pictures import levels, picture

TWELVE = [
    *("motion_blur", "defocus_blur", "fog", "snow", "rain", "glare", "low_light", "dirt", "drops"),
    *("exposure_lag", "rolling_shutter", "frame_loss"),
]


def test_names_and_order():
    assert list(CORRUPTION_NAMES) == TWELVE
    assert [str(each) for each in corruptions()] == [f"{name}@{s}" for name in TWELVE for s in range(1, 6)]
    assert [str(each) for each in corruptions("fog")] == [f"fog@{s}" for s in range(1, 6)]
    assert [str(each) for each in corruptions(["dirt@2", "lens@2", "fog@4"])] == ["fog@4", "dirt@2", "drops@2"]
    assert len(corruptions("corruptions@3")) == 12
    assert corruptions("all") == corruptions()
    assert corruptions("none") == ()


@pytest.mark.parametrize(
    ("names", "match"),
    [
        ("fgo", "Did you mean 'fog'"),
        (["motionblur"], "mean 'motion_blur'"),
        ("fog@0", "severity from 1 to 5, as in 'fog@3', but got 'fog@0'"),
        ("fog@6", "'fog@6'"),
        ("fog@", "'fog@'"),
        ("fog@2.5", "'fog@2.5'"),
        ([], "at least one corruption"),
    ],
)
def test_rejects_unknown_names(names, match):
    with pytest.raises(ValueError, match=match):
        corruptions(names)


@pytest.mark.parametrize("pixels", [torch.rand(3, 28, 28), torch.rand(2, 4, 28, 28), torch.zeros(1, 3, 28, 28).byte()])
def test_rejects_what_is_no_picture(pixels):
    with pytest.raises(ValueError, match=r"pictures \(N, 1 or 3, H, W\)"):
        Corruption("fog", 1)(pixels)


@pytest.mark.parametrize("name", TWELVE)
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 48, 64), (3, 37, 51), (1, 28, 28), (3, 60, 32)])
def test_every_corruption(name, channels, height, width):
    """Same shape and type, 8-bit levels, one by one as in a batch; neither input nor global generator is touched."""
    x = picture(4, channels, height, width)
    before, state = x.clone(), torch.get_rng_state()
    for severity in (1, 5):
        corruption = Corruption(name, severity)
        result = corruption(x)
        assert (result.shape, result.dtype) == (x.shape, x.dtype)
        assert 0 <= result.min() <= result.max() <= 1
        levels(result)
        assert torch.equal(result, torch.cat([corruption(part) for part in x.split([1, 3])]))
        assert torch.equal(result, corruption(x.flip(0)).flip(0))
        assert torch.equal(result, corruption(x.contiguous(memory_format=torch.channels_last)))
        assert severity == 1 or not torch.equal(result, x)
    assert torch.equal(x, before)
    assert torch.equal(state, torch.get_rng_state())
    assert Corruption(name, 3)(x[:0]).shape == (0, channels, height, width)


@pytest.mark.parametrize("name", TWELVE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_types(name, dtype):
    """Other types give the levels of fp32, but for ties of weights such as 3/4 that their rounding decides."""
    x = picture(1, 3, 32, 48)
    wide = Corruption(name, 4)(x.to(dtype))
    assert wide.dtype == dtype
    difference = ((wide.double() - Corruption(name, 4)(x).double()) * 255).abs()
    assert (difference > 0.6).double().mean() < 0.05
    assert difference.max() < 1.1


@pytest.fixture(scope="module")
def roads():
    images = render_roads(torch.arange(-12, 0), seed=3, height=64, width=128).images.float() / 255
    return images, (images[:, :, ::2, ::2] + images[:, :, 1::2, 1::2]) / 2


@pytest.mark.parametrize("name", TWELVE)
def test_severity_is_monotone(name, roads):
    """The mean distance to the clean pictures rises from each severity to the next, at both sizes."""
    for images in roads:
        moved = [(Corruption(name, s)(images) - images).abs().mean().item() * 255 for s in range(1, 6)]
        assert moved == sorted(moved)
        assert moved[-1] > 1.3 * moved[0]
        assert 0.2 < moved[0] < 65
        assert name == "frame_loss" or len(set(moved)) == 5


SIZE_BOUND = {"motion_blur", "defocus_blur", "rain", "snow", "rolling_shutter"}  # these depend on the finest detail


@pytest.mark.parametrize("name", [name for name in TWELVE if name not in {*SIZE_BOUND, "frame_loss"}])
def test_the_size_makes_no_difference(name, roads):
    """Halved pictures are as far from clean as whole ones, since all lengths count in heights."""
    whole, half = ((Corruption(name, 4)(images) - images).abs().mean().item() for images in roads)
    assert half == pytest.approx(whole, rel=0.25)


@pytest.mark.parametrize("name", ["fog", "glare", "dirt", "drops"])
def test_what_was_made_in_inference_mode_can_be_differentiated(name):
    """Patterns are kept: those of a validation in inference mode serve a later attack."""
    x = picture(1, 3, 29, 31)
    with torch.inference_mode():
        expected = Corruption(name, 2)(x).clone()
    weight = torch.ones((), requires_grad=True)
    result = Corruption(name, 2)(x)
    (weight * result).sum().backward()
    assert torch.equal(result, expected)
    assert weight.grad == result.sum()
