"""Causes in words: a sentence for each difference, and the line of preprocessing that would produce it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lightning_robust.deployment.fingerprint.arrangement_words import TEXTS

Parameters = Mapping[str, float | str]
UNEXPLAINED = 0.35
"""Levels from which a difference that no cause explains is one."""


@dataclass(frozen=True)
class Cause:
    """One difference in the deployed side's preprocessing.

    Args:
        name: One of ``channel_order``, ``gain_offset``, ``gamma``, ``color_matrix``, ``color_range``, ``shift``,
            ``crop``, ``resize_filter``, ``rounding``, ``compression``, ``noise``, and
            those of ``arrangement_words.py``.
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
        conclusive: Whether they allow one.
    """

    causes: tuple[Cause, ...]
    distance: float
    unexplained: float
    note: str = ""
    conclusive: bool = True

    @property
    def differs(self) -> bool:
        """Whether anything differs to speak of, explained or not."""
        return self.conclusive and (bool(self.causes) or self.unexplained > UNEXPLAINED)

    def __str__(self) -> str:
        """Sentences for a terminal."""
        lines = [f"The pictures differ by {self.distance:.2f} levels (root mean square of 255)."]
        lines += [f"{c.name} ({c.confidence:.0%}): {c.sentence}\n    {c.line}" for c in self.causes]
        if self.causes:
            lines.append(f"That leaves {self.unexplained:.2f} levels.")
        return "\n".join(lines + ([self.note] if self.note else []))


def describe_cause(name: str, parameters: Parameters, strength: float) -> Cause:
    """A cause with its sentence and line; ``strength`` is the evidence in multiples of its threshold."""
    numbers = (f"{key} {value:.4g}" for key, value in parameters.items() if isinstance(value, float))
    quality = f" of quality about {parameters['quality']:.0f}" if "quality" in parameters else ""
    values = {**parameters, "numbers": ", ".join(numbers), "of_quality": quality}
    kind = f"{name}/{parameters.get('kind')}"
    sentence, line = (text.format_map(values) for text in _TEXTS[kind if kind in _TEXTS else name])
    return Cause(name, parameters, 1 - 0.5 / max(strength, 1.0), sentence, line)


_VISIBLE = "columns {left:.1f} to {right:.1f} and rows {top:.1f} to {bottom:.1f}"
_SHARPNESS = " (gain {sharpness:.2f} at high frequencies)"
_TEXTS = {
    **TEXTS,
    "channel_order": (
        "the deployed side feeds channels as {order} where training has RGB",
        "cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)  # missing on the deployed side, or done twice",
    ),
    "gain_offset": (
        "the deployed side's values are a gain and an offset in levels away from training's: {numbers}",
        "pixels = (pixels / 255 - mean) / std  # compare divisor (255 or 256), mean and std on both sides",
    ),
    "gamma": (
        "the deployed side's pixels are training's to the power of {gamma:.3f}",
        "pixels = pixels ** {gamma:.3g}  # a camera profile or tone curve that training did not have",
    ),
    "color_matrix": (
        "the matrix from YCbCr to RGB is another: {read}",
        "yuv_to_rgb(frame, matrix=...)  # BT.601 and BT.709 disagree: take the one that the encoder wrote",
    ),
    "color_range": (
        "the range of YCbCr is another: {read}",
        "yuv_to_rgb(frame, range=...)  # luma from 16 to 235 (limited) or from 0 to 255 (full)",
    ),
    "shift": (
        "the deployed side's content lies {dx:+.2f} px to the right and {dy:+.2f} px down of training's",
        "x = (column + 0.5) * scale - 0.5  # the half pixel is missing on one side, or the crop begins elsewhere",
    ),
    "crop": (
        "the deployed side's picture is a {kind}: it shows " + _VISIBLE + " of training's",
        "frame[top:bottom, left:right]  # before the resize; or padding to keep the aspect ratio, on one side only",
    ),
    "resize_filter/nearest": (
        "the deployed side takes the nearest pixel when it resizes" + _SHARPNESS,
        "cv2.resize(..., interpolation=cv2.INTER_NEAREST)  # where training interpolates",
    ),
    "resize_filter/align_corners": (
        "the deployed side resizes from corner pixel to corner pixel" + _SHARPNESS,
        "interpolate(..., align_corners=True)  # where training has half-pixel centres",
    ),
    "resize_filter/sharper": (
        "the deployed side's resize filter keeps more detail than training's" + _SHARPNESS,
        "cv2.resize(..., interpolation=cv2.INTER_LINEAR)  # where training used PIL or antialias=True",
    ),
    "resize_filter/smoother": (
        "the deployed side's resize filter keeps less detail than training's" + _SHARPNESS,
        "interpolate(..., antialias=True)  # or PIL, where training used cv2.INTER_LINEAR",
    ),
    "rounding/cut off": (
        "the deployed side cuts values off to 8 bits where training rounds: half a level darker on average",
        "(pixels * 255).astype(np.uint8)  # instead of np.rint(pixels * 255).astype(np.uint8)",
    ),
    "rounding/fewer levels": (
        "the deployed side's values have fewer levels: {levels:.0f} where training has {expected:.0f}",
        "frame >> 1 << 1  # a buffer, an encoder or a quantised input with fewer than 8 bits",
    ),
    "compression/nv12": (
        "the deployed side's colours have half the resolution",
        "cv2.cvtColor(frame, cv2.COLOR_YUV2RGB_NV12)  # frames in 4:2:0, training had full colour",
    ),
    "compression/jpeg": (
        "the deployed side's pictures went through JPEG or the like{of_quality}",
        "cv2.imencode('.jpg', frame)  # or a video codec",
    ),
    "noise": (
        "the deployed side's pictures have noise of {std:.2f} levels that training's have not",
        "frame = sensor.read()  # gain, exposure or denoising differ, or the two dumps are not of one frame",
    ),
}
"""Cause, or cause and kind -> the sentence and the line, with places for the parameters."""
