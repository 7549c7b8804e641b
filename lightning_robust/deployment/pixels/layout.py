"""How a network's input arranges its pictures: channels first or last, single pictures or clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

_COLOURS = (1, 3)
_LETTERS = ("NCHW", "NHWC", "NTCHW", "NCTHW", "NTHWC")
ARRANGEMENTS = "(N, C, H, W), (N, H, W, C), (N, T, C, H, W), (N, C, T, H, W) or (N, T, H, W, C) with 1 or 3 channels C"
"""What :func:`layout_of` knows, for messages."""


@dataclass(frozen=True)
class Layout:
    """The letters of an input's dimensions: samples N, frames T of a clip, channels C, rows H and columns W.

    Args:
        letters: One for each dimension.
        shape: Of the input.

    Example:
        >>> import torch
        >>> layout = layout_of((2, 5, 3, 32, 64))
        >>> layout.letters, layout.channels, layout.frames
        ('NTCHW', 3, 5)
        >>> layout.pictures(torch.zeros(2, 5, 3, 32, 64)).shape
        torch.Size([10, 3, 32, 64])
    """

    letters: str
    shape: tuple[int, ...]

    @property
    def channels(self) -> int:
        """1 or 3."""
        return self.shape[self.letters.index("C")]

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.shape[self.letters.index("H")], self.shape[self.letters.index("W")]

    @property
    def frames(self) -> int:
        """Pictures of a sample."""
        return self.shape[self.letters.index("T")] if "T" in self.letters else 1

    def pictures(self, inputs: Tensor) -> Tensor:
        """All pictures as ``(N, C, H, W)``; the frames of a clip follow each other."""
        return inputs.permute(self._order).flatten(0, -4)

    def arrange(self, pictures: Tensor) -> Tensor:
        """Pictures ``(N, C, H, W)`` as the network takes them."""
        split = pictures.reshape(*(self.shape[place] for place in self._order[:-3]), *pictures.shape[1:])
        return split.permute([self._order.index(place) for place in range(split.ndim)]).contiguous()

    @property
    def _order(self) -> list[int]:
        """Where the dimensions of pictures are in the input."""
        return [self.letters.index(letter) for letter in "NTCHW" if letter in self.letters]


def read_layout(shape: Sequence[int]) -> Layout:
    """As :func:`layout_of`.

    Raises:
        ValueError: If there is none.
    """
    layout = layout_of(shape)
    if layout is None:
        raise ValueError(f"Expected pictures {ARRANGEMENTS}, but got {tuple(shape)}.")
    return layout


def layout_of(shape: Sequence[int]) -> Layout | None:
    """How an input of this shape arranges pictures; None where it holds none, or clips may be read in two ways.

    Four dimensions of which the second is 1 or 3 are ``(N, C, H, W)``, also where the last one is.

    Example:
        >>> layout_of((2, 32, 64, 3)).letters, layout_of((2, 9, 32, 64)), layout_of((2, 3, 3, 32, 64))
        ('NHWC', None, None)
    """
    found = [
        Layout(letters, tuple(shape))
        for letters in _LETTERS
        if len(letters) == len(shape) and shape[letters.index("C")] in _COLOURS
    ]
    return found[0] if len(found) == 1 or (found and len(shape) == 4) else None


def channel_dimension(shape: Sequence[int]) -> int:
    """Where the channels of an input are; the second dimension where it holds no pictures.

    Example:
        >>> channel_dimension((2, 3, 32, 64)), channel_dimension((2, 32, 64, 3)), channel_dimension((2, 7))
        (1, 3, 1)
    """
    layout = layout_of(shape)
    return 1 if layout is None else layout.letters.index("C")
