import math

import pytest
import torch

from lightning_robust.functional import PixelSpace


@pytest.mark.parametrize("mean", [0.5, (0.485, 0.456, 0.406)])
@pytest.mark.parametrize("std", [0.25, (0.229, 0.224, 0.225)])
def test_closed_form_and_round_trip(mean, std):
    space = PixelSpace(mean, std)
    pixels = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    m, s = (torch.tensor(v, dtype=torch.float64).reshape(-1, 1, 1) for v in (mean, std))
    inputs = space.from_pixels(pixels)
    torch.testing.assert_close(inputs, (pixels - m) / s)
    torch.testing.assert_close(space.to_pixels(inputs), pixels)
    space.check(inputs)


def test_pixels_are_in_the_unit_interval_whatever_the_units():
    """Values of 0 to 255 and their mean and std make the same pixels and the same inputs as values of 0 to 1."""
    wide, unit = (
        PixelSpace((123.0, 117.0, 104.0), 58.0, high=255.0),
        PixelSpace((123 / 255, 117 / 255, 104 / 255), 58 / 255),
    )
    pixels = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(wide.from_pixels(pixels), unit.from_pixels(pixels))
    torch.testing.assert_close(wide.to_pixels(wide.from_pixels(pixels)), pixels)
    wide.check(wide.from_pixels(pixels))
    signed = PixelSpace(low=-1.0)
    assert signed.from_pixels(torch.tensor([0.0, 0.5, 1.0]).reshape(1, 1, 1, 3)).flatten().tolist() == [-1.0, 0.0, 1.0]
    with pytest.raises(ValueError, match=r"in \[0, 255\].*got \[-2, 300\]"):
        PixelSpace(high=255.0).check(torch.tensor([-2.0, 300.0]).reshape(1, 1, 1, 2))


SHAPES = [(4, 3), (4, 3, 3), (4, 3, 5), (4, 3, 3, 3), (4, 3, 2, 5), (4, 3, 3, 2, 2), (4, 3, 2, 3, 5)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mean", [0.5, (0.1, 0.5, 0.9)])
@pytest.mark.parametrize("std", [0.25, (0.2, 0.25, 0.3)])
def test_channels_are_the_second_dimension_of_any_shape(shape, mean, std):
    """Features, signals, pictures and videos, each channel by hand, also where other dimensions have its length."""
    space, pixels = PixelSpace(mean, std), torch.rand(shape, dtype=torch.float64)
    means = (mean,) * 3 if isinstance(mean, float) else mean
    stds = (std,) * 3 if isinstance(std, float) else std
    by_hand = torch.stack([(pixels[:, c] - means[c]) / stds[c] for c in range(3)], 1)
    inputs = space.from_pixels(pixels)
    assert inputs.shape == shape
    torch.testing.assert_close(inputs, by_hand, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(space.to_pixels(inputs), pixels, rtol=1e-12, atol=1e-12)
    space.check(inputs)
    # one value of the second channel a thousandth below its smallest
    inputs[(0, 1) + (0,) * (len(shape) - 2)] = (-1e-3 - means[1]) / stds[1]
    with pytest.raises(ValueError, match=r"got \[-0\.001, "):
        space.check(inputs)


@pytest.mark.parametrize("shape", [(7,), (7, 2), (2, 2, 2, 2, 2)])
def test_one_number_leaves_any_shape_alone(shape):
    values = torch.rand(shape)
    assert PixelSpace(0.5, 0.5).to_pixels(values).shape == shape
    torch.testing.assert_close(PixelSpace(0.5, 0.5).from_pixels(values), (values - 0.5) / 0.5)
    PixelSpace().check(values)


def test_dtype_and_original_are_kept():
    x = torch.rand(1, 3, 2, 2).bfloat16()
    before = x.clone()
    assert PixelSpace(0.5, 0.5).from_pixels(x).dtype == torch.bfloat16
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_is_no_mistake(dtype):
    space = PixelSpace((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    pixels = torch.linspace(0, 1, 300).reshape(1, 3, 10, 10)
    space.check(space.from_pixels(pixels).to(dtype))
    space.check(space.from_pixels(pixels.to(dtype)))  # normalised in low precision


def test_tolerance_is_a_ten_thousandth_of_the_range():
    PixelSpace().check(torch.tensor([-0.9e-4, 1 + 0.9e-4]).reshape(1, 1, 1, 2))
    with pytest.raises(ValueError, match="Expected pixels"):
        PixelSpace().check(torch.tensor([0.0, 1 + 1.1e-4]).reshape(1, 1, 1, 2))


def test_rejects_a_batch_normalised_otherwise():
    """Inputs of mean 0.5 and std 0.5 (in [-1, 1]) declared as plain pixels, and plain pixels declared as ImageNet's."""
    pixels = torch.linspace(0, 1, 300).reshape(1, 3, 10, 10)
    with pytest.raises(ValueError, match=r"got \[-1, 1\]"):
        PixelSpace().check(PixelSpace(0.5, 0.5).from_pixels(pixels))
    with pytest.raises(ValueError, match=r"got \[0, 255\]"):
        PixelSpace().check(pixels * 255)


def test_rejects_integers():
    with pytest.raises(TypeError, match=r"uint8|u8"):
        PixelSpace(0.5, 0.5).to_pixels(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan")])
def test_rejects_pixels_out_of_range(value):
    pixels = torch.full((1, 3, 2, 2), value)
    with pytest.raises(ValueError, match=r"Expected pixels in \[0, 1\].*mean=0.0 and std=1.0.*Set `mean` and `std`"):
        PixelSpace().check(pixels)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"std": 0.0}, "`std` to be positive"),
        ({"std": (0.1, -1.0, 0.1)}, "`std` to be positive"),
        ({"std": ()}, "`std` to be positive, one number or one a channel"),
        ({"std": math.nan}, "`std` to be positive"),
        ({"mean": (0.5, math.nan, 0.5)}, "`mean` to be one finite number"),
        ({"low": 1.0}, "`low` below `high`"),
        ({"mean": (0.1, 0.2), "std": (1.0, 1.0, 1.0)}, "one length, but got 2 and 3"),
    ],
)
def test_rejects_bad_settings(settings, match):
    with pytest.raises(ValueError, match=match):
        PixelSpace(**settings)


def test_rejects_other_number_of_channels():
    for shape, channels in (((2, 1, 4, 4), 1), ((3, 4), 4), ((3,), 1), ((2, 4, 3, 5, 5), 4)):
        with pytest.raises(ValueError, match=f"`mean` with 1 or {channels} values for {channels} channels, but got 3"):
            PixelSpace((0.1, 0.2, 0.3)).to_pixels(torch.rand(shape))
