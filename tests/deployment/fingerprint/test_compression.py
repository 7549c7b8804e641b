"""A filter is told before the codec that takes back what it sharpened, and not where there is none."""

import pytest
import torch

from lightning_robust.deployment.fingerprint.filters import apply_filter, sharpness
from lightning_robust.deployment.fingerprint.search import fingerprint
from lightning_robust.deployment.pixels.operations import jpeg
from tests.deployment.fingerprint.samples import scenes


def sharpened(x, amount):
    """And its gain at high frequencies, as the fingerprint says it."""
    taps = torch.zeros(7, 7, dtype=torch.float64)
    taps[2:5, 2:5] = -amount * torch.tensor([[1.0, 2, 1], [2, 0, 2], [1, 2, 1]]) / 12
    taps[3, 3] = 1 + amount
    return (apply_filter(x.double(), taps) * 255).round().clamp(0, 255).float() / 255, sharpness(taps)


@pytest.mark.parametrize("quality", [65, 75])
def test_a_filter_that_sharpens_before_a_jpeg_is_told(quality):
    """Its gain is a lower bound: where the codec left nothing, nothing tells how much was sharpened."""
    x = scenes(2)
    filtered, gain = sharpened(x, 0.6)
    found = {cause.name: cause.parameters for cause in fingerprint(x, jpeg(filtered, quality)).causes}
    assert set(found) == {"compression", "resize_filter"}
    assert found["compression"]["quality"] == pytest.approx(quality, abs=2)
    assert 1.2 < found["resize_filter"]["sharpness"] < gain


@pytest.mark.parametrize("quality", [60, 75, 90])
def test_a_jpeg_alone_has_no_filter(quality):
    x = scenes(2)
    assert [cause.name for cause in fingerprint(x, jpeg(x, quality)).causes] == ["compression"]
