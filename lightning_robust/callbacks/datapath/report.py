"""A datapath as it is logged: scalars, tables, figures."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_robust.callbacks.datapath.figure import datapath_figures
from lightning_robust.callbacks.datapath.measure import CARRIED_SHARE, Datapath
from lightning_robust.callbacks.datapath.paths import Paths
from lightning_robust.callbacks.datapath.words import describe_datapath, noise_ratios
from lightning_robust.callbacks.diagnostics import Report, Table, finite
from lightning_robust.functional.datapath import LayerDivergence
from lightning_robust.tables import number, percent


def datapath_report(results: Sequence[Datapath]) -> Report:
    """Numbers, tables, figures and sentences for each condition."""
    return Report(
        {tag: value for result in results for tag, value in datapath_scalars(result).items()},
        {f"datapath/{r.condition}/{end}": table for r in results for end, table in datapath_tables(r).items()},
        {f"datapath/{r.condition}/{end}": draw for r in results for end, draw in datapath_figures(r).items()},
        [describe_datapath(result) for result in results],
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


def datapath_tables(result: Datapath) -> dict[str, Table]:
    """A line for each layer, in the order of the computation: how far it moves; for classifiers what is in common."""
    columns = ["layer", "change", "under noise", f"channels with {CARRIED_SHARE:.0%}", "most changed"]
    ratios = noise_ratios(result)
    rows = [_layer_cells(layer, ratio) for layer, ratio in zip(result.layers, ratios, strict=True)]
    tables: dict[str, Table] = {"layers": (columns, rows)}
    if result.paths is not None:
        tables["common_channels"] = _paths_table(result, result.paths)
    return tables


def _paths_table(result: Datapath, paths: Paths) -> Table:
    """Shares of the channels that a perturbed sample's prediction rests on, in common with others."""
    names = [result.layers[place].name for place in paths.places]
    columns = ["layer", "itself, clean", "two of a class", "own class", "wrong class"]
    shares = [(each.pair, each.within, each.own, each.other) for each in paths.overlaps]
    return columns, [[name, *map(number, row)] for name, row in zip(names, shares, strict=True)]


def _layer_cells(layer: LayerDivergence, ratio: float) -> list[str]:
    top = layer.levels.nan_to_num(posinf=math.inf).argsort(descending=True)[:3].tolist()
    noise = "" if layer.control is None else f"{percent(layer.control)} (1 / {number(ratio)})"
    return [
        layer.name,
        percent(layer.relative),
        noise,
        f"{len(layer.carriers(CARRIED_SHARE))} of {len(layer.clean)}",
        ", ".join(map(str, top)),
    ]
