"""A datapath in words and numbers: scalars, a table, a few sentences."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from lightning_robust.callbacks.datapath.figure import draw_datapath
from lightning_robust.callbacks.datapath.measure import CARRIED_SHARE, Datapath
from lightning_robust.callbacks.datapath.paths import Paths
from lightning_robust.callbacks.diagnostics import Report, Table, finite
from lightning_robust.functional.datapath import LayerDivergence
from lightning_robust.tables import number


def datapath_report(results: Sequence[Datapath]) -> Report:
    """Numbers, a table and a figure for each condition."""
    summaries = [describe_datapath(result) for result in results]
    stems = [f"datapath/{result.condition}" for result in results]
    return Report(
        {tag: value for result in results for tag, value in datapath_scalars(result).items()},
        {f"{stem}/layers": datapath_table(result) for stem, result in zip(stems, results, strict=True)},
        {
            f"{stem}/overview": functools.partial(draw_datapath, result, summary)
            for stem, result, summary in zip(stems, results, summaries, strict=True)
        },
        [f"Datapath: {summary}" for summary in summaries],
    )


def datapath_scalars(result: Datapath) -> dict[str, float]:
    """The numbers that are logged; those that are not finite are left out."""
    values = {"parting_depth": result.depth(result.parting)}
    values |= {} if result.start is None else {"inputs": result.start}
    for layer in result.layers:
        values[f"divergence/{layer.name}"] = layer.relative
        values[f"noise/{layer.name}"] = math.nan if layer.control is None else layer.control
    if result.paths is not None:
        values |= {
            "changed": result.paths.changed.float().mean().item(),
            "critical": result.paths.clean.share,
            "diverging_depth": result.depth(result.paths.diverging),
            "merging_depth": result.depth(result.paths.merging),
        }
        for place, overlap in zip(result.paths.places, result.paths.overlaps, strict=True):
            values[f"overlap/{result.layers[place].name}"] = overlap.pair
    return finite({f"datapath/{result.condition}/{tag}": value for tag, value in values.items()})


def datapath_table(result: Datapath) -> Table:
    """A line for each layer, in the order of the computation."""
    carry = f"carry {CARRIED_SHARE:.0%}"
    columns = ["layer", "divergence", "same-norm noise", "ratio", carry, "most diverging channels"]
    ratios = _noise_ratios(result)
    rows = [_layer_cells(layer, ratio) for layer, ratio in zip(result.layers, ratios, strict=True)]
    if result.paths is not None:
        columns += ["critical, clean", "critical, perturbed", "overlap", "in its class", "own class", "wrong class"]
        rows = [[*row, *_path_cells(result.paths, place)] for place, row in enumerate(rows)]
    return columns, rows


def describe_datapath(result: Datapath) -> str:
    """The result in a few sentences."""
    if not any(result.values):
        return f"{result.condition} moves nothing."
    part = _describe_parting(result) if result.parting is not None else _describe_growth(result)
    return part if result.paths is None else f"{part} {_describe_predictions(result, result.paths)}"


def _describe_parting(result: Datapath) -> str:
    place, last = result.parting or 0, len(result.layers) - 1
    layer = result.layers[place]
    text = (
        f"clean and {result.condition} part at `{layer.name}` (layer {place + 1} of {last + 1}), where the divergence "
        f"is {number(layer.relative)} after {_origin(result)}{_beside_noise(result, place)}; {_carriers(layer)}."
    )
    if place == last:
        return text
    return f"{text} At the end it is {number(result.values[last])}{_beside_noise(result, last)}."


def _describe_growth(result: Datapath) -> str:
    """Where nothing parts: the layer at which the perturbation stands out most."""
    start = result.values[0] if result.start is None else result.start
    baselines = [max(start, control) for control in result.controls or [start] * len(result.layers)]
    growth, last = _quotients(result.values, baselines), len(result.layers) - 1
    place = max(range(last + 1), key=growth.__getitem__)
    layer = result.layers[place]
    return (
        f"clean and {result.condition} do not part. The divergence is {_origin(result)} and {number(layer.relative)} "
        f"at `{layer.name}`{_beside_noise(result, place)}, where {_carriers(layer)}; at the end "
        f"{number(result.values[last])}{_beside_noise(result, last)}."
    )


def _describe_predictions(result: Datapath, paths: Paths) -> str:
    changed = int(paths.changed.sum())
    if not changed:
        return f"None of {len(paths.changed)} predictions changes."
    events = [
        f"{name} at `{result.layers[place].name}`" if place is not None else f"{name} nowhere"
        for name, place in (("diverging", paths.diverging), ("merging with the wrong class", paths.merging))
    ]
    return (
        f"{changed} of {len(paths.changed)} predictions change; their critical channels ({paths.clean.share:.0%} of a "
        f"layer, {paths.perturbed.share:.0%} perturbed): {', '.join(events)}."
    )


def _origin(result: Datapath) -> str:
    if result.start is None:
        return f"{number(result.values[0])} at the first layer"
    return f"{number(result.start)} in the inputs"


def _beside_noise(result: Datapath, place: int) -> str:
    if result.controls is None:
        return ""
    return f", {number(_noise_ratios(result)[place])} times noise of the same norm"


def _carriers(layer: LayerDivergence) -> str:
    return f"{len(layer.carriers(CARRIED_SHARE))} of {len(layer.clean)} channels carry {CARRIED_SHARE:.0%} of it"


def _layer_cells(layer: LayerDivergence, ratio: float) -> list[str]:
    top = layer.levels.nan_to_num(posinf=math.inf).argsort(descending=True)[:10].tolist()
    return [
        layer.name,
        number(layer.relative),
        number(layer.control),
        number(ratio),
        f"{len(layer.carriers(CARRIED_SHARE))} of {len(layer.clean)}",
        ", ".join(map(str, top)),
    ]


def _path_cells(paths: Paths, place: int) -> list[str]:
    if place not in paths.places:
        return [""] * 6
    index = paths.places.index(place)
    sizes = [side.sets[index].float().sum(1).mean().item() for side in (paths.clean, paths.perturbed)]
    overlap = paths.overlaps[index]
    shares = (overlap.pair, overlap.within, overlap.own, overlap.other)
    return [*(f"{size:.1f}" for size in sizes), *map(number, shares)]


def _noise_ratios(result: Datapath) -> list[float]:
    """Divergence over that under noise; over that of the first layer where there is no such control."""
    return _quotients(result.values, result.controls or [result.values[0]] * len(result.layers))


def _quotients(values: Sequence[float], others: Sequence[float]) -> list[float]:
    return [v / o if o > 0 else math.inf if v else 0.0 for v, o in zip(values, others, strict=True)]
