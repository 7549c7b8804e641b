"""One page on a model in mixed precision: the budget, the distances, what stays fp32, and what to build with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_robust.deployment.mixed_precision import MixedModel
from lightning_robust.deployment.numerics.sensitivity import NodeSensitivity, overflow_sentence
from lightning_robust.deployment.parity.baseline import Measured
from lightning_robust.deployment.parity.links import Basis
from lightning_robust.deployment.parity.result import Examination
from lightning_robust.deployment.parity.scale import unit_label
from lightning_robust.deployment.parity.verdict import with_interval
from lightning_robust.deployment.report.layer_figure import draw_costs, draw_drift
from lightning_robust.deployment.report.layers import keep_sentence, layer_cost, tell_samples, unmeasured_sentence
from lightning_robust.pages import environment_facts, render, svg


def write_precision(
    found: MixedModel, folder: str | Path, *, notes: Sequence[str] = (), provenance: Mapping[str, str] | None = None
) -> Path:
    """Write ``precision.html``, ``precision.json`` and the list, ``keep_fp32.json`` or ``exclude_int8.json``.

    Args:
        found: The file and what it costs.
        folder: An existing folder.
        notes: Lines on the model and the inputs, before those of the file.
        provenance: Further lines on where the model comes from.

    Returns:
        The path of the page.
    """
    folder = Path(folder)
    facts = {**dict(provenance or {}), **environment_facts()}
    lines = (*notes, *found.notes)
    found.keep.write(folder / f"{found.keep.setting}.json")
    found.write_json(folder / "precision.json", provenance=facts, notes=lines)
    page = folder / "precision.html"
    page.write_text(
        render(
            __package__,
            "precision.html.j2",
            f"{'What stays out of int8' if is_int8(found) else 'What must stay in fp32'}: {found.path.name}",
            found=found,
            level="good" if found.proven else "mind" if found.met else "bad",
            headline=budget_sentence(found),
            sentences=evidence_sentences(found),
            seconds=found.layers.seconds,
            unit=unit_label(found.keep.unit),
            distances=_distance_rows(found),
            keep=keep_sentence(Examination(found.layers, found.keep)),
            nodes=_kept_rows(found),
            layers=[svg(draw(found.layers)) for draw in (draw_costs, draw_drift)] if found.layers.nodes else None,
            unmeasured=unmeasured_sentence(found.layers),
            building=building_sentences(found),
            notes=lines,
            facts=facts,
        ),
        encoding="utf-8",
    )
    return page


def is_int8(found: MixedModel) -> bool:
    """Whether the file is quantised."""
    return found.layers.precision == "int8"


def budget_sentence(found: MixedModel) -> str:
    """Whether the file meets the budget; where it does not, the best that was reached."""
    keep = found.keep
    value = f"{_with_basis(found, found.measured, found.distance)} {unit_label(keep.unit)}"
    how = f"in emulated {found.layers.precision}"
    if found.executed is not None and found.executed_distance is not None:
        value = f"{_with_basis(found, found.executed, found.executed_distance)} {unit_label(keep.unit)}"
        how = "in int8, executed by ONNX Runtime"
    allowed = f"allowed is {keep.tolerance:.3g}"
    missing = "No engine of TensorRT was executed." if found.executed is not None else "No engine was executed."
    if found.met:
        return f"Budget met {how}: {value}, {allowed}. {missing}"
    return f"Budget not met: {value} is the best that was reached {how}, {allowed}."


def evidence_sentences(found: MixedModel) -> list[str]:
    """What the verdict rests on, and what was not measured; why the budget is not met."""
    keep = found.keep
    others = "which the list was not found on" if keep.checked else "the ones that the list was found on"
    agrees = "as the search said" if found.agrees else f"where the search said {keep.error:.3g}"
    count = tell_samples(found.measured.samples)
    read = "rounded to int8 as it is written" if is_int8(found) else "what its types say was emulated"
    lines = [
        f"{found.path.name} was loaded again from disk, and {read}.",
        f"That gave {found.distance:.3g} on {count}, {others}, {agrees}.",
        "Emulated on the CPU, sums in fp32; an engine fuses nodes, chooses its own kernels, and was not executed.",
    ]
    if found.executed_distance is not None:
        lines[-1] = (
            f"Executed in integers by ONNX Runtime on this CPU: {found.executed_distance:.3g}. TensorRT fuses more, "
            "and was not executed."
        )
    lines += _reservations(found)
    overflow = overflow_sentence(found.layers)
    return [*lines, f"Without the list {overflow}" if keep.nodes else overflow] if overflow else lines


def _reservations(found: MixedModel) -> list[str]:
    """Why the budget is not met, or is met only just."""
    keep, interval = found.keep, (found.executed or found.measured).intervals.get(found.keep.unit)
    if not found.met:
        return [_why_not(found)]
    if len(keep.nodes) == keep.of:
        return [f"Nothing is left in {found.layers.precision}: it takes every node in fp32 to meet the budget."]
    if interval is not None and interval.high > keep.tolerance:
        return [f"The interval reaches {interval.high:.3g}, beyond the budget: more samples are needed to be sure."]
    return []


def _why_not(found: MixedModel) -> str:
    """Why the budget is not met."""
    keep = found.keep
    if keep.found_met:
        return (
            f"The list met the budget where it was found, {keep.found_error:.3g} on {tell_samples(keep.samples)}, "
            "and does not on others. Give more samples, or a smaller budget to find the list with."
        )
    if not keep.complete:
        return "Time was up before every node was measured. Give a larger --time_limit."
    wide = ": it multiplies in TF32, which --tf32 allows" if found.tf32 else ""
    return f"No list meets it, not even every node in fp32{wide}. Give a larger budget."


def building_sentences(found: MixedModel) -> list[str]:
    """What to know before an engine is built."""
    tf32 = "--noTF32 belongs to these numbers: without it what stays fp32 multiplies in TF32"
    if found.tf32:
        tf32 = "TF32 was allowed in the emulation to what stays fp32, trtexec's default"
    elif not is_int8(found):
        tf32 += "; --tf32 measures that"
    second = []
    if found.beside_fp16 is not None:
        second.append(f"{found.beside_fp16.path.name} has fp16 in the place of fp32, as int8 is mostly deployed.")
    tool = "modelopt.onnx.quantization" if is_int8(found) else "ModelOpt AutoCast"
    return [
        "Every network is strongly typed from TensorRT 11 on; before, --stronglyTyped says so.",
        f"{tf32}.",
        f"{found.keep.setting}.json holds the list; its nodes_to_exclude are the argument of that name of {tool}.",
        *second,
    ]


def _distance_rows(found: MixedModel) -> list[list[str]]:
    keep, precision = found.keep, found.layers.precision
    samples = str(keep.checked or keep.samples)
    everything = "everything" if not found.excluded else "everything but what you excluded"
    listed = f"{len(keep.nodes)} of {keep.of} nodes in fp32"
    rows = [[f"{everything} in {precision}", f"{keep.total:.3g}", samples, "emulated"]]
    rows.append([listed, f"{keep.error:.3g}", samples, "emulated, the list"])
    if keep.checked:
        rows.append(["the list, where it was found", f"{keep.found_error:.3g}", str(keep.samples), "emulated"])
    read = _with_basis(found, found.measured, found.distance)
    rows.append([found.path.name, read, str(found.measured.samples), "emulated, read back from the file"])
    if found.executed is not None and found.executed_distance is not None:
        ran = _with_basis(found, found.executed, found.executed_distance)
        rows.append([found.path.name, ran, str(found.executed.samples), "executed in integers by ONNX Runtime"])
    rows += _beside_rows(found)
    return [*rows, ["budget", f"{keep.tolerance:.3g}", "", "met" if found.met else "not met"]]


def _beside_rows(found: MixedModel) -> list[list[str]]:
    """The row of the file with fp16 beside int8."""
    if found.beside_fp16 is None:
        return []
    measured = found.beside_fp16.measured
    value = _with_basis(found, measured, measured.metrics[found.keep.unit])
    return [[found.beside_fp16.path.name, value, str(measured.samples), "emulated, fp16 in the place of fp32"]]


def _kept_rows(found: MixedModel) -> list[list[str]]:
    nodes: dict[str, NodeSensitivity] = {node.name: node for node in found.layers.nodes}
    rows = []
    for name in dict.fromkeys((*found.keep.nodes, *found.excluded)):
        node = nodes.get(name)
        other = "excluded by you" if name in found.excluded else "moves values between them"
        rows.append([name, node.place if node else other, layer_cost(node) if node else "-"])
    return rows


def _with_basis(found: MixedModel, measured: Measured, value: float) -> str:
    interval = measured.intervals.get(found.keep.unit)
    return with_interval(value, Basis(measured.samples, *interval) if interval else None)
