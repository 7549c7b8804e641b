"""Laziness beside vulnerability in words and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning_robust.callbacks.diagnostics import Report, Table
from lightning_robust.callbacks.lazy_training.figure import Measurement, laziness_figures, longest_step
from lightning_robust.tables import number


def lazy_report(history: Sequence[Measurement], lazy_below: float, vulnerable_above: float) -> Report:
    """The table of the last measurement and the figures of all; arguments as of :func:`laziness_figures`."""
    return Report(
        tables={"lazy/layers": laziness_table(history[-1].numbers)},
        figures=laziness_figures(history, lazy_below, vulnerable_above),
    )


def describe_laziness(numbers: Mapping[str, float]) -> str:
    """How far the weights moved, and what one gradient step changes.

    Example:
        >>> describe_laziness({"movement": 0.25, "single_step@2": 0.4})
        'the weights moved by 25.0% of their length; one gradient step of 2 |x| / sqrt(d) changes 40% of predictions'
    """
    parts = [f"the weights moved by {numbers['movement']:.1%} of their length"] if "movement" in numbers else []
    if step := longest_step(numbers):
        parts.append(f"one gradient step of {step[0]:g} |x| / sqrt(d) changes {step[1]:.0%} of predictions")
    return "; ".join(parts) or "measured"


def describe_danger(numbers: Mapping[str, float], lazy_below: float, vulnerable_above: float) -> str:
    """A warning where training was lazy and one step fools the network; else empty."""
    step, movement = longest_step(numbers), numbers.get("movement", 1.0)
    if step is None or movement >= lazy_below or step[1] <= vulnerable_above:
        return ""
    return (
        f"Training was lazy and the network is easily fooled: its weights moved by {movement:.1%} of their length, and "
        f"one gradient step of {step[0]:g} |x| / sqrt(d) changes {step[1]:.0%} of the right predictions. What helps "
        "most is adversarial training (`adversarial`); a smaller width or a larger learning rate lets the weights "
        "move further, which may help. Thresholds: `lazy_below`, `vulnerable_above`."
    )


def laziness_table(numbers: Mapping[str, float]) -> Table:
    """A line for each layer; the last is the whole network.

    Weights as a share of their length, the neuron in units of one over the square root of the width, signs of
    activations as a share.
    """
    columns = ["layer", "weights moved", "neuron moved most", "signs changed"]
    layers = list(dict.fromkeys(tag.partition("/")[2] for tag in numbers if "/" in tag))
    lines = [("whole network", ""), *((name, f"/{name}") for name in layers)]
    kinds = ("movement", "neuron_movement", "sign_changes")
    rows = [[name, *(number(numbers.get(f"{kind}{end}")) for kind in kinds)] for name, end in lines]
    return columns, [*rows[1:], rows[0]]
