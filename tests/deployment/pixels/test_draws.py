"""Draws: at the catalogue's points they are its entries; elsewhere what their parameters say."""

import dataclasses
import functools

import pytest
import torch

from lightning_robust.deployment.pixels import draws, motions
from lightning_robust.deployment.pixels.catalogue import CATALOGUE, Perturbation
from lightning_robust.functional.picture_motion import move_points

POINTS = {
    "shift_quarter_pixel": [0.25, 0.25],
    "shift_half_pixel": [0.5, 0.5],
    "shift_one_pixel": [1.0, 1.0],
    "crop": [0.02],
    "letterbox": [0.05],
    "levels_6_bit": [6, 6],
    "offset_8": [8, 8],
    "gain_105": [1.05, 1.05],
    "brightness": [1.1, 1.1],
    "gain_080": [0.8, 0.8],
    "gamma_11": [1.1, 1.1],
    "gamma_09": [0.9, 0.9],
    "gamma_07": [0.7, 0.7],
    "jpeg_95": [95, 95],
    "jpeg_90": [90, 90],
    "jpeg_75": [75, 75],
    "noise_2": [2, 2],
    "noise_6": [6, 6],
}
SIZE = (2, 48, 80)
RESIZES = [name for name, entry in CATALOGUE.items() if entry.family == "resize_filter"]
APPROXIMATE = {"jpeg_95", "jpeg_90", "jpeg_75", "noise_2", "noise_6", "truncation", *RESIZES}


def smooth(channels=3, size=SIZE[1:], count=2, low=0.2, high=0.8):
    """Pictures without hard edges and away from black and white, so that no filter overshoots what 8 bits hold."""
    coarse = torch.rand(count, channels, 6, 10, generator=torch.Generator().manual_seed(0))
    fine = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)
    return ((low + (high - low) * fine) * 255).round() / 255


def at_point(name, size=SIZE):
    return draws.at(CATALOGUE[name], torch.tensor(POINTS.get(name, [])), size)


@pytest.mark.parametrize("name", [name for name in CATALOGUE if name not in APPROXIMATE])
def test_equals_the_catalogue_at_its_points(name):
    """To a level, where fp32 decides a tie that the catalogue decides in fp64; four in five pixels bit for bit."""
    pictures = torch.cat([smooth(count=1), torch.rand(1, 3, *SIZE[1:])])
    pictures = (pictures * 255).round() / 255
    gaps = (at_point(name).pixels(pictures) - CATALOGUE[name].deployed(pictures)).abs() * 255
    assert gaps.max() <= 1.001
    assert (gaps > 0.01).float().mean() < 0.2


@pytest.mark.parametrize("name", [*RESIZES, "truncation"])
def test_resizes_equal_the_catalogue_but_for_the_frames_own_rounding(name):
    """The catalogue rounds its frame to 8 bits and clips it. What that leaves is two levels, away from black and white.

    On noise from black to white, where bicubic enlarging overshoots by up to a fifth, a twentieth of it is left.
    """
    entry, draw = CATALOGUE[name], at_point(name)
    gaps = (draw.pixels(smooth()) - entry.deployed(smooth())).abs() * 255
    assert gaps.max() <= 2.001
    assert gaps.mean() < 0.2
    noise = (torch.rand(2, 3, *SIZE[1:]) * 255).round() / 255
    clipped = (draw.pixels(noise) - entry.deployed(noise)).abs().mean() * 255
    assert clipped < 0.6 < 0.05 * 43  # nearest moves noise by 43 levels


@pytest.mark.parametrize("name", CATALOGUE)
def test_motion_is_the_catalogues(name):
    found, expected = at_point(name).motion, CATALOGUE[name].motion
    assert (found is None) == (expected is None)
    if expected is not None:
        torch.testing.assert_close(found, CATALOGUE[name].matrix(*SIZE[1:]))


@pytest.mark.parametrize("name", ["shift_half_pixel", "crop", "letterbox"])
def test_motion_is_where_a_blob_goes(name):
    """The centre of a bright blob is where the drawn matrix puts it, within a twentieth of a pixel."""
    generator = torch.Generator().manual_seed(3)
    places = torch.stack(torch.meshgrid(torch.arange(80.0), torch.arange(48.0), indexing="xy"), -1)
    centre = torch.tensor([37.0, 22.0])
    blob = (-((places - centre) ** 2).sum(-1) / 18).exp()[None, None].expand(1, 3, -1, -1)
    for _ in range(4):
        drawn = draws.draw(CATALOGUE[name], (1, 48, 80), None, generator)
        moved = drawn.pixels(blob.contiguous())[0, 0]
        weights = torch.where((places - centre).norm(dim=-1) < 16, moved, 0.0)  # without the grey of the bars
        found = (weights[..., None] * places).sum((0, 1)) / weights.sum()
        assert (found - move_points(centre, drawn.motion)).abs().max() < 0.05


