"""Bytes, signed bytes and quantised inputs are named, and compared as what training feeds."""

import pytest
import torch

from lightning_robust.deployment.fingerprint.formats import undo_format
from lightning_robust.deployment.fingerprint.search import fingerprint
from lightning_robust.deployment.pixels.catalogue import CATALOGUE
from lightning_robust.functional.pixels import PixelSpace

from .samples import scenes

SPACE = PixelSpace([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def kinds(found):
    return [cause.parameters.get("kind") for cause in found.causes if cause.name == "input_type"]


@pytest.mark.parametrize("trained", ["bytes", "normalised"])
def test_bytes_minus_128(trained):
    x = scenes()
    levels = (x * 255).round()
    training = levels.byte() if trained == "bytes" else SPACE.from_pixels(x)
    deployed = (levels - 128).to(torch.int8)
    plain, _ = undo_format(training, deployed)
    assert torch.equal(plain, levels.byte())
    assert kinds(fingerprint(training, deployed)) == ["minus 128"]


def test_a_quantised_input_has_its_scale_and_zero_point():
    training = SPACE.from_pixels(scenes())
    scale, zero = 0.0187, -14
    deployed = (training / scale + zero).round().clamp(-128, 127).to(torch.int8)
    found = fingerprint(training, deployed)
    (cause,) = [c for c in found.causes if c.name == "input_type"]
    assert cause.parameters["scale"] == pytest.approx(scale, rel=0.01)
    assert cause.parameters["zero_point"] == pytest.approx(zero, abs=1)
    assert "quantised with scale 0.018" in cause.sentence


def test_bytes_where_training_normalises():
    x = scenes()
    assert kinds(fingerprint(SPACE.from_pixels(x), (x * 255).round().byte())) == ["bytes"]
    assert kinds(fingerprint(x, (x * 255).round().byte())) == []


def test_another_usual_normalisation_is_undone():
    """Exactly, so that a range that is read wrongly beside it is named, and not an offset that comes near it."""
    x = CATALOGUE["color_range_limited"].deployed(scenes())
    training, deployed = SPACE.from_pixels(scenes()), (x - 0.5) / 0.5
    plain, (units,) = undo_format(training, deployed)
    torch.testing.assert_close(plain, SPACE.from_pixels(x), rtol=0, atol=1e-5)
    assert units.parameters["gain_r"] == pytest.approx(0.229 / 0.5)
    assert units.parameters["offset_r"] == pytest.approx(255 * (0.485 - 0.229))
    assert {cause.name for cause in fingerprint(training, deployed).causes} == {"gain_offset", "color_range"}


def test_a_normalisation_that_was_told_tells_bytes_minus_128():
    """With any mean and deviation, where training's darkest level is not black."""
    levels = torch.randint(40, 220, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    trained = (levels / 255 - 0.4) / 0.27
    plain, (evidence,) = undo_format(trained, (levels.short() - 128).to(torch.int8), 0.4, 0.27)
    assert evidence.parameters == {"kind": "minus 128"}
    assert torch.equal(plain, levels)


def test_rejects_other_integers():
    with pytest.raises(TypeError, match="uint8, int8 or floating"):
        fingerprint(scenes(), scenes().int())


def test_rejects_another_number_of_pictures():
    with pytest.raises(ValueError, match="as many deployed pictures as training's 6, but got 5"):
        fingerprint(scenes(), scenes()[:5])
