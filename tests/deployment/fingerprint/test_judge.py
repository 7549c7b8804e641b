"""A fingerprint held against a budget: other units are no small difference."""

import pytest
import torch
from torch.nn.functional import interpolate

from lightning_robust.deployment.fingerprint.judge import judge_fingerprint
from lightning_robust.deployment.fingerprint.search import fingerprint
from lightning_robust.functional.pixels import PixelSpace

SMALL = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
PIXELS = (255 * interpolate(SMALL, size=(48, 48), mode="bilinear")).round() / 255
NORMALISED = PixelSpace([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]).from_pixels(PIXELS)


@pytest.mark.parametrize(
    ("trained", "deployed", "cause"),
    [
        (NORMALISED, PIXELS, "gain_offset"),
        (NORMALISED, (255 * PIXELS).round().byte(), "input_type"),
        (PIXELS, 255 * PIXELS, "gain_offset"),
    ],
)
def test_other_units_are_beyond_a_budget_for_distance(trained, deployed, cause):
    """Once they are brought to levels next to nothing is left; a limit that names the cause allows them."""
    found = fingerprint(trained, deployed)
    assert found.distance < 0.5
    judgement = judge_fingerprint(found, {"distance": 0.5})
    assert judgement.status == "beyond"
    assert cause in judgement.text()
    assert judge_fingerprint(found, {"distance": 0.5, cause: 1.0}).status == "within"
    assert judge_fingerprint(found, {"distance": 0.5, "causes": 3.0}).status == "within"
