"""The detector of compression: traces of JPEG's or NV12's grid, and a search for the codec that reproduces them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from lightning_robust.deployment.fingerprint.detectors import Evidence
from lightning_robust.deployment.fingerprint.filters import blockiness, chroma_steps
from lightning_robust.deployment.fingerprint.view import View
from lightning_robust.deployment.pixels.operations import jpeg, nv12

_BLOCKS = 0.05  # share of coefficients
_HALF_CHROMA = 0.75
_RESYNTHESIS = 1.05  # error of compression on a wrong grid over the error on the right one
_PICTURES = 2  # to search for the quality of a JPEG
_QUALITIES = (97, 95, 92, 90, 87, 85, 80, 75, 65, 50)


@dataclass(frozen=True)
class _Codec:
    """A compression of levels, on its own grid or on one that is off by ``off_grid`` pixels."""

    parameters: dict[str, float | str]
    compress: Callable[[Tensor], Tensor]
    off_grid: int

    def __call__(self, levels: Tensor, shifted: bool = False) -> Tensor:
        by = self.off_grid if shifted else 0
        rolled = (levels.clamp(0, 255).round() / 255).roll((-by, -by), (2, 3))
        return (self.compress(rolled) * 255).roll((by, by), (2, 3))


def _codecs(channels: int) -> list[_Codec]:
    nv12s = [_Codec({"kind": "nv12"}, nv12, 1)] if channels == 3 else []
    return nv12s + [_Codec({"kind": "jpeg", "quality": q}, partial(jpeg, quality=q), 4) for q in _QUALITIES]


def compression_evidence(trained: Tensor, view: View) -> tuple[Evidence, Tensor] | None:
    """Evidence of a compression, and training's pictures after the one that best reproduces the deployed side's.

    There are two kinds of evidence. The deployed pictures lack detail on the codec's grid and not on other grids. And
    training's pictures explain the deployed ones better after compression on that grid than on one that is off by half
    a block.
    """
    strength, kind = _grid_traces(trained, view)
    few = replace(view, deployed=view.deployed[:_PICTURES])
    best = min(_codecs(trained.shape[1]), key=lambda codec: few.error_from(codec(trained[:_PICTURES])))
    parameters: dict[str, float | str] = {"kind": kind}
    compressed = trained
    # compression takes detail away, which pulls the estimated motion along
    polished = view.polished(best(trained))
    aligned, off_grid = (polished.error_from(best(trained, shifted)) for shifted in (False, True))
    if aligned < view.error_from(trained):
        strength = max(strength, (off_grid / max(aligned, 1e-3) - 1) / (_RESYNTHESIS - 1))
        parameters, compressed = best.parameters, best(trained)
    return (Evidence("compression", parameters, strength), compressed) if strength >= 1 else None


def _grid_traces(trained: Tensor, view: View) -> tuple[float, str]:
    """The strength of the traces of a codec's grid in the deployed pictures, and the codec's kind."""
    rows, columns = (_whole_blocks(view.mask.any(axis)) for axis in (1, 0))
    shown = view.deployed[..., rows, columns]
    blocks = blockiness(shown.mean(1)) - blockiness(trained[..., rows, columns].mean(1))
    halved = chroma_steps(shown) if trained.shape[1] == 3 else 1.0
    kind = "nv12" if halved < _HALF_CHROMA / 2 else "jpeg"
    return max(blocks / _BLOCKS, (1 - halved) / (1 - _HALF_CHROMA)), kind


def _whole_blocks(inside: Tensor) -> slice:
    """From the first to the last pixel inside, in whole blocks of 8: the edge of a letterbox lies on some grid."""
    places = inside.nonzero()[:, 0]
    return slice(-(-int(places[0]) // 8) * 8, (int(places[-1]) + 1) // 8 * 8)
