"""One page on a model in mixed precision: the budget, the distances, what stays fp32, and what to build with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_robust.deployment.mixed_precision import MixedModel
from lightning_robust.deployment.numerics.sensitivity import NodeSensitivity, overflow_sentence
from lightning_robust.deployment.parity.links import Basis
from lightning_robust.deployment.parity.result import Examination
from lightning_robust.deployment.parity.scale import unit_label
from lightning_robust.deployment.parity.verdict import with_interval
from lightning_robust.deployment.report.layer_figure import draw_layers
from lightning_robust.deployment.report.layers import keep_sentence, layer_cost, unmeasured_sentence
from lightning_robust.pages import environment_facts, render, svg


def write_precision(
    found: MixedModel, folder: str | Path, *, notes: Sequence[str] = (), provenance: Mapping[str, str] | None = None
) -> Path:
    """Write ``precision.html``, ``precision.json`` and the list, ``keep_fp32.json``.

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
    found.keep.write(folder / "keep_fp32.json")
    found.write_json(folder / "precision.json", provenance=facts, notes=lines)
    page = folder / "precision.html"
    page.write_text(
        render(
            __package__,
            "precision.html.j2",
            f"What must stay in fp32: {found.path.name}",
            found=found,
            level="mind" if found.met else "bad",
            headline=budget_sentence(found),
            sentences=evidence_sentences(found),
            seconds=found.layers.seconds,
            unit=unit_label(found.keep.unit),
            distances=_distance_rows(found),
            keep=keep_sentence(Examination(found.layers, found.keep)),
            nodes=_kept_rows(found),
            layers=svg(draw_layers(found.layers, unit_label(found.keep.unit))) if found.layers.nodes else None,
            unmeasured=unmeasured_sentence(found.layers),
            building=building_sentences(found),
            notes=lines,
            facts=facts,
        ),
        encoding="utf-8",
    )
    return page


def budget_sentence(found: MixedModel) -> str:
    """Whether the file meets the budget; where it does not, the best that was reached and why."""
    keep, precision = found.keep, found.layers.precision
    value, allowed = f"{_file_distance(found)} {unit_label(keep.unit)}", f"allowed is {keep.tolerance:.3g}"
    if found.met:
        return f"Budget met in emulated {precision}: {value}, {allowed}. No engine was executed."
    return f"Budget not met: {value} is the best that was reached in emulated {precision}, {allowed}."


def evidence_sentences(found: MixedModel) -> list[str]:
    """What the verdict rests on, and what was not measured; why the budget is not met."""
    keep = found.keep
    others = "which the list was not found on" if keep.checked else "the ones that the list was found on"
    agrees = "as the search said" if found.agrees else f"where the search said {keep.error:.3g}"
    count = _count_samples(found.measured.samples)
    lines = [
        f"{found.path.name} was loaded again from disk, and what its types say was emulated.",
        f"That gave {found.distance:.3g} on {count}, {others}, {agrees}.",
        "Emulated on the CPU, sums in fp32; an engine fuses nodes, chooses its own kernels, and was not executed.",
    ]
    if not found.met:
        lines.append(_why_not(found))
    elif len(keep.nodes) == keep.of:
        lines.append(f"Nothing is left in {found.layers.precision}: it takes every node in fp32 to meet the budget.")
    elif (interval := found.measured.intervals.get(keep.unit)) and interval.high > keep.tolerance:
        lines.append(
            f"The interval reaches {interval.high:.3g}, beyond the budget: more samples are needed to be sure."
        )
    overflow = overflow_sentence(found.layers)
    return [*lines, overflow] if overflow else lines


def _why_not(found: MixedModel) -> str:
    """Why the budget is not met."""
    keep = found.keep
    if keep.found_met:
        return (
            f"The list met the budget where it was found, {keep.found_error:.3g} on {_count_samples(keep.samples)}, "
            "and does not on others. Give more samples, or a smaller budget to find the list with."
        )
    if not keep.complete:
        return "Time was up before every node was measured. Give a larger --time_limit."
    wide = ": it multiplies in TF32, which --tf32 allows" if found.tf32 else ""
    return f"No list meets it, not even every node in fp32{wide}. Give a larger budget."


def building_sentences(found: MixedModel) -> list[str]:
    """What to know before an engine is built."""
    return [
        "Every network is strongly typed from TensorRT 11 on; before, --stronglyTyped says so.",
        "TF32 was allowed in the emulation to what stays fp32, trtexec's default."
        if found.tf32
        else "--noTF32 belongs to these numbers: without it what stays fp32 multiplies in TF32; --tf32 measures that.",
        "keep_fp32.json holds the list; its nodes_to_exclude are the argument of that name of ModelOpt AutoCast.",
    ]


def _distance_rows(found: MixedModel) -> list[list[str]]:
    keep, precision = found.keep, found.layers.precision
    samples = str(keep.checked or keep.samples)
    everything = "everything" if not found.excluded else "everything but what you excluded"
    rows = [
        [f"{everything} in {precision}", f"{keep.total:.3g}", samples, "emulated"],
        [f"{len(keep.nodes)} of {keep.of} nodes in fp32", f"{keep.error:.3g}", samples, "emulated, the list"],
        [found.path.name, _file_distance(found), str(found.measured.samples), "emulated, read back from the file"],
        ["budget", f"{keep.tolerance:.3g}", "", "met" if found.met else "not met"],
    ]
    if keep.checked:
        row = ["the list, where it was found", f"{keep.found_error:.3g}", str(keep.samples), "emulated"]
        rows.insert(2, row)
    return rows


def _kept_rows(found: MixedModel) -> list[list[str]]:
    nodes: dict[str, NodeSensitivity] = {node.name: node for node in found.layers.nodes}
    moves, rows = "moves values between them", []
    for name in found.keep.nodes:
        node = nodes.get(name)
        rows.append([name, node.place if node else moves, layer_cost(node) if node else "-"])
    return [*rows, *[[name, "excluded by you", "-"] for name in found.excluded if name not in found.keep.nodes]]


def _file_distance(found: MixedModel) -> str:
    interval = found.measured.intervals.get(found.keep.unit)
    return with_interval(found.distance, Basis(found.measured.samples, *interval) if interval else None)


def _count_samples(count: int) -> str:
    return f"{count} sample{'s' * (count != 1)}"