def test_shift_goes_in_any_direction():
    generator, entry = torch.Generator().manual_seed(0), CATALOGUE["shift_one_pixel"]
    ways = torch.stack(
        [draws.draw(entry, (1, 8, 8), {"shift": [0.2, 0.7]}, generator).motion[:2, 2] for _ in range(64)]
    )
    assert ((ways.abs() >= 0.2) & (ways.abs() <= 0.7)).all()
    assert {tuple(way) for way in ways.sign().tolist()} == {(x, y) for x in (-1, 1) for y in (-1, 1)}
    picture = smooth()
    back = draws.at(entry, torch.tensor([-1.0, -1.0]), SIZE).pixels(picture)
    torch.testing.assert_close(back[..., :-1, :-1], picture[..., 1:, 1:], rtol=0, atol=1e-6)


def test_values_have_a_parameter_for_each_picture():
    grey = torch.full((64, 1, 2, 2), 100 / 255)
    drawn = draws.draw(CATALOGUE["brightness"], (64, 2, 2), {"gain": [0.5, 1.5]}, torch.Generator().manual_seed(0))
    levels = drawn.pixels(grey)[:, 0, 0, 0] * 255
    assert len(levels.unique()) > 40
    assert 50 <= levels.min() < 60
    assert 140 < levels.max() <= 150


def test_noise_has_its_deviation_and_its_own_seed():
    grey = torch.full((2, 3, 64, 64), 128 / 255)
    before = torch.get_rng_state()
    one, same, other = (draws.at(CATALOGUE["noise_6"], torch.tensor([2.0, 6.0]), SIZE, seed) for seed in (1, 1, 2))
    found = one.pixels(grey)
    assert torch.equal(found, same.pixels(grey))
    assert not torch.equal(found, other.pixels(grey))
    assert torch.equal(torch.get_rng_state(), before)
    # rounding to levels adds a twelfth to the variance; the mean of 12,288 draws is within 2 % of it
    for picture, deviation in zip(found, (2.0, 6.0), strict=True):
        assert (255 * picture).std().item() == pytest.approx((deviation**2 + 1 / 12) ** 0.5, rel=0.03)


@pytest.mark.parametrize("name", CATALOGUE)
def test_any_size_one_channel_and_double(name):
    """Odd sizes, grey pictures where the entry applies to them, and fp64; equal draws give equal pictures."""
    entry = CATALOGUE[name]
    for channels, dtype in ((3, torch.float64), (1, torch.float32)):
        if entry.applies_to(channels):
            pictures = smooth(channels, (13, 21), 3).to(dtype)
            first, second = (
                draws.draw(entry, (3, 13, 21), None, torch.Generator().manual_seed(5)).pixels(pictures.clone())
                for _ in range(2)
            )
            assert torch.equal(first, second)
            assert (first.shape, first.dtype) == (pictures.shape, dtype)
            assert first.isfinite().all()


@pytest.mark.parametrize(
    ("ranges", "match"),
    [
        ({"shft": [0, 1]}, "Did you mean 'shift'"),
        ({"shift": [0.5, 0.1]}, r"from low to high within \[0, 16\], but got \[0\.5, 0\.1\]"),
        ({"quality": [0, 90]}, r"'quality' .* within \[1, 100\]"),
        ({"gain": [1.0]}, "but got"),
        ({"noise": [0, float("nan")]}, "standard deviation in levels"),
    ],
)
def test_rejects_ranges(ranges, match):
    with pytest.raises(ValueError, match=match):
        draws.check_ranges(ranges)


@pytest.mark.parametrize(("name", "family"), [("gain", "mine"), ("shift", "mine"), ("resize_mine", "resize_filter")])
def test_what_a_package_adds_is_taken_as_it_is(name, family):
    """Whatever it is called, and with the motion of its content."""
    motion = functools.partial(motions.shifted, by=1.0)
    entry = Perturbation(name, family, 1, "of a package", lambda pixels: pixels / 2, motion=motion)
    drawn = draws.draw(entry, (2, 8, 8))
    assert torch.equal(drawn.pixels(torch.ones(2, 3, 8, 8)), torch.full((2, 3, 8, 8), 0.5))
    assert torch.equal(drawn.motion, motion(8, 8))
    assert draws.at(dataclasses.replace(entry, motion=None), torch.zeros(0), (2, 8, 8)).motion is None
