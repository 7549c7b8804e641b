"""What the outputs themselves cost in half precision: to store them, and to compute the head before them."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from lightning_robust.deployment.engines import Runtime, Subject, runtime
from lightning_robust.deployment.engines.base import HALF
from lightning_robust.deployment.engines.execution import execute
from lightning_robust.deployment.graph.lint import Finding
from lightning_robust.deployment.numerics.head import fp32_outputs, head_nodes
from lightning_robust.deployment.parity.baseline import Baseline
from lightning_robust.deployment.parity.result import STORAGE, ParityReport
from lightning_robust.deployment.parity.scale import Task, unit_label

_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
_WORTH = 0.5  # a head that takes half of the distance with it is worth a sentence
_NAMED = 3  # nodes


def storage_metrics(baseline: Baseline, subject: Subject, made: Runtime) -> dict[str, float]:
    """``"storage"``: the distance of the exact outputs to themselves, rounded to a runtime's half precision."""
    exact = baseline.readout(baseline.first_window)
    if made.runtime == "torch":  # which knows no nodes to keep
        kept = (False,) * len(exact.outputs)
    else:
        kept = fp32_outputs(subject.exported.model, subject.fp32_nodes())
    dtype = _TYPES[made.precision]
    rounded = [_round(output, dtype, keep) for output, keep in zip(exact.outputs, kept, strict=True)]
    return {STORAGE: exact.distance(baseline.scale.read(rounded), made.precision)[baseline.unit]}


def examine_head(subject: Subject, report: ParityReport, task: Task) -> ParityReport:
    """Add to a report what keeping the head in fp32 would bring, where that is at least half of the distance.

    The head is what lies between the last layer and the outputs, see :func:`~.numerics.head.head_nodes`. Costs one run
    of the emulation and one of the reference.

    Args:
        subject: The model and the samples of the report.
        report: A pass of :func:`~.measure.measure_parity`; without an emulated half precision it stays as it is.
        task: As in that pass.

    Raises:
        ExportError: If the module cannot be exported.
        ValueError: If the graph cannot be emulated.
    """
    name = next((f"emulated-{half}" for half in HALF if _distance(report, f"emulated-{half}") > 0), None)
    if name is None:
        return report
    nodes = head_nodes(subject.exported.model)
    baseline = Baseline(subject, task)
    execution = execute(runtime(name), subject.keeping(nodes), baseline.first_window)
    if not nodes or execution.status != "measured":
        return report
    exact, kept = baseline.readout(baseline.first_window), baseline.scale.read(execution.outputs)
    all_half = execute(runtime(name), subject, baseline.first_window).outputs
    before, after = (exact.distance(each)[baseline.unit] for each in (baseline.scale.read(all_half), kept))
    if not after <= _WORTH * before:
        return report
    storage = report.targets[name].metrics.get(STORAGE, math.nan)
    finding = _head_finding(subject, nodes, name.removeprefix("emulated-"), baseline, (before, storage, after))
    return replace(report, findings=(*report.findings, finding), head=nodes)


def _distance(report: ParityReport, name: str) -> float:
    return report.targets[name].metrics.get(report.unit, 0.0) if name in report.targets else 0.0


def _head_finding(
    subject: Subject, nodes: tuple[str, ...], precision: str, baseline: Baseline, costs: tuple[float, float, float]
) -> Finding:
    before, storage, after = costs
    unit = unit_label(baseline.unit)
    outputs = [output for output in baseline.readout(baseline.first_window).outputs if output.is_floating_point()]
    largest = max(float(output[output.isfinite()].abs().max()) for output in outputs)
    module = _common_module(subject, nodes)
    names = [module] if module else [*nodes[:_NAMED], *["..."] * (len(nodes) > _NAMED)]
    count = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}"
    return Finding(
        "B1",
        nodes[-1],
        module,
        "",
        f"{before:.3g} {unit} in {precision}, {storage:.2g} of it from storing the outputs, which reach {largest:.4g}, "
        f"where {precision} has steps of {_step_at(largest, precision):.2g}",
        f"The head costs it, not the network: the {count} after the last layer.",
        f"Return fp32 from these {count}: {before:.3g} -> {after:.2g} {unit}. keep_fp32: [{', '.join(names)}]",
    )


def _common_module(subject: Subject, nodes: tuple[str, ...]) -> str:
    """The module whose nodes these are, if it is one and has no others."""
    exported = subject.exported
    modules = {exported.origins[node].module if node in exported.origins else "" for node in nodes}
    if len(modules) != 1 or modules == {""}:
        return ""
    (module,) = modules
    return module if set(subject.keeping([module]).fp32_nodes()) - set(subject.fp32_nodes()) <= set(nodes) else ""


def _step_at(value: float, precision: str) -> float:
    """The distance from a number to the next one in a precision."""
    dtype = _TYPES[precision]
    limited = min(value, torch.finfo(dtype).max)
    return 2.0 ** math.floor(math.log2(limited)) * torch.finfo(dtype).eps if limited > 0 else 0.0


def _round(output: Tensor, dtype: torch.dtype, keep: bool) -> Tensor:
    return output if keep or not output.is_floating_point() else output.to(dtype).to(output.dtype)
