"""The chain from PyTorch to the engine: each link a distance between the outputs of two neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from lightning_robust.deployment.parity.intervals import intervals
from lightning_robust.deployment.parity.links import EXPORTED, GRAPHS, Link, engine_names, first_engine
from lightning_robust.deployment.parity.readout import PLAIN_UNIT, Readout
from lightning_robust.deployment.parity.result import TargetResult
from lightning_robust.statistics import Interval

_FROM_FP32 = ("-fp32", "deployed-int8")  # the latter is quantised by others, and not as the Q/DQ graph here is
_FP16 = ("tensorrt-fp16", "tensorrt_rtx-fp16", "deployed-fp16", "torch-fp16", "emulated-fp16")


class Side(NamedTuple):
    """The outputs of the reference or of a target, on a scale.

    Args:
        samples: How many they are of.
        read: From a number of samples to the readout of so many of them, the first.
    """

    samples: int
    read: Callable[[int], Readout]


def find_chain(sides: Mapping[str, Side], reference: str, unit: str) -> tuple[Link, ...]:
    """The links between neighbours that were measured: fp64, fp32 graph, emulated precision, executed engine.

    Each precision branches off the fp32 graph (int8 as its Q/DQ graph), and each engine off the emulation of its
    precision, or off the fp32 graph. A graph that was not measured is passed over, but an engine without the emulation
    of its precision has no link.

    Args:
        sides: The outputs of the reference and of each target by name. Of two that hold different numbers of samples
            the first are compared.
        reference: The reference's name.
        unit: The metric that stands for a distance.

    Example:
        >>> import torch
        >>> def side(*values):
        ...     return Side(2, lambda samples: Readout([torch.tensor(values[:samples])], {}))
        >>> sides = {"torch-fp64": side(0, 2.0), "emulated-fp16": side(0, 2.1), "tensorrt-fp16": side(0, 1.9)}
        >>> [(link.key, round(link.value, 3)) for link in find_chain(sides, "torch-fp64", "rel_l2")]
        [('fp16', 0.071), ('engine/tensorrt-fp16', 0.135)]
    """
    return tuple(
        _link(sides, sides[reference], name, source, target, unit) for name, source, target in _steps(sides, reference)
    )


def neighbours(names: Iterable[str], reference: str) -> list[str]:
    """The reference and the targets that links lie between, of those that were measured, in the chain's order.

    Example:
        >>> neighbours(["torch-fp16", "openvino-bf16", "emulated-bf16", "emulated-fp16"], "torch-fp64")
        ['torch-fp64', 'emulated-fp16', 'emulated-bf16', 'openvino-bf16']
    """
    return [reference, *(target for _, _, target in _steps(names, reference))]


def bias_of(unit: str) -> str:
    """The metric that holds the bias of the values that a unit is about.

    Example:
        >>> bias_of("x_px_p99"), bias_of("rel_l2")
        ('x_px_bias', 'bias')
    """
    return "bias" if unit == PLAIN_UNIT else f"{unit.removesuffix('_p99')}_bias"


def find_engine(targets: Mapping[str, TargetResult]) -> str:
    """The executed engine that stands for the deployed one; empty where none was executed.

    Low precisions come first, and of one precision TensorRT.
    """
    return first_engine(name for name, target in targets.items() if target.status == "measured")


def fp16_metrics(targets: Mapping[str, TargetResult]) -> dict[str, float]:
    """Metrics of fp16 as it deploys: of an executed engine before PyTorch's or the emulation; empty without any."""
    return next((targets[name].metrics for name in _FP16 if name in targets and targets[name].metrics), {})


def _steps(names: Iterable[str], reference: str) -> Iterator[tuple[str, str, str]]:
    """The name, the source and the target of each link between neighbours that were measured."""
    measured = {reference, *names}
    exported = EXPORTED if EXPORTED in measured else reference
    for target, name in GRAPHS.items():
        if target in measured and target != reference:
            yield name, reference if target == EXPORTED else exported, target
    for target in engine_names():
        source = exported if target.endswith(_FROM_FP32) else f"emulated-{target.rsplit('-', 1)[1]}"
        if target in measured and source in measured:
            yield "engine", source, target


def _link(sides: Mapping[str, Side], known: Side, name: str, source: str, target: str, unit: str) -> Link:
    """The distance between the outputs of two neighbours, of the points that the reference knows."""
    both = sides[source], sides[target], known
    samples = min(side.samples for side in both)
    ours, theirs, reference = (side.read(samples) for side in both)
    ours = ours.knowing(reference)
    precision = target.rsplit("-", 1)[-1]
    metrics = ours.distance(theirs, precision)
    interval = intervals(ours, theirs, precision).get(unit, Interval(math.nan, math.nan))
    return Link(name, source, target, metrics[unit], metrics.get(bias_of(unit), math.nan), interval, samples)
