"""The shortest list of nodes to keep in fp32 so that a graph meets a tolerance."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from lightning_robust.deployment.numerics.rounding import Precision
from lightning_robust.deployment.numerics.sensitivity import NodeSweep, Sensitivity


@dataclass(frozen=True)
class KeepList:
    """Nodes that compute in fp32 so that a tolerance is met.

    Args:
        nodes: Names for ``to_half(model, keep_fp32=...)``, those between two of them that only move values included.
        modules: Paths of the PyTorch modules they come from.
        error: Distance that is left with all other nodes in low precision.
        tolerance: What was asked for.
        total: Distance without the list.
        precision: ``"fp16"``, ``"bf16"`` or ``"tf32"``.
        unit: What the distances are counted in.
        samples: Number of inputs that it was found on.
        complete: False if time was up before the list could be shortened.
    """

    nodes: tuple[str, ...]
    modules: tuple[str, ...]
    error: float
    tolerance: float
    total: float
    precision: Precision
    unit: str
    samples: int
    complete: bool

    @property
    def met(self) -> bool:
        """Whether the tolerance is met."""
        return self.error <= self.tolerance

    def write(self, path: str | Path) -> None:
        """Write it as JSON: ``nodes_to_exclude`` are the regular expressions that ModelOpt AutoCast takes."""
        content = asdict(self) | {"met": self.met, "nodes_to_exclude": [f"^{re.escape(name)}$" for name in self.nodes]}
        Path(path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def find_keep_list(sweep: NodeSweep, ranking: Sensitivity, tolerance: float, time_limit: float = 60.0) -> KeepList:
    """Find a short list of nodes whose computing in fp32 brings the distance down to a tolerance.

    The nodes that cost most alone are kept, as few as it takes; then each that is not needed is given up again.
    Neighbours that help only together (a norm that overflows) are found because each overflows alone.

    Args:
        sweep: The graph and its samples.
        ranking: What its nodes cost, from :meth:`NodeSweep.sensitivity`.
        tolerance: Largest allowed distance, in the sweep's unit.
        time_limit: Seconds for the search.

    Raises:
        ValueError: If the tolerance is negative or not finite.
    """
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"Expected `tolerance` to be a number from 0 up, but got {tolerance}.")
    deadline = time.monotonic() + time_limit
    order = [node.name for node in ranking.ranked()]
    count = _shortest_prefix(sweep, order, tolerance) if ranking.total > tolerance else 0
    keep, complete = _drop_needless(sweep, order[:count], tolerance, deadline)
    modules = dict.fromkeys(sweep.origins[name].module for name in keep if name in sweep.origins)
    return KeepList(
        nodes=tuple(sweep.with_moves(keep)),
        modules=tuple(modules),
        error=sweep.cost_of_keeping(keep),
        tolerance=tolerance,
        total=ranking.total,
        precision=ranking.precision,
        unit=ranking.unit,
        samples=ranking.samples,
        complete=complete,
    )


def _shortest_prefix(sweep: NodeSweep, order: list[str], tolerance: float) -> int:
    """The smallest number of leading nodes to keep that meets the tolerance: doubling, then halving."""
    low, high = 0, 1
    while high < len(order) and sweep.cost_of_keeping(order[:high]) > tolerance:
        low, high = high, 2 * high
    high = min(high, len(order))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if sweep.cost_of_keeping(order[:middle]) <= tolerance else (middle, high)
    return high


def _drop_needless(sweep: NodeSweep, keep: list[str], tolerance: float, deadline: float) -> tuple[list[str], bool]:
    """The list without the nodes that the tolerance is met without; and whether there was time to try each."""
    for name in reversed(keep):
        if time.monotonic() > deadline:
            return keep, False
        rest = [other for other in keep if other != name]
        if sweep.cost_of_keeping(rest) <= tolerance:
            keep = rest
    return keep, True
