"""What the outputs themselves cost in half precision: to store them, and to compute the head before them."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from lightning_robust.deployment.engines import Runtime, Subject, runtime
from lightning_robust.deployment.engines.base import HALF
from lightning_robust.deployment.engines.execution import execute
from lightning_robust.deployment.engines.torch import DTYPES
from lightning_robust.deployment.graph.lint import Finding
from lightning_robust.deployment.numerics.head import fp32_outputs, head_nodes
from lightning_robust.deployment.numerics.operators import MOVES
from lightning_robust.deployment.parity.baseline import Baseline
from lightning_robust.deployment.parity.result import STORAGE, ParityReport
from lightning_robust.deployment.parity.scale import Task, unit_label

_WORTH = 0.5  # a head that takes half of the distance with it is worth a sentence
_NAMED = 3  # nodes


def storage_metrics(baseline: Baseline, subject: Subject, made: Runtime) -> dict[str, float]:
    """``"storage"``: the distance of the exact outputs to themselves, rounded to a runtime's half precision.

    Empty for a deployed file, in which other outputs may be half than in what is built here.
    """
    if made.runtime == "deployed":
        return {}
    exact = baseline.readout(baseline.first_window)
    if made.runtime == "torch":  # which knows no nodes to keep
        kept = (False,) * len(exact.outputs)
    else:
        kept = fp32_outputs(subject.exported.model, subject.fp32_nodes())
    dtype = DTYPES[made.precision]
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
    names = _shortest_names(subject, head_nodes(subject.exported.model))
    baseline = Baseline(subject, task)
    before, after = (_distance_of(made, name, baseline) for made in (subject, subject.keeping(names)))
    if not names or not math.isfinite(after) or not after <= _WORTH * before:
        return report
    storage = report.targets[name].metrics.get(STORAGE, math.nan)
    finding = _head_finding(subject, names, name.removeprefix("emulated-"), baseline, (before, storage, after))
    return replace(report, findings=(*report.findings, finding), head=names)


def _distance_of(subject: Subject, name: str, baseline: Baseline) -> float:
    """A target's distance on the first window; NaN where it fails."""
    execution = execute(runtime(name), subject, baseline.first_window)
    if execution.status != "measured":
        return math.nan
    deployed = baseline.scale.read(execution.outputs)
    return baseline.readout(baseline.first_window).distance(deployed, runtime(name).precision)[baseline.unit]


def _distance(report: ParityReport, name: str) -> float:
    return report.targets[name].metrics.get(report.unit, 0.0) if name in report.targets else 0.0


def _head_finding(
    subject: Subject, names: tuple[str, ...], precision: str, baseline: Baseline, costs: tuple[float, float, float]
) -> Finding:
    before, storage, after = costs
    unit = unit_label(baseline.unit)
    outputs = [output for output in baseline.readout(baseline.first_window).outputs if output.is_floating_point()]
    finite = (output[output.isfinite()].abs() for output in outputs)
    largest = max((float(values.max()) for values in finite if len(values)), default=0.0)
    nodes = set(subject.keeping(names).fp32_nodes()) - set(subject.fp32_nodes())
    shown = [*names[:_NAMED], *["..."] * (len(names) > _NAMED)]
    return Finding(
        "B1",
        names[-1],
        names[0] if len(names) == 1 and names[0] not in nodes else "",
        "",
        f"{before:.3g} {unit} in {precision}, {storage:.2g} of it from storing the outputs, which reach {largest:.4g}, "
        f"where {precision} has steps of {_step_at(largest, precision):.2g}",
        f"The head costs it, not the network: the {len(nodes)} nodes after the last layer.",
        f"Return fp32 from these {len(nodes)} nodes: {before:.3g} -> {after:.2g} {unit}. "
        f"keep_fp32: [{', '.join(shown)}]",
    )


def _shortest_names(subject: Subject, nodes: tuple[str, ...]) -> tuple[str, ...]:
    """Modules that hold none but these nodes, the outermost first, and the others of them that compute something."""
    exported = subject.exported
    whole = _whole_modules(subject, nodes)
    covered = set(subject.keeping_only(whole).fp32_nodes())
    moves = {node.name for node in exported.model.graph.node if node.op_type in MOVES}
    return (*whole, *(node for node in nodes if node not in covered | moves))


def _whole_modules(subject: Subject, nodes: tuple[str, ...]) -> list[str]:
    origins = subject.exported.origins
    modules = {origins[node].module for node in nodes if node in origins} - {""}
    whole: list[str] = []
    for module in sorted(modules, key=lambda path: path.count(".")):
        inside = subject.keeping_only((module,)).fp32_nodes()
        if set(inside) <= set(nodes) and not module.startswith(tuple(f"{name}." for name in whole)):
            whole.append(module)
    return whole


def _step_at(value: float, precision: str) -> float:
    """The distance from a number to the next one in a precision."""
    dtype = DTYPES[precision]
    limited = min(value, torch.finfo(dtype).max)
    return 2.0 ** math.floor(math.log2(limited)) * torch.finfo(dtype).eps if limited > 0 else 0.0


def _round(output: Tensor, dtype: torch.dtype, keep: bool) -> Tensor:
    return output if keep or not output.is_floating_point() else output.to(dtype).to(output.dtype)
