"""The detector of compression: traces of JPEG's or NV12's grid, and a search for the codec that reproduces them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from lightning_robust.deployment.fingerprint.detectors import Evidence
from lightning_robust.deployment.fingerprint.filters import (
    apply_filter,
    blockiness,
    chroma_steps,
    fit_filter,
    sharpness,
)
from lightning_robust.deployment.fingerprint.view import DETAIL_LIMIT, View
from lightning_robust.deployment.pixels.operations import jpeg, nv12

_BLOCKS = 0.05  # share of coefficients
_HALF_CHROMA = 0.75
_RESYNTHESIS = 0.05  # by how much more than on the right grid compression errs on a wrong one, and none errs
_FILTERED = 0.12  # the same beside another filter, which follows the traces that training's pictures may have
_ALONE = 4.0  # times stronger must traces be where no codec reproduces anything
_WORTH = 1.01  # error without compression over the error with it
_SHARPENED = 1.15  # error of the codec alone over that of a filter and the codec
_REFITS = 2
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


_TWO_BLOCKS = 16  # pixels, below which a grid leaves no trace to see


def _jpeg_codec(quality: int, *, full_color: bool = False) -> _Codec:
    parameters: dict[str, float | str] = {"kind": "jpeg", "quality": quality}
    if full_color:
        parameters["colors"] = "4:4:4"
    return _Codec(parameters, partial(jpeg, quality=quality, full_color=full_color), 4)


def _find_codec(source: Tensor, view: View) -> _Codec:
    """The codec that best brings pictures to the deployed ones: NV12, or JPEG at a coarse quality that is refined."""
    few = source[:_PICTURES]

    def error(codec: _Codec) -> float:
        return view.error_from(codec(few))

    best = min([_jpeg_codec(quality) for quality in _QUALITIES], key=error)
    quality = int(best.parameters["quality"])
    near = [_jpeg_codec(q) for q in range(max(quality - 2, 1), min(quality + 3, 101)) if q != quality]
    best = min([best, *near], key=error)
    if source.shape[1] == 1:
        return best
    return min(
        [best, _jpeg_codec(int(best.parameters["quality"]), full_color=True), _Codec({"kind": "nv12"}, nv12, 1)],
        key=error,
    )


def compression_evidence(trained: Tensor, view: View) -> tuple[list[Evidence], Tensor]:
    """Evidence of a compression, and training's pictures after the one that best reproduces the deployed side's.

    Beside it is the evidence of a filter that sharpens before a JPEG, which hides it from a fit of filters.

    There are two kinds of evidence. The deployed pictures lack detail on the codec's grid and not on other grids. And
    training's pictures explain the deployed ones better after compression on that grid than on one that is off by half
    a block, and better than without.
    """
    traces, kind = _grid_traces(view)
    strength = traces / _ALONE
    best = _find_codec(trained, view)
    parameters: dict[str, float | str] = {"kind": kind}
    compressed = trained
    # compression takes detail away, which pulls the estimated motion along
    polished = view.polished(best(trained))
    aligned, off_grid = (polished.error_from(best(trained, shifted)) for shifted in (False, True))
    without, limit = view.error_from(trained), _FILTERED if view.needs_filter else _RESYNTHESIS
    if _WORTH * aligned < without:
        strength = max(strength, (min(off_grid, without) / max(aligned, 1e-3) - 1) / limit)
        parameters, compressed = best.parameters, best(trained)
    if strength < 1:
        return [], trained
    found = [Evidence("compression", parameters, strength)]
    sharper = None if view.needs_filter or compressed is trained else _sharper_before(best, trained, view)
    return (found, compressed) if sharper is None else sharper


def _sharper_before(codec: _Codec, trained: Tensor, view: View) -> tuple[list[Evidence], Tensor] | None:
    """Evidence of a filter that sharpens before a codec and of both, and training's pictures after both.

    The codec takes detail away, and a fit of filters sees what is left of both. So what it takes from training's
    pictures is given back to the deployed ones before the filter is fitted, and again with the filtered pictures.
    """
    alone, source = view.error_from(codec(trained)), trained
    for _ in range(_REFITS):
        taken = view.predict(source) - view.predict(codec(source))
        taps, _ = fit_filter(view.predicted.mean(1), (view.deployed + taken).mean(1), view.mask)
        detail = sharpness(taps)
        if math.log(max(detail, 1e-3)) < DETAIL_LIMIT:
            return None
        source = apply_filter(trained, taps / taps.sum())
        codec = _find_codec(source, view)
    gain = alone / max(view.error_from(codec(source)), 1e-3) - 1
    strength = gain / (_SHARPENED - 1)
    if strength < 1:
        return None
    sharper = Evidence("resize_filter", {"kind": "sharper", "sharpness": detail}, strength)
    return [Evidence("compression", codec.parameters, gain / _RESYNTHESIS), sharper], codec(source)


def _grid_traces(view: View) -> tuple[float, str]:
    """The strength of the traces of a codec's grid in the deployed pictures, and the codec's kind."""
    rows, columns = (_whole_blocks(view.mask.any(axis)) for axis in (1, 0))
    shown = view.deployed[..., rows, columns]
    if min(shown.shape[-2:]) < _TWO_BLOCKS:
        return 0.0, "jpeg"
    expected = view.filtered.round()[..., rows, columns]  # training's pictures may have traces of their own
    blocks = blockiness(shown.mean(1)) - blockiness(expected.mean(1))
    halved = chroma_steps(shown) / max(chroma_steps(expected), _HALF_CHROMA / 2) if shown.shape[1] == 3 else 1.0
    kind = "nv12" if halved < _HALF_CHROMA / 2 else "jpeg"
    return max(blocks / _BLOCKS, (1 - halved) / (1 - _HALF_CHROMA)), kind


def _whole_blocks(inside: Tensor) -> slice:
    """From the first to the last pixel inside, in whole blocks of 8: the edge of a letterbox lies on some grid."""
    places = inside.nonzero()[:, 0]
    if not len(places):
        return slice(0, 0)
    return slice(-(-int(places[0]) // 8) * 8, (int(places[-1]) + 1) // 8 * 8)
