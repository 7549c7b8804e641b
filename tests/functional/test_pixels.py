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


def test_dtype_and_original_are_kept():
    x = torch.rand(1, 3, 2, 2).bfloat16()
    before = x.clone()
    assert PixelSpace(0.5, 0.5).from_pixels(x).dtype == torch.bfloat16
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_is_no_mistake(dtype):
    space = PixelSpace((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    space.check(space.from_pixels(torch.linspace(0, 1, 300).reshape(1, 3, 10, 10)).to(dtype))


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
        ({"low": 1.0}, "`low` below `high`"),
        ({"mean": (0.1, 0.2), "std": (1.0, 1.0, 1.0)}, "one length, but got 2 and 3"),
    ],
)
def test_rejects_bad_settings(settings, match):
    with pytest.raises(ValueError, match=match):
        PixelSpace(**settings)


def test_rejects_other_number_of_channels():
    with pytest.raises(ValueError, match="`mean` with 1 or 1 values for 1 channels, but got 3"):
        PixelSpace((0.1, 0.2, 0.3)).to_pixels(torch.rand(2, 1, 4, 4))
