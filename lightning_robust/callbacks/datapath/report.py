"""What a datapath says: scalars, a table, a few sentences. It is measured in ``datapath_probe.py``, drawn elsewhere."""

from __future__ import annotations

import math

from lightning_robust.callbacks.datapath.measure import Datapath, Paths


def scalars(found: Datapath) -> dict[str, float]:
    """What is logged; what is not finite is left out."""
    stem = f"datapath/{found.condition}"
    values = {f"{stem}/parting_depth": found.depth(found.parting)}
    values |= {} if found.start is None else {f"{stem}/inputs": found.start}
    for layer in found.layers:
        values[f"{stem}/divergence/{layer.name}"] = layer.relative
        values[f"{stem}/noise/{layer.name}"] = math.nan if layer.control is None else layer.control
    if found.paths is not None:
        values |= {
            f"{stem}/changed": found.paths.changed.float().mean().item(),
            f"{stem}/critical": found.paths.clean.share,
            f"{stem}/diverging_depth": found.depth(found.paths.diverging),
            f"{stem}/merging_depth": found.depth(found.paths.merging),
        }
        for place, overlap in zip(found.paths.places, found.paths.overlaps, strict=True):
            values[f"{stem}/overlap/{found.layers[place].name}"] = overlap.pair
    return {tag: value for tag, value in values.items() if math.isfinite(value)}


def table(found: Datapath) -> tuple[list[str], list[list[str]]]:
    """Columns and a line for each layer, in the order of the computation."""
    columns = ["layer", "divergence", "same-norm noise", "ratio", f"carry {found.share:.0%}", "most diverging channels"]
    rows = []
    for layer, ratio in zip(found.layers, _ratios(found), strict=True):
        carriers = layer.carriers(found.share)
        top = layer.levels.nan_to_num(posinf=math.inf).argsort(descending=True)[:10].tolist()
        rows.append(
            [
                layer.name,
                _number(layer.relative),
                "" if layer.control is None else _number(layer.control),
                _number(ratio),
                f"{len(carriers)} of {len(layer.clean)}",
                ", ".join(map(str, top)),
            ]
        )
    if found.paths is not None:
        columns += ["critical, clean", "critical, perturbed", "overlap", "in its class", "own class", "wrong class"]
        for place, row in enumerate(rows):
            row += _of_paths(found.paths, place)
    return columns, rows


def summary(found: Datapath) -> str:
    """The finding in a few sentences."""
    if not any(layer.relative for layer in found.layers):
        return f"{found.condition} moves nothing."
    values, names, growth = [layer.relative for layer in found.layers], [e.name for e in found.layers], _growth(found)
    place = found.parting if found.parting is not None else max(range(len(names)), key=growth.__getitem__)
    layer = found.layers[place]
    carriers = f"{len(layer.carriers(found.share))} of {len(layer.clean)} channels carry {found.share:.0%} of it"
    begun = (
        f"{_number(values[0])} at the first layer" if found.start is None else f"{_number(found.start)} in the inputs"
    )
    against = [""] * len(values)
    if found.controls is not None:
        against = [f", {_number(ratio)} times noise of the same norm" for ratio in _ratios(found)]
    if found.parting is not None:
        text = (
            f"clean and {found.condition} part at `{layer.name}` (layer {place + 1} of {len(names)}), where the "
            f"divergence is {_number(values[place])} after {begun}{against[place]}; {carriers}."
        )
        if place + 1 < len(values):
            text += f" At the end it is {_number(values[-1])}{against[-1]}."
    else:
        text = (
            f"clean and {found.condition} do not part. The divergence is {begun} and {_number(values[place])} at "
            f"`{layer.name}`{against[place]}, where {carriers}; at the end {_number(values[-1])}{against[-1]}."
        )
    return text if found.paths is None else f"{text} {_on_predictions(found, found.paths)}"


def _on_predictions(found: Datapath, paths: Paths) -> str:
    changed = int(paths.changed.sum())
    if not changed:
        return f"None of {len(paths.changed)} predictions changes."
    where = [
        f"{name} at `{found.layers[place].name}`" if place is not None else f"{name} nowhere"
        for name, place in (("diverging", paths.diverging), ("merging with the wrong class", paths.merging))
    ]
    return (
        f"{changed} of {len(paths.changed)} predictions change; their critical channels ({paths.clean.share:.0%} of a "
        f"layer, {paths.perturbed.share:.0%} perturbed): {', '.join(where)}."
    )


def _of_paths(paths: Paths, place: int) -> list[str]:
    if place not in paths.places:
        return [""] * 6
    at = paths.places.index(place)
    sizes = [side.sets[at].float().sum(1).mean().item() for side in (paths.clean, paths.perturbed)]
    overlap = paths.overlaps[at]
    return [
        *(f"{size:.1f}" for size in sizes),
        *(_number(value) for value in (overlap.pair, overlap.within, overlap.own, overlap.other)),
    ]


def _ratios(found: Datapath) -> list[float]:
    """Divergence over that under noise; over that of the first layer where there is no such control."""
    values = [layer.relative for layer in found.layers]
    return _quotients(values, found.controls or [values[0]] * len(values))


def _growth(found: Datapath) -> list[float]:
    """Divergence over what it is compared with to say where the two part."""
    values = [layer.relative for layer in found.layers]
    start = values[0] if found.start is None else found.start
    return _quotients(values, [max(start, each) for each in found.controls or [start] * len(values)])


def _quotients(values: list[float], others: list[float]) -> list[float]:
    return [v / o if o > 0 else math.inf if v else 0.0 for v, o in zip(values, others, strict=True)]


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}"
