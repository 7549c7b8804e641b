"""Causes in words: a sentence for each difference, and the line of preprocessing that would produce it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from lightning_robust.deployment.fingerprint.arrangement_words import TEXTS

Parameters = Mapping[str, float | str]
UNEXPLAINED = 0.35
"""Levels from which a difference that no cause explains is one."""
_ROUNDED = 0.5  # levels that rounding on both sides leaves at most
_SAME = 0.005  # levels that are told as 0.00
_MOST = 1 / 3  # of the difference
_UNSURE = 0.5  # the highest confidence where most is not explained
_NAMED = 0.1  # causes below are not named


@dataclass(frozen=True)
class Cause:
    """One difference in the deployed side's preprocessing.

    Args:
        name: One of ``channel_order``, ``gain_offset``, ``gamma``, ``color_matrix``, ``color_range``, ``grey``,
            ``shift``, ``crop``, ``rotation``, ``lens``, ``resize_filter``, ``rounding``, ``compression``, ``noise``,
            ``overlay``, and those of ``arrangement_words.py``: ``orientation``, ``memory_layout``, ``frame_sequence``,
            ``input_type``.
        parameters: Plain numbers and strings, e.g. ``{"dx": 0.5, "dy": 0.5}`` in pixels.
        confidence: ``1 - 1 / (2 s)`` where the evidence is ``s`` times its threshold: 0.5 at the threshold, near 1
            where nothing simpler comes close. Where more than a third of the difference is left, at most 0.5, and the
            less the more is left. It orders causes; it is no probability.
        sentence: The difference in words.
        line: Code that would produce it.
    """

    name: str
    parameters: Parameters
    confidence: float
    sentence: str
    line: str

    def __str__(self) -> str:
        """Its name, how sure it is, and the difference in words."""
        return f"{self.name} ({self.confidence:.0%}): {self.sentence}"


@dataclass(frozen=True)
class Fingerprint:
    """What differs between trained and deployed pictures.

    Args:
        causes: Most likely first; empty where nothing differs, or where the pictures do not allow a conclusion.
        distance: Root mean square difference in levels of 8 bits, as dumped, but for units: those of both sides are
            brought to levels first, and where they differ that is a cause.
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
    def mostly_unexplained(self) -> bool:
        """Whether more than a third of the difference is left, beyond what rounding leaves."""
        return self.conclusive and unexplained_share(self.distance, self.unexplained) > _MOST

    @property
    def differs(self) -> bool:
        """Whether anything differs to speak of, explained or not."""
        return self.conclusive and (bool(self.causes) or self.unexplained > UNEXPLAINED)

    def __str__(self) -> str:
        """Sentences for a terminal."""
        lines = [f"The pictures differ by {self.distance:.2f} levels (root mean square of 255)."]
        if self.causes and self.distance < _SAME:
            lines = ["Brought to the same units the pictures are the same; as they are handed over they are not."]
        if self.mostly_unexplained:
            lines = [f"Most of it is not explained: {self.unexplained:.2f} levels are left.", *lines]
        lines += [f"{cause}\n    {cause.line}" for cause in self.causes]
        if self.causes and not self.mostly_unexplained:
            lines.append(f"That leaves {self.unexplained:.2f} levels.")
        return "\n".join(lines + ([self.note] if self.note else []))


def unexplained_share(distance: float, unexplained: float) -> float:
    """The share of a difference that is left, without what rounding leaves; both in levels.

    Example:
        >>> unexplained_share(10.0, 5.0) > 0.49, unexplained_share(0.7, 0.5)
        (True, 0.0)
    """
    left: float = max(unexplained**2 - _ROUNDED**2, 0.0) ** 0.5
    return min(left / max(distance, 1e-9), 1.0)


