"""The numbers of one parity pass: a result for each target, and the report that holds them all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from lightning_robust.deployment.engines.execution import STATUS_CODES, Status
from lightning_robust.deployment.engines.latency import Latency
from lightning_robust.deployment.graph.lint import Finding
from lightning_robust.deployment.numerics.keep_list import KeepList
from lightning_robust.deployment.numerics.sensitivity import Sensitivity
from lightning_robust.deployment.parity.latency import LatencyPoint
from lightning_robust.deployment.parity.links import Basis, Link, chain_scalars
from lightning_robust.deployment.parity.scale import mean_of
from lightning_robust.deployment.parity.scenes import WorstPicture
from lightning_robust.deployment.pixels.catalogue import CATALOGUE

BEYOND = "beyond_geometry"
"""The metric of a perturbation: how far it moves the outputs on average beyond what it does to the picture."""
STORAGE = "storage"
"""The metric of a target: what merely storing the exact outputs in its precision costs, in the unit."""


@dataclass(frozen=True)
class MeasuredWeights:
    """Which weights a report is of.

    Args:
        epoch: Of the training; None where there was none.
        step: Of the training.
        checkpoint: The file, where they were read from one.
        digest: The first digits of their SHA-256.
    """

    epoch: int | None = None
    step: int | None = None
    checkpoint: str = ""
    digest: str = ""

    def __str__(self) -> str:
        """As in a report: ``weights of epoch 3, step 188, last.ckpt (9f2c51d0)``; empty if nothing is known of them."""
        parts = [] if self.epoch is None else [f"epoch {self.epoch}"]
        parts += [] if self.step is None else [f"step {self.step}"]
        parts += [self.checkpoint] if self.checkpoint else []
        if not parts and not self.digest:
            return ""
        of = f" of {', '.join(parts)}" if parts else ""
        return f"weights{of}{f' ({self.digest})' if self.digest else ''}"


@dataclass(frozen=True)
class TargetResult:
    """The outcome of one target.

    Args:
        status: ``"measured"``; ``"built"`` (an engine exists that cannot be executed here: it has no parity numbers);
            ``"skipped"`` (the time was up); ``"unavailable"`` (a package or device is missing); ``"failed"``.
        metrics: Distances to the reference, only if measured; in half precision also ``"storage"``.
        note: The reason, in one line.
        size: Bytes of the engine.
        seconds: Time to build and run it.
        step: The training step whose weights were measured; None for the weights of the pass itself.
        layers: Precision -> how many of the executed layers computed in it, as the engine says; empty where it does not
            say.
        latency: Of one inference on a batch as it is deployed; None where it was not measured.
    """

    status: Status
    metrics: dict[str, float] = field(default_factory=dict)
    note: str = ""
    size: int | None = None
    seconds: float = 0.0
    step: int | None = None
    layers: Mapping[str, int] = field(default_factory=dict)
    latency: Latency | None = None

    def scalars(self, name: str) -> dict[str, float]:
        """The numbers of the target of this name, under their TensorBoard tags."""
        numbers = {"status": float(STATUS_CODES[self.status])} | self.metrics
        numbers |= {} if self.step is None else {"step": float(self.step)}
        if self.latency is not None:
            numbers |= {"latency_ms": 1e3 * self.latency.median, "latency_ms_p99": 1e3 * self.latency.p99}
        return {f"parity/{name}/{metric}": value for metric, value in numbers.items()}


@dataclass(frozen=True)
class Examination:
    """What one precision does to the nodes of a graph.

    Args:
        layers: What each node costs.
        keep: The nodes to keep out of it for a tolerance, if that was asked.
    """

    layers: Sensitivity
    keep: KeepList | None = None


@dataclass(frozen=True)
class ParityReport:
    """The numbers of one parity pass.

    Args:
        targets: Target -> :class:`TargetResult`.
        sensitivity: Perturbation -> metrics of how it changes PyTorch's outputs; ``"beyond_geometry"`` among them
            where it is known what a right answer does.
        chain: The links from the reference to the engine, and to the deployed side's pixels.
        unit: The metric in which links are counted: the first decoded value's p99, else ``"rel_l2"``.
        reference: What the distances are measured from, ``"torch-fp64"`` where the module can do that.
        samples: Number of inputs, at most.
        seconds: Time of the pass.
        notes: Lines on what failed or was left out; a run warns of them.
        findings: What the graph will do on TensorRT, from :func:`~.lint.lint`; empty for a clean one.
        layers: What each node costs in half precision, if :func:`~.localise.localise` measured it.
        keep: The nodes to keep in fp32 for a tolerance, from there too.
        int8: The same for int8.
        target_sensitivity: Target -> perturbation -> how far it changes this target's outputs, in ``unit``; for the
            targets that were perturbed too.
        head: For ``keep_fp32``: the modules and nodes between the last layer and the outputs, where
            :func:`~.storage.examine_head` found that they cost most of the distance.
        remarks: Lines on how to read the numbers.
        basis: Tag -> the number of inputs behind it, and its interval.
        weights: Which weights were measured.
        trade_off: A target under several keep lists, if :func:`~.trade_off.measure_trade_off` measured it.
        about: What a reader should know of the model and the data: their classes, the number of parameters.
        scenes: The pictures on which the farthest target is farthest from the reference, where there are any.
    """

    targets: dict[str, TargetResult]
    sensitivity: dict[str, dict[str, float]]
    chain: tuple[Link, ...]
    unit: str
    reference: str
    samples: int
    seconds: float
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    layers: Sensitivity | None = None
    keep: KeepList | None = None
    int8: Examination | None = None
    target_sensitivity: dict[str, dict[str, float]] = field(default_factory=dict)
    head: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    basis: dict[str, Basis] = field(default_factory=dict)
    weights: MeasuredWeights = MeasuredWeights()
    trade_off: tuple[LatencyPoint, ...] = ()
    about: Mapping[str, str] = field(default_factory=dict)
    scenes: tuple[WorstPicture, ...] = ()

    @property
    def examined(self) -> tuple[Examination, ...]:
        """What was found of the nodes, half precision first."""
        half = None if self.layers is None else Examination(self.layers, self.keep)
        return tuple(each for each in (half, self.int8) if each is not None)

    @property
    def moved_unit(self) -> str:
        """The metric in which perturbations are counted, see :func:`~.scale.mean_of`."""
        return mean_of(self.unit)

    @property
    def attribution(self) -> dict[str, float]:
        """Link -> its distance, in ``unit``."""
        return {link.key: link.value for link in self.chain}

    def scalars(self) -> dict[str, float]:
        """All numbers under their tags, as they can be monitored."""
        tags = {"parity/status": float(max((STATUS_CODES[t.status] for t in self.targets.values()), default=0))}
        for name, target in self.targets.items():
            tags |= target.scalars(name) | interval_scalars(self.basis, f"parity/{name}/{self.unit}")
        for name, metrics in self.sensitivity.items():
            tags |= {f"sensitivity/{name}/{key}": value for key, value in metrics.items()}
        tags |= {f"sensitivity/family/{family}": value for family, value in self.families().items()}
        tags |= target_sensitivity_scalars(self.target_sensitivity, self.unit)
        tags |= chain_scalars(self.chain)
        return tags | {"parity/findings": float(len(self.findings)), "parity/seconds": self.seconds}

    def families(self, metric: str | None = None) -> dict[str, float]:
        """Family of perturbations -> how far its worst entry moves the outputs; the worst family first.

        Args:
            metric: Any of those in ``sensitivity``, such as ``"times_fp16"``; None takes what :meth:`moved` gives. A
                family in which it was not measured is left out.
        """
        worst: dict[str, float] = {}
        for name, metrics in self.sensitivity.items():
            value = self.moved(name) if metric is None else metrics.get(metric)
            if name in CATALOGUE and value is not None:
                family = CATALOGUE[name].family
                worst[family] = max(worst.get(family, 0.0), value, key=lost_first)
        return dict(sorted(worst.items(), key=lambda item: -lost_first(item[1])))

    def moved(self, perturbation: str) -> float:
        """How far a perturbation moves the outputs on average, beyond what it does to the picture if that is known."""
        metrics = self.sensitivity[perturbation]
        return metrics[BEYOND] if BEYOND in metrics else metrics[self.moved_unit]

    def worst_perturbation(self) -> str | None:
        """The perturbation that moves the outputs most, as :meth:`moved` counts."""
        return next(iter(self.worst_first()), None)

    def worst_first(self) -> list[str]:
        """The perturbations by how far they move the outputs, those whose distance is no number before all others."""
        return sorted(self.sensitivity, key=lambda name: -lost_first(self.moved(name)))


def lost_first(value: float) -> float:
    """A key that sorts a distance which is not a number above all others.

    Example:
        >>> max(1.0, math.nan, 2.0, key=lost_first)
        nan
    """
    return math.inf if math.isnan(value) else value


def interval_scalars(basis: Mapping[str, Basis], tag: str) -> dict[str, float]:
    """The ends of the interval of the number under a tag; empty where it has none.

    Example:
        >>> interval_scalars({"parity/a-fp16/rel_l2": Basis(16, 0.1, 0.3)}, "parity/a-fp16/rel_l2")
        {'parity/a-fp16/rel_l2_low': 0.1, 'parity/a-fp16/rel_l2_high': 0.3}
    """
    rests = basis.get(tag)
    if rests is None or math.isnan(rests.low):
        return {}
    return {f"{tag}_low": rests.low, f"{tag}_high": rests.high}


def target_sensitivity_scalars(results: Mapping[str, Mapping[str, float]], unit: str) -> dict[str, float]:
    """How far perturbations move each target, under their TensorBoard tags."""
    return {
        f"sensitivity/{perturbation}/{target}/{unit}": value
        for target, distances in results.items()
        for perturbation, value in distances.items()
    }
