"""The chain from PyTorch to the engine: each link a distance between the outputs of two neighbours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lightning_robust.deployment.parity.intervals import intervals
from lightning_robust.deployment.parity.result import Basis, TargetResult
from lightning_robust.deployment.parity.scale import PLAIN_UNIT, Readout
from lightning_robust.statistics import Interval

History = Sequence[tuple[int, dict[str, float]]]
"""``(epoch, attribution)`` of each pass of a run."""
LINKS = ("export", "tf32", "fp16", "bf16", "engine", "preprocessing")
"""The names of links, in the chain's order."""
_EXPORTED, _TF32 = "onnxruntime-fp32", "emulated-tf32"
_ENGINES = ("tensorrt", "tensorrt_rtx")
_HALVES = ("fp16", "bf16")
_FP16 = ("tensorrt-fp16", "tensorrt_rtx-fp16", "torch-fp16", "emulated-fp16")


@dataclass(frozen=True)
class Link:
    """One step of the chain: what it alone does to the outputs.

    Args:
        name: One of :data:`LINKS`, as in the tag ``attribution/<name>``.
        source: Whose outputs it starts from: the reference, or a target.
        target: Whose outputs it arrives at.
        value: The distance between these two sets of outputs, in the report's unit. It is no difference of two
            distances to the reference, so that links do not add up, and one that leads back shows too.
        bias: The signed mean of the deviations, of the same values as the unit.
        interval: Of ``value``, 95 %; NaN where it is not known.
        samples: Number of inputs.
    """

    name: str
    source: str
    target: str
    value: float
    bias: float
    interval: Interval
    samples: int

    @property
    def basis(self) -> Basis:
        """What the distance rests on."""
        return Basis(self.samples, *self.interval)


def find_chain(readouts: Mapping[str, Readout], reference: str, unit: str) -> tuple[Link, ...]:
    """The links between neighbours that were measured: fp64, fp32 graph, emulated precision, executed engine.

    The chain is that of fp16, or of bf16 where no fp16 was measured; TF32 branches off the fp32 graph. A neighbour that
    was not measured is passed over, but the link of the engine begins at the emulation, or there is none.

    Args:
        readouts: The outputs of the reference and of each target, on a scale, by name. Of two that hold different
            numbers of samples the first are compared.
        reference: The reference's name.
        unit: The metric that stands for a distance.

    Example:
        >>> import torch
        >>> outputs = {"torch-fp64": [0.0, 2.0], "emulated-fp16": [0.0, 2.1], "tensorrt-fp16": [0.0, 1.9]}
        >>> readouts = {name: Readout([torch.tensor(values)], {}) for name, values in outputs.items()}
        >>> [(link.name, round(link.value, 3)) for link in find_chain(readouts, "torch-fp64", "rel_l2")]
        [('fp16', 0.071), ('engine', 0.135)]
    """
    return tuple(_links(readouts, reference, unit))


def neighbours(names: Iterable[str], reference: str) -> list[str]:
    """The reference and the targets that links lie between, of those that were measured, in the chain's order.

    Example:
        >>> neighbours(["torch-fp16", "emulated-bf16", "emulated-fp16"], "torch-fp64")
        ['torch-fp64', 'emulated-fp16']
    """
    measured = {reference, *names}
    half = next((half for half in _HALVES if f"emulated-{half}" in measured), None)
    chain = [reference, _EXPORTED, *[f"emulated-{half}", *(f"{name}-{half}" for name in _ENGINES)] * (half is not None)]
    found = [name for name in chain if name in measured]
    engines = [name for name in found if name.startswith(_ENGINES)]
    return [name for name in found if name not in engines[1:]] + [_TF32] * (_TF32 in measured)


def bias_of(unit: str) -> str:
    """The metric that holds the bias of the values that a unit is about.

    Example:
        >>> bias_of("x_px_p99"), bias_of("rel_l2")
        ('x_px_bias', 'bias')
    """
    return "bias" if unit == PLAIN_UNIT else f"{unit.removesuffix('_p99')}_bias"


def find_engine(targets: Mapping[str, TargetResult]) -> str:
    """The executed half precision engine that the chain leads to; empty where none was executed."""
    names = [f"{name}-{half}" for half in _HALVES for name in _ENGINES]
    return next((name for name in names if name in targets and targets[name].status == "measured"), "")


def fp16_metrics(targets: Mapping[str, TargetResult]) -> dict[str, float]:
    """Metrics of fp16 as it deploys: of an executed engine before PyTorch's or the emulation; empty without any."""
    return next((targets[name].metrics for name in _FP16 if name in targets and targets[name].metrics), {})


def _link(readouts: Mapping[str, Readout], known: Readout, name: str, source: str, target: str, unit: str) -> Link:
    """The distance between the outputs of two neighbours, of the points that the reference knows."""
    samples = min(map(_samples, (readouts[source], readouts[target], known)))
    ours, theirs, reference = (each.rows(slice(samples)) for each in (readouts[source], readouts[target], known))
    ours = ours.knowing(reference.known)
    precision = target.rsplit("-", 1)[-1]
    metrics = ours.distance(theirs, precision)
    interval = intervals(ours, theirs, precision).get(unit, Interval(math.nan, math.nan))
    return Link(name, source, target, metrics[unit], metrics[bias_of(unit)], interval, samples)


def _links(readouts: Mapping[str, Readout], reference: str, unit: str) -> Iterator[Link]:
    names = neighbours(readouts, reference)
    for source, target in pairwise(name for name in names if name != _TF32):
        yield _link(readouts, readouts[reference], _step_to(target), source, target, unit)
    if _TF32 in names:
        source = _EXPORTED if _EXPORTED in names else reference
        yield _link(readouts, readouts[reference], "tf32", source, _TF32, unit)


def _step_to(target: str) -> str:
    """The name of the link that arrives at a target."""
    if target == _EXPORTED:
        return "export"
    return "engine" if target.startswith(_ENGINES) else target.removeprefix("emulated-")


def _samples(readout: Readout) -> int:
    first = readout.outputs[0]
    return len(first) if first.ndim else 1