def weigh_causes(causes: Iterable[Cause], distance: float, unexplained: float) -> tuple[Cause, ...]:
    """Causes by confidence, which is at most a half where more than a third of the difference is left."""
    left = unexplained_share(distance, unexplained)
    if left > _MOST:
        most = _UNSURE * (1 - left) / (1 - _MOST)
        causes = [replace(cause, confidence=most * cause.confidence) for cause in causes]
    named = (cause for cause in causes if cause.confidence >= _NAMED)
    return tuple(sorted(named, key=lambda cause: cause.confidence, reverse=True))


def describe_cause(name: str, parameters: Parameters, strength: float) -> Cause:
    """A cause with its sentence and line; ``strength`` is the evidence in multiples of its threshold."""
    numbers = (f"{key} {value:.4g}" for key, value in parameters.items() if isinstance(value, float))
    quality = f" of quality about {parameters['quality']:.0f}" if "quality" in parameters else ""
    k = float(parameters.get("k", 0.0))
    signed = f"{'-' if k < 0 else '+'} {abs(k):.4f}"
    values = {"part": "a crop", **parameters, "numbers": ", ".join(numbers), "of_quality": quality, "signed": signed}
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
        "the deployed side's picture is {part}: it shows " + _VISIBLE + " of training's",
        "frame[top:bottom, left:right]  # before the resize; or padding to keep the aspect ratio, on one side only",
    ),
    "crop/letterbox": (
        "the deployed side's picture is a letterbox: all of training's, {zoom_x:.3f} x {zoom_y:.3f} between bars",
        "cv2.copyMakeBorder(...)  # padding to keep the aspect ratio, where training stretches",
    ),
    "crop/bars cut": (
        "training's picture is a letterbox, the deployed side's has no bars: it shows " + _VISIBLE + " of training's",
        "frame[top:bottom, left:right]  # or: training pads to keep the aspect ratio, the deployed side stretches",
    ),
    "crop/wider": (
        "training's picture is a crop of what the deployed side shows, which reaches over "
        + _VISIBLE
        + " of training's",
        "frame[top:bottom, left:right]  # training's crop, missing on the deployed side",
    ),
    "rotation": (
        "the deployed side's content is turned by {degrees:+.2f} degrees clockwise",
        "cv2.warpAffine(frame, ...)  # the camera's pose, or a rectification that one side lacks",
    ),
    "lens": (
        "the deployed side has another lens: what lies at r of half the diagonal comes from r (1 {signed} r^2)",
        "cv2.undistort(frame, camera, distortion)  # on one side only, or with another calibration",
    ),
    "overlay": (
        "columns {left:.0f} to {right:.0f} and rows {top:.0f} to {bottom:.0f} of the deployed side's are covered",
        "frame[top:bottom, left:right] = ...  # a logo, a text, a mask or dirt on the lens",
    ),
    "grey": (
        "the deployed side feeds grey in three channels where training has colour: {luma}",
        "cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)  # on the deployed side only",
    ),
    "grey/trained": (
        "training feeds grey in three channels where the deployed side has colour: {luma}",
        "cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)  # in training only",
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
        "the deployed side's resize filter keeps more detail than training's, or it sharpens" + _SHARPNESS,
        "cv2.resize(..., interpolation=cv2.INTER_LINEAR)  # where training used PIL or antialias=True",
    ),
    "resize_filter/smoother": (
        "the deployed side's resize filter keeps less detail than training's, or it blurs" + _SHARPNESS,
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
    "compression/chroma": (
        "the deployed side's colours have less detail than its brightness (gain {sharpness:.2f} at high frequencies)",
        "cv2.cvtColor(frame, cv2.COLOR_YUV2RGB_NV12)  # 4:2:0 before the resize, another upsampling, or a video codec",
    ),
    "compression/sharper chroma": (
        "the deployed side's colours have more detail than training's, beside its brightness (gain {sharpness:.2f})",
        "interpolate(chroma, size)  # planes resized before the conversion to RGB, or 4:4:4 where training had 4:2:0",
    ),
    "compression/siting": (
        "the deployed side's colours lie {dx:+.2f} pixels right and {dy:+.2f} down of their brightness",
        "resize(chroma)  # 4:2:0 read with another siting, or planes resized before the conversion to RGB",
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
