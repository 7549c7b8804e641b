"""What each layer costs in low precision and what to keep in fp32, as tables and as sentences."""

from __future__ import annotations

import math

from lightning_robust.deployment.numerics.keep_list import KeepList
from lightning_robust.deployment.numerics.sensitivity import (
    NodeSensitivity,
    Sensitivity,
    first_divergence,
    overflow_sentence,
)
from lightning_robust.deployment.parity.result import Examination, ParityReport
from lightning_robust.deployment.parity.scale import unit_label
from lightning_robust.tables import percent

Examined = ParityReport | Examination
"""What has layers and a list: of a report, those of half precision."""


def layer_rows(layers: Sensitivity, count: int = 20) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of nodes, the most expensive in low precision first.

    A node's number is its place from input to output, as in the figure of the drift.
    """
    numbers = {node.name: str(number) for number, node in enumerate(layers.nodes, 1)}
    columns = ["number", "where", "alone", "drift", "module", "line", "overflow", "flushed"]
    return [*columns, "node"], [[numbers[node.name], *_layer_row(node)] for node in layers.ranked()[:count]]


def keep_rows(found: Examined) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of nodes to keep in fp32."""
    keep = found.keep
    if keep is None:
        return ["keep in fp32", "where"], []
    header = ["keep out of int8" if keep.setting == "exclude_int8" else "keep in fp32", "where"]
    return header, kept_places(keep, found.layers)


def kept_places(keep: KeepList, layers: Sensitivity | None) -> list[list[str]]:
    """Each node of a list with its place, those that were examined first, in the graph's order."""
    places = {node.name: node.place for node in layers.nodes} if layers else {}
    others = [name for name in keep.nodes if name not in places]
    listed = [[name, place] for name, place in places.items() if name in keep.nodes]
    return [*listed, *([name, "kept already, or moves values between the others"] for name in others)]


def using_sentence(keep: KeepList) -> str:
    """How a list is used."""
    tool = "modelopt.onnx.quantization" if keep.precision == "int8" else "ModelOpt AutoCast"
    return (
        f"To use it: {keep.setting}.json has the list. In YAML and on the module `{keep.setting}` takes its nodes or "
        f"modules; its nodes_to_exclude are the argument of that name of {tool}."
    )


def keep_sentence(found: Examined) -> str:
    """What keeping nodes in fp32 gains, and whether that is what was aimed at; empty where nobody looked."""
    keep = found.keep
    if keep is None:
        return ""
    if not any(node.name in keep.nodes for node in found.layers.nodes) if found.layers else not keep.nodes:
        return _empty_sentence(keep, found.layers)
    kept = f"{len(keep.nodes)} of {keep.of}"
    told = (
        f"With {kept} nodes kept {'out of int8' if keep.precision == 'int8' else 'in fp32'} the distance falls from "
        f"{keep.total:.3g} to {keep.error:.3g} {unit_label(keep.unit)}{_say_samples(keep)}. {_say_aim(keep)}"
    )
    return told if len(keep.nodes) < keep.of else f"{told} Nothing is left in {keep.precision}, which gains nothing."


def layer_sentences(found: Examined) -> list[str]:
    """Where the values first go wrong, which node costs most, what to keep in fp32, and what was not measured."""
    layers = found.layers
    if layers is None or not layers.nodes:
        return []
    sentences = [
        overflow_sentence(layers) or _drift_sentence(layers),
        _worst_sentence(layers),
        keep_sentence(found),
        unmeasured_sentence(layers),
    ]
    return [sentence for sentence in sentences if sentence]


def unmeasured_sentence(layers: Sensitivity) -> str:
    """How many nodes time was too short for; empty where everything that matters was measured."""
    if layers.complete:
        return ""
    missing = len(layers.unmeasured())
    if missing:
        return f"Time was up: {missing} of {len(layers.nodes)} nodes were not measured, and are in no list."
    return "Time was up before every block of nodes was taken apart; the order is partial."


def _worst_sentence(layers: Sensitivity) -> str:
    worst = layers.ranked()[0]
    if worst.isolated is None:
        return ""
    if worst.isolated == 0:
        return f"No node costs anything alone in {layers.precision}."
    what = "alone" if worst.exact else "together with its neighbours, which were not taken apart"
    return f"What {layers.precision} hurts most: {worst.place}, {_cost(worst.isolated, layers.unit)} {what}."


def _cost(distance: float, unit: str) -> str:
    return f"{distance:.3g} {unit_label(unit)}" if math.isfinite(distance) else "values that are lost"


def _empty_sentence(keep: KeepList, layers: Sensitivity | None) -> str:
    """Why no node is kept: none was measured, none is needed, or none helps."""
    distance = f"{keep.total:.3g} {unit_label(keep.unit)}"
    if layers is not None and all(node.isolated is None for node in layers.nodes):
        return "No node was measured before time was up, so that there is no list of what to keep in fp32."
    if keep.met:
        which = f"No node beside the {len(keep.nodes)} that are kept already" if keep.nodes else "No node"
        return f"{which} needs to be kept in fp32: the distance is {distance}{_say_samples(keep)}. {_say_aim(keep)}"
    return f"No list of nodes to keep in fp32 brings the distance of {distance} down to {keep.tolerance:.3g}."


def _say_aim(keep: KeepList) -> str:
    if keep.met:
        return f"Aimed at: {keep.tolerance:.3g}."
    return f"The aim of {keep.tolerance:.3g} is not met{' there' if keep.found_met else ', by no list'}."


def _say_samples(keep: KeepList) -> str:
    if not keep.checked:
        return f" on the {tell_samples(keep.samples)} that the list was found on, and was not checked on others"
    found = f"{keep.found_error:.3g} on the {keep.samples} it was"
    return f" on {tell_samples(keep.checked)} that the list was not found on ({found})"


def tell_samples(samples: int) -> str:
    """As in "1 sample" and "4 samples"."""
    return f"{samples} sample{'' if samples == 1 else 's'}"


def _layer_row(node: NodeSensitivity) -> list[str]:
    origin, trace = node.origin, node.trace
    where = f"{origin.source} {node.op}" if origin.source else node.op
    shares = ("0" if share == 0 else percent(share) for share in (trace.overflow, trace.flushed))
    return [where, layer_cost(node), percent(trace.drift), origin.module or "-", origin.text or "-", *shares, node.name]


def layer_cost(node: NodeSensitivity) -> str:
    """What a node costs alone, as far as that is known."""
    if node.isolated is None:
        return "not measured"
    return f"{node.isolated:.3g}" if node.exact else f"at most about {node.isolated:.3g}"


def _drift_sentence(layers: Sensitivity) -> str:
    node = first_divergence(layers)
    if node is None:
        return ""
    first = f"{node.place} is the first whose values"
    if node.trace.nonfinite > 0:
        return f"{first} are infinite or NaN in {layers.precision}: {percent(node.trace.nonfinite)} of them."
    if not math.isfinite(node.trace.drift):
        return f"{first} are 0 in fp32 and not in {layers.precision}."
    size = f"{percent(node.trace.drift)} {'of ' * (node.trace.drift < 10)}their size"
    return f"{first} drift in {layers.precision}, by {size}."
