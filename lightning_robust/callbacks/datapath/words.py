"""A datapath in sentences: what is good, what is bad, and where to look."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_robust.callbacks.conditions import ATTACK, PGD
from lightning_robust.callbacks.datapath.measure import CARRIED_SHARE, Datapath
from lightning_robust.callbacks.datapath.paths import Paths
from lightning_robust.tables import number, percent, shorten

_WORDS = {ATTACK: "the FGSM attack", PGD: "the PGD attack", "fp16": "fp16 rounding", "bf16": "bf16 rounding"}
_HARMLESS = 0.01
"""A change of the last layer below it is good, however it grew."""
_NAME_WIDTH = 24


def condition_words(name: str) -> str:
    """A condition as sentences name it.

    Example:
        >>> condition_words("pgd"), condition_words("jpeg_90"), condition_words("motion_blur@3")
        ('the PGD attack', 'jpeg 90', 'motion blur of severity 3')
    """
    return _WORDS.get(name, name.replace("_", " ").replace("@", " of severity "))


def judge(result: Datapath) -> str:
    """What the network does with the perturbation and whether that is good, in a sentence without its full stop."""
    name = condition_words(result.condition)
    name = name[0].upper() + name[1:]
    if not any(result.values):
        return f"{name} changes nothing: good"
    for place, value in enumerate(result.values):
        if not math.isfinite(value):
            return f"{name} overflows: look at {_short_name(result, place)}"
    return f"{name} {_describe_course(result)}"


def _describe_course(result: Datapath) -> str:
    """Of finite changes, as a predicate."""
    last, end = _short_name(result, len(result.layers) - 1), result.values[-1]
    start, origin = (
        (result.values[0], "after the first layer") if result.start is None else (result.start, "of the input")
    )
    course = f"from {percent(start)} {origin} to {percent(end)} at {last}"
    if end >= result.factor * start and end >= _HARMLESS:
        place, growth = steepest(result)
        return f"grows {course}: look at {_short_name(result, place)} ({number(growth, 2)} x)"
    if end < _HARMLESS:
        return f"changes {last} by {percent(end)} only: good"
    return f"fades {course}: good" if end * result.factor <= start else f"keeps its size, {course}"


def steepest(result: Datapath) -> tuple[int, float]:
    """The layer that makes the change larger than any other does, and how many times."""
    values = result.values
    before = [values[0] if result.start is None else result.start, *values[:-1]]
    growth = [now / then if then > 0 else 0.0 for now, then in zip(values, before, strict=True)]
    place = max(range(len(growth)), key=growth.__getitem__)
    return place, growth[place]


def describe_datapath(result: Datapath) -> str:
    """The result in a few sentences."""
    sentences = [judge(result), *_describe_noise(result), *_describe_carriers(result)]
    if result.paths is not None and any(result.values):
        sentences.append(tell_paths(result, result.paths))
    return " ".join(f"{sentence}." for sentence in sentences)


def tell_channels(result: Datapath) -> str:
    """The channel that changes most."""
    tops = [layer.levels.nan_to_num(posinf=math.inf).max().item() for layer in result.layers]
    place = max(range(len(tops)), key=tops.__getitem__)
    if not tops[place]:
        return "No channel changes"
    channel = int(result.layers[place].levels.nan_to_num(posinf=math.inf).argmax())
    size = "without bound" if math.isinf(tops[place]) else f"by {percent(tops[place])}"
    return f"Channel {channel} of {_short_name(result, place)} changes most, {size}"


def tell_paths(result: Datapath, paths: Paths) -> str:
    """How many predictions change, and where the paths of these turn."""
    changed, count = int(paths.changed.sum()), len(paths.changed)
    if not changed:
        return f"None of {count} predictions changes"
    text = f"{changed} of {count} predictions change"
    if paths.merging is None:
        return f"{text}, and no layer goes over to the wrong class's channels"
    return f"{text}: from {_short_name(result, paths.merging)} on they rest on the wrong class's channels"


def noise_ratios(result: Datapath) -> list[float]:
    """How many times the change under noise each layer's is; of its first layer's where there is no such noise."""
    return _quotients(result.values, result.controls or [result.values[0]] * len(result.layers))


def _describe_noise(result: Datapath) -> list[str]:
    if result.controls is None or not any(result.values):
        return []
    ratio = noise_ratios(result)[-1]
    noise = f"Random noise of the same size changes the last layer by {percent(result.controls[-1])}"
    if ratio >= result.factor:
        return [f"{noise}, {number(ratio, 2)} times less: the weakness is to this perturbation, not to any"]
    return [f"{noise}: about as much"]


def _describe_carriers(result: Datapath) -> list[str]:
    if not any(result.values):
        return []
    place = steepest(result)[0]
    layer = result.layers[place]
    carriers = f"{len(layer.carriers(CARRIED_SHARE))} of {len(layer.clean)} channels"
    return [f"In `{layer.name}`, {carriers} carry {CARRIED_SHARE:.0%} of the change"]


def _short_name(result: Datapath, place: int) -> str:
    return shorten(result.layers[place].name, _NAME_WIDTH)


def _quotients(values: Sequence[float], others: Sequence[float]) -> list[float]:
    return [v / o if o > 0 else math.inf if v else 0.0 for v, o in zip(values, others, strict=True)]
