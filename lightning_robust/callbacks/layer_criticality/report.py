"""A criticality map in words and numbers: scalars, table, JSON, a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, get_args

from lightning_utilities.core.apply_func import apply_to_collection

from lightning_robust.callbacks.diagnostics import Report, Table, finite
from lightning_robust.callbacks.layer_criticality.figure import criticality_figures
from lightning_robust.callbacks.layer_criticality.measure import CriticalityMap, CriticalityRow
from lightning_robust.callbacks.layer_criticality.rewind import Rewound
from lightning_robust.functional.criticality import Verdict
from lightning_robust.statistics import Estimate
from lightning_robust.tables import number


def criticality_report(maps: Sequence[CriticalityMap]) -> Report:
    """Numbers, a table and a figure of each map, and two of the distances to the start.

    Args:
        maps: Of one network; clean batches first.
    """
    return Report(
        {tag: value for each in maps for tag, value in criticality_scalars(each).items()},
        {f"criticality/{each.condition}": criticality_table(each) for each in maps},
        criticality_figures(maps),
        [describe_map(each) for each in maps],
    )


def rewind_report(rewound: Rewound, monitor: str) -> Report:
    """The metrics before and after layers were put back."""
    rows = [
        [name, number(value, 5), number(rewound.after.get(name, math.nan), 5)] for name, value in rewound.before.items()
    ]
    changes = ", ".join(f"{name} {before} -> {after}" for name, before, after in rows)
    sentence = (
        f"Rewinding {', '.join(rewound.layers)} keeps {rewound.share:.1%} of what training gained in {monitor} "
        f"({changes}): {'the module holds it' if rewound.kept else 'the weights stay as trained'}."
    )
    return Report(
        {"criticality/rewound": float(len(rewound.layers) if rewound.kept else 0)},
        {"criticality/rewind": (["", "as trained", "rewound"], rows)},
        sentences=[sentence],
    )


def criticality_scalars(result: CriticalityMap) -> dict[str, float]:
    """The metric as trained, how many layers have which verdict, and the share of training's gain each layer keeps."""
    stem = "criticality/" if result.condition == "clean" else f"criticality/{result.condition}/"
    return {
        f"{stem}trained": result.trained,
        **{f"{stem}{verdict}": float(len(result.named(verdict))) for verdict in ("ambient", "critical")},
        **finite({f"{stem}kept/{row.name}": row.cells[0].kept.value for row in result.rows}),
    }


def criticality_table(result: CriticalityMap) -> Table:
    """A line for each layer; the last is the whole network.

    The share of training's gain that is kept with the layer at its start; the metric with fresh draws, at the start and
    at each moment; the root mean square change of its weights.
    """
    columns = ["layer", "verdict", "gain kept", f"{result.criterion.monitor}, random", *result.labels, "moved"]
    layers = [_table_row(row, row.verdict) for row in result.rows]
    return columns, [*layers, _table_row(result.whole, "")]


def describe_map(result: CriticalityMap) -> str:
    """The verdicts in a sentence."""
    counts = [
        f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} {verdict}"
        for verdict in get_args(Verdict)
        if (names := result.named(verdict))
    ]
    start = result.whole.cells[0].value
    return (
        f"{result.condition}, {result.criterion.monitor} {result.trained:.4g} as trained, {start:.4g} at the start; "
        f"keeping {result.criterion.threshold:.0%} of the difference: {'; '.join(counts)}."
    )


def criticality_json(result: CriticalityMap) -> dict[str, Any]:
    """All numbers; those that are not finite become None."""
    rows = [{**asdict(row), "randomised": asdict(row.randomised)} for row in (*result.rows, result.whole)]
    for row in rows:
        del row["limits"]
    content = {
        "condition": result.condition,
        "monitor": result.criterion.monitor,
        "mode": result.criterion.mode,
        "threshold": result.criterion.threshold,
        "trained": result.trained,
        "evaluations": result.evaluations,
        "labels": result.labels,
        "rows": rows,
    }
    finite_only: dict[str, Any] = apply_to_collection(content, float, lambda x: x if math.isfinite(x) else None)
    return finite_only


def _table_row(row: CriticalityRow, verdict: str) -> list[str]:
    cells = [number(cell.value) + ("" if cell.seen == 1 else f" ({cell.seen:.0%} seen)") for cell in row.cells]
    return [
        row.name,
        verdict,
        _interval(row.cells[0].kept),
        _interval(row.randomised),
        *cells,
        number(row.l2[-1]),
    ]


def _interval(estimate: Estimate) -> str:
    value = number(estimate.value)
    return value if math.isnan(estimate.low) else f"{value} ({number(estimate.low)} to {number(estimate.high)})"
