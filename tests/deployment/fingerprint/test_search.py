"""What was planted is what is named: every entry of the catalogue, pairs, none; and pictures that tell nothing.

The full matrix of pairs, also on a recording, is benchmarks/fingerprint.py.
"""

import itertools
import random

import numpy as np
import pytest
import torch

from lightning_robust.demo.lanes import LaneData
from lightning_robust.deployment.fingerprint.search import fingerprint
from lightning_robust.deployment.pixels.catalogue import CATALOGUE
from lightning_robust.deployment.pixels.names import FAMILIES
from lightning_robust.functional.pixels import PixelSpace

PIPELINE = (
    *("compression", "color_matrix", "color_range", "shift", "crop", "resize_filter", "rounding", "noise"),
    *("gamma", "channel_order", "gain_offset"),
)
PAIRS = [(a, b) for a, b in itertools.combinations(CATALOGUE.values(), 2) if a.family != b.family]


@pytest.fixture(scope="module")
def roads():
    """Two rendered roads on 256 levels; more would be surer and slower."""
    data = LaneData(num_train=2, num_val=8)
    data.setup("fit")
    images = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)[0][:2]
    return (PixelSpace(data.mean, data.std).to_pixels(images) * 255).round().clamp(0, 255) / 255


def names(found):
    return [cause.name for cause in found.causes]


def test_every_single_cause_is_named_first(roads):
    """At least 95 % of them: 34 of 35."""
    found = {name: fingerprint(e.trained(roads), e.deployed(roads)) for name, e in CATALOGUE.items()}
    wrong = {name: names(f) for name, f in found.items() if names(f)[:1] != [CATALOGUE[name].family]}
    assert len(wrong) <= 1, wrong
    for result in found.values():
        confidences = [cause.confidence for cause in result.causes]
        assert confidences == sorted(confidences, reverse=True)
        assert all(0.5 <= value <= 1 for value in confidences)
        assert result.unexplained <= 1.01 * result.distance


def test_pairs_of_causes_are_named(roads):
    """At least 70 % of a fixed sample of 15 pairs from different families, on two pictures alone."""
    right = 0
    sample = random.Random(0).sample(PAIRS, 15)
    for pair in sample:
        a, b = sorted(pair, key=lambda entry: PIPELINE.index(entry.family))
        found = fingerprint(b.trained(a.trained(roads)), b.deployed(a.deployed(roads)))
        right += set(names(found)[:2]) == {a.family, b.family}
    assert right >= 11, right


def test_every_family_is_known_to_the_pipeline():
    assert set(PIPELINE) == set(FAMILIES)


@pytest.mark.parametrize("form", ["floats", "bytes", "normalised", "half", "numpy"])
def test_no_difference_is_none(roads, form):
    x = {
        "floats": roads,
        "bytes": (roads * 255).round().byte(),
        "normalised": PixelSpace([0.4, 0.5, 0.6], [0.2, 0.25, 0.3]).from_pixels(roads),
        "half": roads.half(),
        "numpy": roads.numpy(),
    }[form]
    found = fingerprint(x, x)
    assert found.causes == ()
    assert "No difference." in found.note


def test_parameters_are_those_that_were_planted(roads):
    shift = fingerprint(roads, CATALOGUE["shift_half_pixel"].deployed(roads)).causes[0].parameters
    assert (shift["dx"], shift["dy"]) == pytest.approx((0.5, 0.5), abs=0.05)
    gain = fingerprint(roads, CATALOGUE["gain_080"].deployed(roads)).causes[0].parameters
    gains = [value for key, value in gain.items() if key.startswith("gain")]
    assert gains == pytest.approx([0.8] * len(gains), abs=0.01)
    gamma = fingerprint(roads, CATALOGUE["gamma_09"].deployed(roads)).causes[0].parameters
    assert gamma["gamma"] == pytest.approx(0.9, abs=0.01)
    order = fingerprint(roads, roads.flip(1)).causes[0].parameters
    assert order["order"] == "BGR"


def test_normalised_pictures_are_compared_in_levels(roads):
    space = PixelSpace([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
    found = fingerprint(
        space.from_pixels(roads), space.from_pixels(roads.flip(1)), mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3]
    )
    assert names(found) == ["channel_order"]
    plain = fingerprint(roads, roads.flip(1))
    assert found.distance == pytest.approx(plain.distance, rel=1e-4)


def test_a_forgotten_normalisation_is_told(roads):
    """The car feeds pixels in [0, 1] where training normalises."""
    space = PixelSpace([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert names(fingerprint(space.from_pixels(roads), roads))[:1] == ["gain_offset"]
    assert names(fingerprint(roads, roads * 255))[:1] == ["gain_offset"]


def test_constant_pictures_cannot_tell():
    flat = torch.full((2, 3, 32, 32), 0.5)
    found = fingerprint(flat, flat + 0.1)
    assert found.causes == ()
    assert "Cannot tell: the pictures are (nearly) constant." in found.note


def test_other_pictures_cannot_tell(roads):
    found = fingerprint(roads, torch.rand(roads.shape, generator=torch.Generator().manual_seed(0)))
    assert found.causes == ()
    assert "do not show the same content" in found.note


def test_the_text_gives_sentence_and_line(roads):
    text = str(fingerprint(roads, roads.flip(1)))
    assert "the deployed side feeds channels as BGR where training has RGB" in text
    assert "cv2.COLOR_BGR2RGB" in text


@pytest.mark.parametrize(
    ("trained", "deployed", "error", "match"),
    [
        (torch.rand(3, 32, 32), torch.rand(3, 32, 32), ValueError, r"images\[None\]"),
        (torch.rand(1, 32, 32, 3), torch.rand(1, 32, 32, 3), ValueError, "Channels seem to come last"),
        (torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 48), ValueError, "of training's shape"),
        (torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8), ValueError, "at least 16 x 16"),
        (torch.ones(1, 3, 32, 32).int(), torch.ones(1, 3, 32, 32).int(), TypeError, "uint8 or floating"),
        (torch.full((1, 3, 32, 32), torch.nan), torch.rand(1, 3, 32, 32), ValueError, "Expected finite"),
    ],
)
def test_rejects(trained, deployed, error, match):
    with pytest.raises(error, match=match):
        fingerprint(trained, deployed)


def test_grey_pictures(roads):
    grey = roads.mean(1, keepdim=True).mul(255).round() / 255
    assert names(fingerprint(grey, CATALOGUE["shift_half_pixel"].deployed(grey)))[:1] == ["shift"]
    assert names(fingerprint(grey.numpy(), CATALOGUE["gamma_07"].deployed(grey).numpy()))[:1] == ["gamma"]
    assert np.isfinite(fingerprint(grey, grey).distance)
