"""One batch through the catalogue: the sides against the catalogue's own functions, shared work, refusals."""

from dataclasses import replace

import pytest
import torch

from lightning_robust.deployment.pixels import geometry
from lightning_robust.deployment.pixels.catalogue import CATALOGUE, perturbations
from lightning_robust.deployment.pixels.layout import Layout
from lightning_robust.deployment.pixels.perturb import KeptPixels, perturb
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


@pytest.mark.parametrize("space", [SPACE, None])
@pytest.mark.parametrize("perturbed", [perturb, KeptPixels().perturb])
def test_bytes_are_levels(space, perturbed):
    """Whatever normalisation is stated, they come as bytes: the levels of the same pictures in [0, 1]."""
    levels = (picture() * 255).round()
    entries = perturbations("all")
    floats = perturb(levels / 255, PixelSpace(), entries)
    for one, other in zip(perturbed(levels.byte(), space, entries), floats, strict=True):
        for given, expected in ((one.trained(), other.trained()), (one.deployed(), other.deployed())):
            assert given.dtype == torch.uint8
            assert torch.equal(given, (expected * 255).round().clamp(0, 255).byte())


@pytest.mark.parametrize("letters", ["NHWC", "NTCHW", "NCTHW", "NTHWC"])
@pytest.mark.parametrize("in_bytes", [False, True])
@pytest.mark.parametrize("perturbed", [perturb, KeptPixels().perturb])
def test_other_arrangements_are_the_same_pictures(letters, in_bytes, perturbed):
    """Each frame by itself, bit for bit, with means that are told apart by channel."""
    pictures = torch.cat([picture(), picture().flip(2), picture().flip(3), picture() * 0.5])
    pictures = (pictures * 255).round().byte() if in_bytes else SPACE.from_pixels(pictures)
    layout = Layout(letters, tuple({"N": 2, "T": len(pictures) // 2, "C": 3, "H": 0, "W": 0}[each] for each in letters))
    if "T" not in letters:
        layout = Layout(letters, (len(pictures), 0, 0, 3))
    inputs = layout.arrange(pictures)
    expected, found = perturb(pictures, SPACE, CATALOGUE.values()), perturbed(inputs, SPACE, CATALOGUE.values())
    assert len(expected) == len(found) == len(CATALOGUE)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.deployed(), layout.arrange(other.deployed())), one.entry.name
        assert torch.equal(one.trained(), layout.arrange(other.trained()))


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
        (torch.ones(2, 3, 8, 8).int(), PixelSpace(), "no image batch"),
        (torch.rand(2, 3, 8, 8), None, "not known how pixels are normalised"),
        (torch.rand(2, 3, 8, 8) * 9, PixelSpace(), r"Expected pixels in \[0, 1\]"),
    ],
)
def test_rejects_what_cannot_be_perturbed(images, space, match):
    with pytest.raises(ValueError, match=match):
        perturb(images, space, perturbations())


class Counting:
    """An operation that says how often it was called."""

    def __init__(self, operation):
        self.operation, self.calls = operation, 0

    def __call__(self, pixels):
        self.calls += 1
        return self.operation(pixels)


def counted(entries):
    return [replace(entry, deployed=Counting(entry.deployed)) for entry in entries]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_kept_pixels_come_back_bit_for_bit(dtype):
    """All entries twice; those on 256 levels are computed once and cost a byte a value, the two others each time."""
    kept, entries = KeptPixels(), counted(CATALOGUE.values())
    images = SPACE.from_pixels(picture()).to(dtype)
    for _ in range(2):
        for again, fresh in zip(
            kept.perturb(images.clone(), SPACE, entries), perturb(images, SPACE, entries), strict=True
        ):
            assert torch.equal(again.deployed(), fresh.deployed()), again.entry.name
            assert torch.equal(again.trained(), fresh.trained())
    assert [entry.deployed.calls for entry in entries] == [3 if entry.in_levels else 4 for entry in entries]
    sides = sum(entry.in_levels for entry in entries) + len({entry.trained for entry in entries})
    assert kept.size == sides * images.numel()


def test_other_samples_are_computed_anew():
    kept, (entry,), first = KeptPixels(), counted(perturbations(["bgr"])), picture()
    for images, calls in ((first, 1), (first * 0.5, 2), (first, 2), (first.double(), 3), (first[:, :, 1:], 4)):
        (sample,) = kept.perturb(images, PixelSpace(), [entry])
        assert torch.equal(sample.deployed(), perturb(images, PixelSpace(), [CATALOGUE["bgr"]])[0].deployed())
        assert entry.deployed.calls == calls


def test_the_normalisation_may_change():
    """What is kept are pixels."""
    kept, (entry,), pixels = KeptPixels(), counted(perturbations(["bgr"])), picture()
    for space in (PixelSpace(), SPACE):
        images = space.from_pixels(pixels)
        (sample,) = kept.perturb(images, space, [entry])
        expected = perturb(images, space, [CATALOGUE["bgr"]])[0].deployed()
        assert torch.equal(sample.deployed(), expected)
    assert entry.deployed.calls == 1


def test_memory_is_bounded_and_old_samples_make_room():
    first = picture()
    second, size = first * 0.5, first.numel()
    kept, entries = KeptPixels(limit=2 * size), counted(perturbations(["bgr", "brightness", "color_range"]))

    def calls(images):
        before = [entry.deployed.calls for entry in entries]
        for sample in kept.perturb(images, PixelSpace(), entries):
            sample.deployed()
            assert kept.size <= 2 * size
        return [entry.deployed.calls - count for entry, count in zip(entries, before, strict=True)]

    assert calls(first) == [1, 1, 1]
    assert calls(first) == [0, 0, 1]
    assert [calls(second) for _ in range(17)] == [[1, 1, 1]] * 17
    assert calls(second) == [0, 0, 1]
    assert calls(first) == [1, 1, 1]
