"""What shows that an explanation is not the right one: what it leaves follows brightness, the place or the picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, one_hot

from lightning_robust.deployment.fingerprint.motion import blurred, least_squares
from lightning_robust.deployment.fingerprint.view import View

_TOLD = (
    "brightness, as another tone curve's would",
    "the place in the picture, as a vignette's would",
    "the picture, as that of another exposure for each would",
    "the other channels, as that of another hue or saturation would",
)
_MOVES = "the place in the picture: it moves otherwise from place to place, as a perspective would"
_APART = "the channel: one lies beside the others"
_PIXELS = 0.3  # root mean square by which tiles move otherwise than the whole
_TILES, _IN_PART = 6, 30  # each way, and the fewest values of a part
_SMALL = 36  # pixels of the shorter side of the copies on which tiles are looked for
_BLOCK = 4
_BINS = 12
_VISIBLE = 0.5**2  # levels squared; rounding and clipping leave a tenth
_MOST = 0.5  # of what is left of the means of blocks
_FEWEST = 200  # blocks
_DARK = 2.0  # levels from black and white, where values are clipped


def doubt_view(view: View) -> str:
    """On what it depends what a view leaves, in words; empty where on nothing.

    The right colours and motion leave noise, traces of compression or edges, of which means over blocks keep little. A
    tone curve, a vignette or another exposure for each picture leaves what depends on brightness, place or picture.

    Args:
        view: Of both sides.
    """
    shares = [(share, told) for told, share, explained in _dependences(view) if explained > _VISIBLE]
    shares += [(share, _MOVES) for share, moved in [_moved_tiles(view)] if moved > _PIXELS]
    shares += [(share, _APART) for share, moved in [_moved_channels(view)] if moved > _PIXELS]
    share, told = max(shares, default=(0.0, ""))
    return told if share > _MOST else ""


def _dependences(view: View) -> Iterator[tuple[str, float, float]]:
    """For each dependence the share of the mean square that it explains beyond a line, and what it explains."""
    use = avg_pool2d(view.mask[None, None].double(), _BLOCK)[0, 0] > 1 - 1e-9
    predicted, rest = (avg_pool2d(side, _BLOCK) for side in (view.predicted, view.deployed - view.predicted))
    clear = (predicted > _DARK) & (predicted < 255 - _DARK) & use
    errors = [
        _errors_with(predicted, channel, left, inside)
        for channel, (left, inside) in enumerate(zip(rest.unbind(1), clear.unbind(1), strict=True))
        if int(inside.sum()) >= _FEWEST
    ]
    for told in _TOLD if errors else ():
        plain = sum(error[""] for error in errors) / len(errors)
        explained = plain - sum(error[told] for error in errors) / len(errors)
        yield told, explained / max(plain, 1e-9), explained


def _moved_tiles(view: View) -> tuple[float, float]:
    """What is explained of the rest where tiles move by themselves, and by how many pixels they do; on small copies."""
    factor = max(1, min(view.mask.shape) // _SMALL)
    predicted, deployed = (blurred(avg_pool2d(side.mean(1), factor)) for side in (view.predicted, view.deployed))
    inside = avg_pool2d(view.mask[None].double(), factor)[0] == 1
    parts = []
    for rows in torch.arange(inside.shape[0]).tensor_split(_TILES):
        for columns in torch.arange(inside.shape[1]).tensor_split(_TILES):
            tile = torch.zeros_like(inside)
            tile[rows[:, None], columns] = True
            parts.append((predicted, deployed, tile & inside))
    share, moved = _moved_alone(parts)
    return share, moved * factor


def _moved_channels(view: View) -> tuple[float, float]:
    """What is explained of the rest where channels move by themselves, and by how many pixels they do."""
    if view.deployed.shape[1] == 1:
        return 0.0, 0.0
    sides = zip(view.filtered.unbind(1), view.deployed.unbind(1), strict=True)
    return _moved_alone([(blurred(predicted), blurred(deployed), view.mask) for predicted, deployed in sides])


def _moved_alone(parts: Iterable[tuple[Tensor, Tensor, Tensor]]) -> tuple[float, float]:
    """What is explained of the rest where parts move by themselves, and the root mean square by which they do.

    Args:
        parts: The prediction and the deployed pictures ``(N, H, W)``, and the pixels of the part ``(H, W)``.
    """
    total, left, moves = 0.0, 0.0, []
    for predicted, deployed, part in parts:
        values = (deployed - predicted)[:, part].reshape(-1, 1)
        if len(values) >= _IN_PART:
            slopes = [(predicted.roll(1, axis) - predicted.roll(-1, axis)) / 2 for axis in (2, 1)]
            basis = torch.stack([slope[:, part].flatten() for slope in slopes], 1)
            move = least_squares(basis, values)
            total, left = total + float(values.square().sum()), left + float((values - basis @ move).square().sum())
            moves.append(move.square().sum())
    return (1 - left / max(total, 1e-9), float(torch.stack(moves).mean().sqrt())) if moves else (0.0, 0.0)


def _errors_with(predicted: Tensor, channel: int, rest: Tensor, inside: Tensor) -> dict[str, float]:
    """The mean square of one channel's rest after a line, and after more, corrected for what chance explains."""
    level, left = predicted[:, channel][inside], rest[inside][:, None]
    line = torch.stack([torch.ones_like(level), level / 255], 1)

    def error(basis: Tensor) -> float:
        after = float((left - basis @ least_squares(basis, left)).square().mean())
        return after * (1 + basis.shape[1] / len(left))

    def beside_line(columns: Tensor) -> float:
        return error(torch.cat([line, columns, columns * line[:, 1:]], 1))

    edges = level.sort().values[torch.linspace(0, len(level) - 1, _BINS + 1).long()[1:-1]]
    bins = one_hot(torch.searchsorted(edges, level), _BINS).double()
    y, x = (places[inside] for places in _coordinates(inside.shape))
    picture = one_hot(inside.nonzero()[:, 0], len(inside)).double()
    values = (
        error(torch.cat([line, bins], 1)),
        beside_line(torch.stack([x, y, x * x, y * y, x * y], 1)),
        beside_line(picture),
        error(torch.cat([line, predicted.movedim(1, -1)[inside] / 255], 1)),
    )
    return {"": error(line), **dict(zip(_TOLD, values, strict=True))}


def _coordinates(shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Rows and columns from -1 to 1, ``(N, H, W)`` each."""
    y, x = (torch.linspace(-1, 1, side, dtype=torch.float64) for side in shape[1:])
    return y[:, None].expand(shape), x.expand(shape)
