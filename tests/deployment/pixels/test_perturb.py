"""One batch through the catalogue: the sides against the catalogue's own functions, shared work, refusals."""

import pytest
import torch

from lightning_robust.deployment.pixels import geometry
from lightning_robust.deployment.pixels.catalogue import CATALOGUE, perturbations
from lightning_robust.deployment.pixels.perturb import perturb
from lightning_robust.functional.pixels import PixelSpace

from .pictures import picture

SPACE = PixelSpace([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_reference(dtype):
    """Both sides of all entries, bit for bit, against quantising, the entry's function and normalising by hand."""
    images = SPACE.from_pixels(picture().to(dtype))
    pixels = (SPACE.to_pixels(images) * 255).round().clamp(0, 255) / 255
    samples = perturb(images, SPACE, CATALOGUE.values())
    assert [sample.entry.name for sample in samples] == list(CATALOGUE)
    for sample in samples:
        assert torch.equal(sample.trained(), SPACE.from_pixels(sample.entry.trained(pixels)))
        assert torch.equal(sample.deployed(), SPACE.from_pixels(sample.entry.deployed(pixels)))
        assert sample.deployed().dtype == dtype


def test_low_precision_is_computed_in_fp32():
    images = picture().half()
    (sample,) = perturb(images, PixelSpace(), [CATALOGUE["brightness"]])
    (wide,) = perturb(images.float(), PixelSpace(), [CATALOGUE["brightness"]])
    assert torch.equal(sample.deployed(), wide.deployed().half())


def test_training_runs_once_for_each_training_side(monkeypatch):
    """35 entries have two training sides: 37 runs, and one camera frame for all resizes."""
    frames, runs = [], []
    original = geometry.camera_frame
    monkeypatch.setattr(geometry, "camera_frame", lambda pixels: frames.append(1) or original(pixels))

    def run(images):
        runs.append(1)
        return images.mean()

    for sample in perturb(picture(), PixelSpace(), CATALOGUE.values()):
        before, after = sample.through(run)
        assert (before, after) == (sample.trained().mean(), sample.deployed().mean())
    assert len(runs) == len(CATALOGUE) + len({entry.trained for entry in CATALOGUE.values()}) == 37
    assert len(frames) == 1


def test_an_entry_that_fails_leaves_the_others():
    first, second = perturb(picture(), PixelSpace(), perturbations(["shift_half_pixel", "bgr"]))

    def run(images):
        if torch.equal(images, first.deployed()):
            raise RuntimeError("planted")
        return images

    with pytest.raises(RuntimeError, match="planted"):
        first.through(run)
    before, after = second.through(run)
    assert torch.equal(before.flip(1), after)


def test_grey_pictures_leave_out_colour():
    names = [sample.entry.name for sample in perturb(picture(channels=1), PixelSpace(), perturbations(["bgr", "crop"]))]
    assert names == ["crop"]


@pytest.mark.parametrize(
    ("images", "space", "match"),
    [
        (torch.rand(2, 5), PixelSpace(), "no image batch"),
        (torch.rand(2, 4, 8, 8), PixelSpace(), "no image batch"),
        (torch.ones(2, 3, 8, 8).byte(), PixelSpace(), "no image batch"),
        (torch.rand(2, 3, 8, 8), None, "not known how pixels are normalised"),
        (torch.rand(2, 3, 8, 8) * 9, PixelSpace(), r"Expected pixels in \[0, 1\]"),
    ],
)
def test_rejects_what_cannot_be_perturbed(images, space, match):
    with pytest.raises(ValueError, match=match):
        perturb(images, space, perturbations())
