"""A parity report as tables, and as one summary for a terminal."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping

from lightning_robust.deployment.engines.latency import Latency
from lightning_robust.deployment.graph.lint import Finding
from lightning_robust.deployment.graph.origin import Origin
from lightning_robust.deployment.parity.labels import WORSE
from lightning_robust.deployment.parity.links import Basis
from lightning_robust.deployment.parity.readout import PLAIN_UNIT
from lightning_robust.deployment.parity.result import BEYOND, STORAGE, ParityReport, TargetResult
from lightning_robust.deployment.parity.scale import unit_label
from lightning_robust.deployment.parity.verdict import what_if_sentences, with_interval
from lightning_robust.deployment.pixels.catalogue import CATALOGUE
from lightning_robust.deployment.report.layers import layer_sentences
from lightning_robust.tables import plain_table, short

Table = tuple[list[str], list[list[str]]]
"""Header and rows."""
_PLAIN = ("rel_l2", "max_abs", "nonfinite", "flip_rate")


def target_rows(report: ParityReport) -> Table:
    """Header and rows of the table target x metric: the distance in the task's unit, its n, what else was measured."""
    keys = _target_metrics(report)
    rows = []
    for name, target in report.targets.items():
        tags = {key: f"parity/{name}/{key}" for key in keys}
        told = {key: None if key in _PLAIN and key != report.unit else tag for key, tag in tags.items()}
        first, *cells = (_cell(report, target.metrics, key, tag) for key, tag in told.items())
        rows.append([name, first, _status(target), _count(report, f"parity/{name}/{report.unit}"), *cells])
    first, *columns = map(_column, keys)
    return ["target", first, "status", "n", *columns], rows


def chain_rows(report: ParityReport) -> Table:
    """Header and rows of the table of links, each a distance between two sets of outputs."""
    rows = [
        [
            link.name,
            with_interval(link.value, link.basis),
            "-" if math.isnan(link.bias) else f"{link.bias:+.2g}",
            str(link.samples),
            link.source,
            link.target,
        ]
        for link in report.chain
    ]
    return ["link", "distance", "bias", "n", "from", "to"], rows


def engine_rows(report: ParityReport) -> Table:
    """Header and rows of the table of engines: latency, size, and the precisions that its layers ran in."""
    rows = []
    for name, target in report.targets.items():
        if target.latency or target.layers or target.size is not None:
            ran = ", ".join(f"{count} {precision}" for precision, count in target.layers.items())
            size = "-" if target.size is None else short(target.size / 1e6, 2)
            rows.append([name, *_times_of(target.latency), size, ran or "-"])
    return ["engine", "ms", "p99 ms", "batch", "runs", "MB", "layers ran in"], rows


def perturbation_rows(report: ParityReport) -> Table:
    """Header and rows of the table of perturbations, the worst first, by what goes beyond the picture's motion."""
    moved, guessed = report.moved_unit, report.moved_unit.replace("_known_", "_guessed_")
    parted = any(metrics.get(BEYOND, metrics[moved]) != metrics[moved] for metrics in report.sensitivity.values())
    further = {moved: "with the motion"} if parted else {}
    further |= {guessed: "where guessed"} if guessed != moved else {}
    further |= {report.unit: "p99"} if report.unit != moved else {}
    rows = []
    for name in report.worst_first():
        metrics, tag = report.sensitivity[name], f"sensitivity/{name}"
        family = CATALOGUE[name].family if name in CATALOGUE else "-"
        keys = [BEYOND if BEYOND in metrics else moved, *further]
        cells = (_cell(report, metrics, key, f"{tag}/{key}") for key in keys)
        times = _times(metrics["times_fp16"]).removesuffix(" times") if "times_fp16" in metrics else "-"
        rows.append([name, *cells, times, _count(report, f"{tag}/{moved}"), family.replace("_", " ")])
    return ["perturbation", "moves by", *further.values(), "times fp16", "n", "family"], rows


def finding_rows(report: ParityReport) -> Table:
    """Header and rows of the table of what the graph will do on TensorRT."""
    rows = [[_place(f), f.what, f.consequence, f.remedy, f.rule] for f in report.findings]
    return ["where", "what", "on TensorRT", "what to do", "rule"], rows


def _place(finding: Finding) -> str:
    known = finding.module or finding.source
    return str(Origin(finding.module, finding.source)) if known else finding.node


def narrow(table: Table, columns: int = 4) -> Table:
    """The first columns of a table, which are those that matter: for a card on which more would break the words."""
    header, rows = table
    return header[:columns], [row[:columns] for row in rows]


