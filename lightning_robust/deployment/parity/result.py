"""The numbers of one parity pass: a result for each target, and the report that holds them all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lightning_robust.deployment.engines.execution import STATUS_CODES, Status
from lightning_robust.deployment.graph.lint import Finding
from lightning_robust.deployment.numerics.keep_list import KeepList
from lightning_robust.deployment.numerics.sensitivity import Sensitivity
from lightning_robust.deployment.pixels.catalogue import CATALOGUE


@dataclass(frozen=True)
class TargetResult:
    """The outcome of one target.

    Args:
        status: ``"measured"``; ``"built"`` (an engine exists that cannot be executed here: it has no parity numbers);
            ``"skipped"`` (the time was up); ``"unavailable"`` (a package or device is missing); ``"failed"``.
        metrics: Distances to the reference, only if measured.
        note: The reason, in one line.
        size: Bytes of the engine.
        seconds: Time to build and run it.
        step: The training step whose weights were measured; None for the weights of the pass itself.
    """

    status: Status
    metrics: dict[str, float] = field(default_factory=dict)
    note: str = ""
    size: int | None = None
    seconds: float = 0.0
    step: int | None = None

    def scalars(self, name: str) -> dict[str, float]:
        """The numbers of the target of this name, under their TensorBoard tags."""
        numbers = {"status": float(STATUS_CODES[self.status])} | self.metrics
        numbers |= {} if self.step is None else {"step": float(self.step)}
        return {f"parity/{name}/{metric}": value for metric, value in numbers.items()}


@dataclass(frozen=True)
class ParityReport:
    """The numbers of one parity pass.

    Args:
        targets: Target -> :class:`TargetResult`.
        sensitivity: Perturbation -> metrics of how it changes PyTorch's outputs.
        attribution: Cause -> its distance, in ``unit``.
        unit: The metric in which causes are counted: the first decoded value's p99, else ``"rel_l2"``.
        reference: What the distances are measured from, ``"torch-fp64"`` where the module can do that.
        samples: Number of inputs.
        seconds: Time of the pass.
        notes: Lines that a reader should see.
        findings: What the graph will do on TensorRT, from :func:`~.lint.lint`; empty for a clean one.
        layers: What each node costs in low precision, if :func:`~.localise.localise` measured it.
        keep: The nodes to keep in fp32 for a tolerance, from there too.
        target_sensitivity: Target -> perturbation -> how far it changes this target's outputs, in ``unit``; for the
            targets that were perturbed too.
    """

    targets: dict[str, TargetResult]
    sensitivity: dict[str, dict[str, float]]
    attribution: dict[str, float]
    unit: str
    reference: str
    samples: int
    seconds: float
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    layers: Sensitivity | None = None
    keep: KeepList | None = None
    target_sensitivity: dict[str, dict[str, float]] = field(default_factory=dict)

    def scalars(self) -> dict[str, float]:
        """All numbers under their TensorBoard tags."""
        tags = {"parity/status": float(max((STATUS_CODES[t.status] for t in self.targets.values()), default=0))}
        for name, target in self.targets.items():
            tags |= target.scalars(name)
        for name, metrics in self.sensitivity.items():
            tags |= {f"sensitivity/{name}/{metric}": value for metric, value in metrics.items()}
        tags |= {f"sensitivity/family/{family}": value for family, value in self.families().items()}
        tags |= target_sensitivity_scalars(self.target_sensitivity, self.unit)
        tags |= {f"attribution/{cause}": value for cause, value in self.attribution.items()}
        return tags | {"parity/findings": float(len(self.findings)), "parity/seconds": self.seconds}

    def families(self, metric: str | None = None) -> dict[str, float]:
        """Family of perturbations -> how far its worst entry moves the outputs; the worst family first.

        Args:
            metric: Any of those in ``sensitivity``, such as ``"times_fp16"``; ``unit`` if None. A family in which it
                was not measured is left out.
        """
        key = self.unit if metric is None else metric
        worst: dict[str, float] = {}
        for name, metrics in self.sensitivity.items():
            if name in CATALOGUE and key in metrics:
                family = CATALOGUE[name].family
                worst[family] = max(worst.get(family, 0.0), metrics[key])
        return dict(sorted(worst.items(), key=lambda item: -item[1]))

    def worst_perturbation(self) -> str | None:
        """The perturbation that moves the outputs most, in ``unit``."""
        return max(self.sensitivity, key=lambda name: self.sensitivity[name][self.unit], default=None)


def target_sensitivity_scalars(results: Mapping[str, Mapping[str, float]], unit: str) -> dict[str, float]:
    """How far perturbations move each target, under their TensorBoard tags."""
    return {
        f"sensitivity/{perturbation}/{target}/{unit}": value
        for target, distances in results.items()
        for perturbation, value in distances.items()
    }
