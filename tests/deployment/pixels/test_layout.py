"""Arrangements of pictures in a network's input: there and back, and what has none."""

import pytest
import torch

from lightning_robust.deployment.pixels.layout import channel_dimension, layout_of

SIZES = {"N": 2, "T": 5, "C": 3, "H": 8, "W": 6}
LETTERS = ["NCHW", "NHWC", "NTCHW", "NCTHW", "NTHWC"]


def arranged(letters):
    """Numbers that say where they are, and the same as pictures by einsum."""
    inputs = torch.arange(float(torch.tensor([SIZES[letter] for letter in letters]).prod()))
    inputs = inputs.reshape([SIZES[letter] for letter in letters])
    axes = "ntchw" if "T" in letters else "nchw"
    return inputs, torch.einsum(f"{letters.lower()}->{axes}", inputs).reshape(-1, 3, 8, 6)


@pytest.mark.parametrize("letters", LETTERS)
def test_there_and_back(letters):
    inputs, pictures = arranged(letters)
    layout = layout_of(inputs.shape)
    assert (layout.letters, layout.channels, layout.frames) == (letters, 3, 5 if "T" in letters else 1)
    assert torch.equal(layout.pictures(inputs), pictures)
    again = layout.arrange(pictures)
    assert torch.equal(again, inputs)
    assert again.is_contiguous()
    assert channel_dimension(inputs.shape) == letters.index("C")


@pytest.mark.parametrize(
    ("shape", "letters"),
    [
        ((2, 3, 8, 3), "NCHW"),  # as ever
        ((2, 1, 8, 8), "NCHW"),
        ((2, 8, 8, 1), "NHWC"),
        ((2, 1, 16, 8, 8), "NCTHW"),
        ((2, 4, 8, 8), None),
        ((2, 9, 8, 8), None),
        ((2, 3, 3, 8, 8), None),  # three frames in colour, either way
        ((2, 1, 3, 8, 8), None),  # one frame in colour, or three grey ones
        ((2, 3), None),
        ((2, 3, 8), None),
        ((), None),
    ],
)
def test_what_a_shape_tells(shape, letters):
    layout = layout_of(shape)
    assert (layout and layout.letters) == letters