def summary(report: ParityReport) -> str:
    """The report for a terminal: the tables, what moves the outputs most, and what the graph will do on TensorRT."""
    of_weights = f", {report.weights}" if str(report.weights) else ""
    units = f"links and storage in {unit_label(report.unit)}, perturbations in {unit_label(report.moved_unit)}"
    lines = [
        f"Deployment parity, up to {report.samples} samples against {report.reference}{of_weights}",
        f"In brackets 95 % intervals over n samples; {units}.",
        "",
        plain_table(*target_rows(report)),
    ]
    lines += [f"{name}: {t.note}" for name, t in report.targets.items() if t.note and t.status != "measured"]
    engines = engine_rows(report)
    lines += ["", plain_table(*engines)] if engines[1] else []
    lines += ["", plain_table(*chain_rows(report))] if report.chain else []
    lines += ["", plain_table(*perturbation_rows(report)), "", worst_sentence(report)] if report.sensitivity else []
    lines += what_if_sentences(report)
    for examined in report.examined:
        lines += ["", *layer_sentences(examined)]
    lines += ["", *map(str, report.findings)] if report.findings else []
    return "\n".join([*lines, *report.notes, *report.remarks])


def worst_sentence(report: ParityReport) -> str:
    """Names the perturbation that moves the outputs most, beyond what it does to the picture; empty without any."""
    name = report.worst_perturbation()
    if name is None:
        return ""
    metrics = report.sensitivity[name]
    key = BEYOND if BEYOND in metrics else report.moved_unit
    distance = with_interval(metrics[key], report.basis.get(f"sensitivity/{name}/{key}"))
    times = f"; {_times(metrics['times_fp16'])} what fp16 does" if "times_fp16" in metrics else ""
    return f"What moves the outputs most: {name} ({distance} {unit_label(report.moved_unit)}{times})"


def _status(target: TargetResult) -> str:
    return target.status if target.step is None else f"{target.status}, step {target.step}"


def _times_of(latency: Latency | None) -> list[str]:
    """The median and the p99 in milliseconds, the batch and the number of runs."""
    if latency is None:
        return ["-"] * 4
    return [short(1e3 * latency.median), short(1e3 * latency.p99), str(latency.batch), str(latency.runs)]


def _times(factor: float) -> str:
    return f"{factor:.0f} times" if 1000 <= factor < math.inf else f"{factor:.3g} times"


def _target_metrics(report: ParityReport) -> list[str]:
    """The columns of the table of targets: the plain metrics that were measured, then those in the task's units."""
    results = [target.metrics for target in report.targets.values()]
    measured = _measured(results)
    decoded = [key for key in measured if _is_told(key, measured)]
    nothing_lost = not any(metrics.get("nonfinite") for metrics in results)
    # what counts places without a value too, and a column of zeros, would tell nothing
    idle = {"max_abs": bool(decoded), "nonfinite": nothing_lost}
    plain = [key for key in _PLAIN if key in measured and not idle.get(key)]
    further = [*_without_repeats(decoded, report.unit), *[STORAGE] * (STORAGE in measured)]
    return list(dict.fromkeys([report.unit, *plain, *further]))


def _measured(results: Iterable[Mapping[str, float]]) -> list[str]:
    """The metrics that are a number for any target."""
    return list(dict.fromkeys(key for metrics in results for key, value in metrics.items() if not math.isnan(value)))


def _is_told(key: str, measured: Container[str]) -> bool:
    """Whether a metric in the task's units has a column; some have one because of another that goes with them."""
    ends = ("_p99", "_flips", "_new", "_loss", f"_{WORSE}")
    return key.endswith(ends) or _new_of(key) in measured or f"{key}_{WORSE}" in measured


def _new_of(key: str) -> str:
    """The metric of new boxes that goes with one of lost ones."""
    return f"{key.removesuffix('_lost')}_new"


def _without_repeats(keys: list[str], unit: str) -> list[str]:
    """The metrics but those of all points where they are told apart, and those of guesses but of the unit."""
    wholes = {key.replace("_known_", "_") for key in keys if "_known_" in key}
    guesses = {key for key in keys if "_guessed_" in key} - {unit.replace("_known_", "_guessed_")}
    return [key for key in keys if key not in wholes | guesses]


def _column(key: str) -> str:
    return "relative L2" if key == PLAIN_UNIT else key.replace("_", " ")


def _cell(report: ParityReport, metrics: dict[str, float], key: str, tag: str | None) -> str:
    if key not in metrics:
        return "-"
    basis: Basis | None = None if tag is None else report.basis.get(tag)
    return with_interval(metrics[key], basis)


def _count(report: ParityReport, tag: str) -> str:
    return str(report.basis[tag].samples) if tag in report.basis else "-"
