"""Groups of a batch: what each is perturbed by, and targets of any form that move with it."""

import pytest
import torch

from lightning_robust.deployment.pixels.catalogue import CATALOGUE
from lightning_robust.deployment.pixels.draws import at, draw
from lightning_robust.deployment.pixels.layout import Layout
from lightning_robust.functional.picture_motion import move_boxes, move_masks, move_points
from lightning_robust.functional.pixels import PixelSpace
from lightning_robust.mixins.preprocessing.groups import Group, move_groups, perturb_groups, rows_of_groups


def groups(samples=5):
    """A shift of two pixels to the right for samples 0, 2, 4; a channel swap for the others."""
    right, swap = CATALOGUE["shift_one_pixel"], CATALOGUE["bgr"]
    size = (3, 8, 8)
    drawn = [at(right, torch.tensor([2.0, 0.0]), size), at(swap, torch.zeros(0), size)]
    return [Group(rows, each) for rows, each in zip(rows_of_groups(samples, 2), drawn, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_each_group_is_perturbed_in_pixels_and_normalised_again(dtype):
    space = PixelSpace((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    pixels = (torch.rand(5, 3, 8, 8, dtype=torch.float64) * 255).round() / 255
    inputs = space.from_pixels(pixels).to(dtype).requires_grad_()
    found = perturb_groups(inputs, space, groups())
    assert found.dtype == dtype
    assert not found.requires_grad
    expected = pixels.clone()
    expected[1::2] = pixels[1::2].flip(1)
    expected[::2, ..., 2:], expected[::2, ..., :2] = pixels[::2, ..., :-2], pixels[::2, ..., :1]
    # half a level of rounding, and what a half-precision input has lost
    slack = 0.6 / 255 + 4 * torch.finfo(dtype).eps
    assert (space.to_pixels(found.double()) - expected).abs().max() < slack


@pytest.mark.parametrize("letters", ["NHWC", "NTCHW", "NCTHW", "NTHWC"])
@pytest.mark.parametrize(
    "name", ["shift_one_pixel", "crop", "brightness", "gamma_09", "jpeg_90", "levels_6_bit", "bgr"]
)
def test_the_frames_of_a_clip_are_perturbed_alike(letters, name):
    """Each frame as if it were the picture that the parameters were drawn for."""
    space, frames = PixelSpace((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), 2 if "T" in letters else 1
    generator = torch.Generator().manual_seed(1)
    pictures = space.from_pixels((torch.rand(5 * frames, 3, 8, 10) * 255).round() / 255).unflatten(0, (5, frames))
    sizes = {"N": 5, "T": frames, "C": 3, "H": 8, "W": 10}
    layout = Layout(letters, tuple(sizes[letter] for letter in letters))
    chosen = [
        Group(rows, draw(CATALOGUE[name], (len(range(5)[rows]), 8, 10), None, generator))
        for rows in rows_of_groups(5, 2)
    ]
    found = layout.pictures(perturb_groups(layout.arrange(pictures.flatten(0, 1)), space, chosen))
    expected = [perturb_groups(pictures[:, frame], space, chosen) for frame in range(frames)]
    assert torch.equal(found.unflatten(0, (5, frames)), torch.stack(expected, 1))
    assert (found - pictures.flatten(0, 1)).abs().mean() > 1e-3


def test_frames_have_noise_of_their_own():
    grey = torch.full((2, 2, 3, 64, 64), 0.5)
    drawn = at(CATALOGUE["noise_6"], torch.tensor([2.0, 6.0]), (2, 64, 64), seed=3)
    noise = perturb_groups(grey, PixelSpace(), [Group(slice(None), drawn)]).flatten(0, 1) - 0.5
    deviations = (noise * 255).std((1, 2, 3))
    assert deviations.tolist() == pytest.approx([2, 2, 6, 6], rel=0.05)
    assert (noise[0] - noise[1]).std() > noise[0].std()


def test_autocast_does_not_reach_the_pixels():
    pixels = torch.rand(4, 3, 8, 8)
    expected = perturb_groups(pixels, PixelSpace(), groups(4))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(perturb_groups(pixels, PixelSpace(), groups(4)), expected)


def test_targets_of_any_form_move_by_groups():
    points = torch.rand(5, 3, 2)
    expected = points.clone()
    expected[::2, :, 0] += 2
    torch.testing.assert_close(move_groups(points, 5, groups(), move_points), expected)
    listed = [
        {"boxes": torch.rand(5, 4).sort(1).values, "labels": torch.arange(5)} for _ in range(5)
    ]  # as many as there are pictures
    moved = move_groups(
        listed, 5, groups(), lambda part, m: [{**each, "boxes": move_boxes(each["boxes"], m)} for each in part]
    )
    for number, (before, after) in enumerate(zip(listed, moved, strict=True)):
        shift = torch.tensor([2.0, 0, 2, 0]) if number % 2 == 0 else torch.zeros(4)
        torch.testing.assert_close(after["boxes"], before["boxes"] + shift)
    masks = {"mask": torch.randint(9, (5, 8, 8)), "scale": torch.tensor(3.0)}
    found = move_groups(masks, 5, groups(), lambda part, m: {**part, "mask": move_masks(part["mask"], m)})
    assert torch.equal(found["mask"][::2, :, 2:], masks["mask"][::2, :, :-2])
    assert torch.equal(found["mask"][1::2], masks["mask"][1::2])
    assert found["scale"] == 3


def test_targets_are_not_changed_in_place():
    points = torch.zeros(5, 1, 2)
    move_groups(points, 5, groups(), move_points)
    assert points.abs().max() == 0


@pytest.mark.parametrize("name", CATALOGUE)
def test_what_normalisation_leaves_of_black_and_white_is_perturbed(name):
    """In fp32 both come back from it up to 6e-8 outside of [0, 1], where a power is not a number."""
    pixels = torch.tensor([0.0, 1.0]).repeat(96).view(1, 3, 8, 8)
    for space in (
        PixelSpace(0.44, 0.2),
        PixelSpace((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        PixelSpace(0.52, 0.25),
    ):
        inputs = space.from_pixels(pixels)
        drawn = draw(CATALOGUE[name], (1, 8, 8), generator=torch.Generator().manual_seed(0))
        perturbed = space.to_pixels(perturb_groups(inputs, space, [Group(slice(None), drawn)]))
        assert bool(((perturbed > -0.3) & (perturbed < 1.3)).all())
