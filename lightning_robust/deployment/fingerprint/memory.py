"""The places in training's picture of the deployed side's values: flips, turns, orders of memory, row strides.

An arrangement moves values and changes none. It is a table of places, so that it can be done, undone and composed
without a case for each kind.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_robust.deployment.fingerprint.similarity import cross_correlations

UNKNOWN = -1
_ORDERS = tuple("".join(axes) for axes in itertools.permutations("CHW"))


@dataclass(frozen=True)
class Arrangement:
    """The deployed side's values, taken from places in training's picture.

    Args:
        sources: For each value of a deployed picture, its place in training's picture laid out as C x H x W; ``-1``
            where the deployed side shows what training's picture has not.
        name: The cause; empty for training's own arrangement.
        parameters: Its parameters.
    """

    sources: Tensor
    name: str = ""
    parameters: Mapping[str, float | str] = field(default_factory=dict)

    def apply(self, images: Tensor) -> Tensor:
        """The deployed side's arrangement of pictures ``(N, C, H, W)``; unknown values are 0."""
        values = images.flatten(1)[:, self.sources.clamp(min=0)]
        return torch.where(self.sources == UNKNOWN, torch.zeros((), dtype=images.dtype), values)

    def undo(self, images: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Pictures in training's arrangement, and which of their values are known.

        Args:
            images: The deployed side's, one axis for the picture and those of :attr:`sources`.
            shape: Of one of training's pictures.

        Returns:
            Pictures ``(N, *shape)`` with 0 where a value is unknown, and the mask ``shape``.
        """
        used = self.sources != UNKNOWN
        flat = images.new_zeros(len(images), shape.numel())
        known = torch.zeros(shape.numel(), dtype=torch.bool)
        flat[:, self.sources[used]] = images[:, used]
        known[self.sources[used]] = True
        return flat.reshape(len(images), *shape), known.reshape(shape)


def orientations(shape: torch.Size) -> Iterator[Arrangement]:
    """Flips, turns and transpositions of a picture ``(C, H, W)``.

    Example:
        >>> [a.parameters["kind"] for a in orientations(torch.Size((1, 2, 2)))][:3]
        ['left-right', 'up-down', 'half turn']
    """
    straight = places_in(shape)
    turned = straight.transpose(1, 2)
    kinds = {
        "left-right": straight.flip(2),
        "up-down": straight.flip(1),
        "half turn": straight.flip(1, 2),
        "quarter turn right": turned.flip(2),
        "quarter turn left": turned.flip(1),
        "transpose": turned,
        "transpose and half turn": turned.flip(1, 2),
    }
    for kind, sources in kinds.items():
        yield Arrangement(sources, "orientation", {"kind": kind})


def memory_orders(shape: torch.Size) -> Iterator[Arrangement]:
    """Memory written in one order of the axes and read in another, for a picture ``(C, H, W)``.

    Example:
        >>> [a.parameters["read"] for a in memory_orders(torch.Size((1, 1, 1)))]
        []
    """
    seen = [places_in(shape), *(a.sources for a in orientations(shape))]
    for written, read in itertools.product(_ORDERS, repeat=2):
        found = reordered(shape, written, read)
        if not any(torch.equal(found.sources, other) for other in seen):
            seen.append(found.sources)
            yield found


def reordered(shape: torch.Size, written: str, read: str) -> Arrangement:
    """Pictures ``(C, H, W)`` written to memory in one order of their axes and read in another.

    Example:
        >>> reordered(torch.Size((2, 1, 2)), "HWC", "CHW").sources.flatten().tolist()
        [0, 2, 1, 3]
    """
    sizes = dict(zip("CHW", shape, strict=True))
    memory = places_in(shape).permute(*("CHW".index(axis) for axis in written)).flatten()
    sources = memory.reshape(*(sizes[axis] for axis in read)).permute(*(read.index(axis) for axis in "CHW"))
    return Arrangement(sources, "memory_layout", {"kind": "order", "written": written, "read": read})


def put_channels_last(shape: torch.Size) -> Arrangement:
    """Pictures ``(C, H, W)`` handed over as ``(H, W, C)``, which their shape tells."""
    return Arrangement(places_in(shape).permute(1, 2, 0), "memory_layout", {"kind": "channels last"})


def exchanged_size(shape: torch.Size) -> Arrangement:
    """Pictures ``(C, H, W)`` whose memory is handed over as ``(C, W, H)``."""
    swapped = places_in(shape).reshape(shape[0], shape[2], shape[1])
    return Arrangement(swapped, "memory_layout", {"kind": "exchanged"})


def strided(shape: torch.Size, padding: int, *, interleaved: bool) -> Arrangement:
    """Rows that are written with one stride and read with another.

    Args:
        shape: Of a picture ``(C, H, W)``.
        padding: Values behind each row as written that the reader takes for the next row's; negative where the reader
            skips as many that were not written.
        interleaved: Whether the channels of a pixel lie side by side in memory, or planes one after another.

    Example:
        >>> strided(torch.Size((1, 2, 3)), 1, interleaved=False).sources.tolist()
        [[[0, 1, 2], [-1, 3, 4]]]
    """
    channels, height, width = shape
    row = width * channels if interleaved else width
    rows = height if interleaved else height * channels
    memory = places_in(shape).permute(1, 2, 0).reshape(-1) if interleaved else places_in(shape).reshape(-1)
    wide = torch.full((rows, row + abs(padding)), UNKNOWN)
    if padding >= 0:
        wide[:, :row] = memory.reshape(rows, row)
        read = wide.flatten()[: memory.numel()]
    else:
        wide.view(-1)[: memory.numel()] = memory
        read = wide[:, :row].flatten()
    kind, layout = "padded rows" if padding >= 0 else "skipped values", "HWC" if interleaved else "CHW"
    parameters: dict[str, float | str] = {"kind": kind, "padding": float(abs(padding)), "layout": layout}
    sources = read.reshape(height, width, channels).permute(2, 0, 1) if interleaved else read.reshape(shape)
    return Arrangement(sources, "memory_layout", parameters)


def likely_paddings(trained: Tensor, deployed: Tensor, *, interleaved: bool, limit: int) -> list[int]:
    """The paddings of :func:`strided` under which the first channel's rows lie most like training's.

    Args:
        trained: Training's pictures ``(N, C, H, W)``.
        deployed: The deployed side's.
        interleaved: As there.
        limit: The largest padding that is tried.
    """
    channels, height, width = deployed.shape[1:]
    step = channels if interleaved else 1
    memory = (deployed.permute(0, 2, 3, 1) if interleaved else deployed).flatten(1).double()
    rows, columns = torch.arange(0, height, max(1, height // 32)), torch.arange(0, width, max(1, width // 64))
    wanted = trained[:, 0][:, rows][:, :, columns].double()
    scores = []
    for padding in range(-limit, limit + 1):
        at = _written_places(rows, columns, (width * step, step), padding)
        known = (at != UNKNOWN) & (at < memory.shape[1])
        if padding and int(known.sum()) > known.numel() // 4:
            alike = cross_correlations(wanted[:, known], memory[:, at[known]]).amax(1)
            scores.append((float(alike.mean()), padding))
    return [padding for _, padding in sorted(scores, reverse=True)[:2]]


def _written_places(rows: Tensor, columns: Tensor, tight: tuple[int, int], padding: int) -> Tensor:
    """Where the first channel of pixels lies in memory that is written or read with a padding."""
    row, step = tight
    if padding >= 0:
        return rows[:, None] * (row + padding) + columns * step
    written = rows[:, None] * row + columns * step
    at, rest = written // (row - padding), written % (row - padding)
    return torch.where(rest < row, at * row + rest, UNKNOWN)


def places_in(shape: torch.Size) -> Tensor:
    """The places of values in a picture of a shape."""
    return torch.arange(shape.numel()).reshape(shape)
