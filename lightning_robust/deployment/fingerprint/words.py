"""Causes in words: a sentence for each difference, and the line of preprocessing that would produce it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Parameters = Mapping[str, float | str]


@dataclass(frozen=True)
class Cause:
    """One difference in the deployed side's preprocessing.

    Args:
        name: One of ``channel_order``, ``gain_offset``, ``gamma``, ``color_matrix``, ``color_range``, ``shift``,
            ``crop``, ``resize_filter``, ``rounding``, ``compression``, ``noise``.
        parameters: Plain numbers and strings, e.g. ``{"dx": 0.5, "dy": 0.5}`` in pixels.
        confidence: ``1 - 1 / (2 s)`` where the evidence is ``s`` times its threshold: 0.5 at the threshold, near 1
            where nothing simpler comes close. It orders causes; it is no probability.
        sentence: The difference in words.
        line: Code that would produce it.
    """

    name: str
    parameters: Parameters
    confidence: float
    sentence: str
    line: str


@dataclass(frozen=True)
class Fingerprint:
    """What differs between trained and deployed pictures.

    Args:
        causes: Most likely first; empty where nothing differs, or where the pictures do not allow a conclusion.
        distance: Root mean square difference in levels of 8 bits, as dumped.
        unexplained: The part of it that the causes do not explain, in the same unit.
        note: Units that were guessed, or why the pictures do not allow a conclusion.
    """

    causes: tuple[Cause, ...]
    distance: float
    unexplained: float
    note: str = ""

    def __str__(self) -> str:
        """Sentences for a terminal."""
        lines = [f"The pictures differ by {self.distance:.2f} levels (root mean square of 255)."]
        lines += [f"{c.name} ({c.confidence:.0%}): {c.sentence}\n    {c.line}" for c in self.causes]
        if self.causes:
            lines.append(f"That leaves {self.unexplained:.2f} levels.")
        return "\n".join(lines + ([self.note] if self.note else []))


def describe(name: str, parameters: Parameters, strength: float) -> Cause:
    """A cause with its sentence and line; ``strength`` is the evidence in multiples of its threshold."""
    sentence, line = _DESCRIPTIONS[name](parameters)
    return Cause(name, parameters, 1 - 0.5 / max(strength, 1.0), sentence, line)


def _describe_channel_order(p: Parameters) -> tuple[str, str]:
    line = "cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)  # missing on the deployed side, or done twice"
    return f"the deployed side feeds channels as {p['order']} where training has RGB", line


def _describe_gain_offset(p: Parameters) -> tuple[str, str]:
    fitted = ", ".join(f"{key} {value:.4g}" for key, value in p.items() if isinstance(value, float))
    line = "pixels = (pixels / 255 - mean) / std  # compare divisor (255 or 256), mean and std on both sides"
    return f"the deployed side's values are a gain and an offset in levels away from training's: {fitted}", line


def _describe_gamma(p: Parameters) -> tuple[str, str]:
    line = f"pixels = pixels ** {p['gamma']:.3g}  # a camera profile or tone curve that training did not have"
    return f"the deployed side's pixels are training's to the power of {p['gamma']:.3f}", line


def _describe_color_matrix(p: Parameters) -> tuple[str, str]:
    line = "yuv_to_rgb(frame, matrix=...)  # BT.601 and BT.709 disagree: take the one that the encoder wrote"
    return f"the matrix from YCbCr to RGB is another: {p['read']}", line


def _describe_color_range(p: Parameters) -> tuple[str, str]:
    line = "yuv_to_rgb(frame, range=...)  # luma from 16 to 235 (limited) or from 0 to 255 (full)"
    return f"the range of YCbCr is another: {p['read']}", line


def _describe_shift(p: Parameters) -> tuple[str, str]:
    line = "x = (column + 0.5) * scale - 0.5  # the half pixel is missing on one side, or the crop begins elsewhere"
    where = f"{p['dx']:+.2f} px to the right and {p['dy']:+.2f} px down of training's"
    return f"the deployed side's content lies {where}", line


def _describe_crop(p: Parameters) -> tuple[str, str]:
    edges = f"columns {p['left']:.1f} to {p['right']:.1f} and rows {p['top']:.1f} to {p['bottom']:.1f}"
    line = "frame[top:bottom, left:right]  # before the resize; or padding to keep the aspect ratio, on one side only"
    return f"the deployed side's picture is a {p['kind']}: it shows {edges} of training's", line


def _describe_resize_filter(p: Parameters) -> tuple[str, str]:
    sentence, line = _RESIZE_FILTERS[str(p["kind"])]
    return f"{sentence} (gain {p['sharpness']:.2f} at high frequencies)", line


_RESIZE_FILTERS = {
    "nearest": (
        "the deployed side takes the nearest pixel when it resizes",
        "cv2.resize(..., interpolation=cv2.INTER_NEAREST)  # where training interpolates",
    ),
    "align_corners": (
        "the deployed side resizes from corner pixel to corner pixel",
        "interpolate(..., align_corners=True)  # where training has half-pixel centres",
    ),
    "sharper": (
        "the deployed side's resize filter keeps more detail than training's",
        "cv2.resize(..., interpolation=cv2.INTER_LINEAR)  # where training used PIL or antialias=True",
    ),
    "smoother": (
        "the deployed side's resize filter keeps less detail than training's",
        "interpolate(..., antialias=True)  # or PIL, where training used cv2.INTER_LINEAR",
    ),
}


def _describe_rounding(p: Parameters) -> tuple[str, str]:
    if p["kind"] == "cut off":
        return (
            "the deployed side cuts values off to 8 bits where training rounds: half a level darker on average",
            "(pixels * 255).astype(np.uint8)  # instead of np.rint(pixels * 255).astype(np.uint8)",
        )
    return (
        f"the deployed side's values have fewer levels: {p['levels']:.0f} where training has {p['expected']:.0f}",
        "frame >> 1 << 1  # a buffer, an encoder or a quantised input with fewer than 8 bits",
    )


def _describe_compression(p: Parameters) -> tuple[str, str]:
    if p["kind"] == "nv12":
        return (
            "the deployed side's colours have half the resolution",
            "cv2.cvtColor(frame, cv2.COLOR_YUV2RGB_NV12)  # frames in 4:2:0, training had full colour",
        )
    quality = f" of quality about {p['quality']:.0f}" if "quality" in p else ""
    return (
        f"the deployed side's pictures went through JPEG or the like{quality}",
        "cv2.imencode('.jpg', frame)  # or a video codec",
    )


def _describe_noise(p: Parameters) -> tuple[str, str]:
    line = "frame = sensor.read()  # gain, exposure or denoising differ, or the two dumps are not of one frame"
    return f"the deployed side's pictures have noise of {p['std']:.2f} levels that training's have not", line


_DESCRIPTIONS: dict[str, Callable[[Parameters], tuple[str, str]]] = {
    "channel_order": _describe_channel_order,
    "gain_offset": _describe_gain_offset,
    "gamma": _describe_gamma,
    "color_matrix": _describe_color_matrix,
    "color_range": _describe_color_range,
    "shift": _describe_shift,
    "crop": _describe_crop,
    "resize_filter": _describe_resize_filter,
    "rounding": _describe_rounding,
    "compression": _describe_compression,
    "noise": _describe_noise,
}
