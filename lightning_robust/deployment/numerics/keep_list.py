"""The shortest list of nodes to keep in fp32 so that a graph meets a tolerance."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lightning_robust.deployment.numerics.precisions import Low
from lightning_robust.deployment.numerics.sensitivity import Sensitivity
from lightning_robust.deployment.numerics.sweep import NodeSweep
from lightning_robust.json_values import jsonable
from lightning_robust.progress import track

_SLACK = 1.05  # where no list meets the tolerance, the shortest one that is nearly as good as the best is taken


@dataclass(frozen=True)
class KeepList:
    """Nodes that compute in fp32 so that a tolerance is met.

    Args:
        nodes: Names for ``to_half(model, keep_fp32=...)``, with those that only move values between them; for int8 the
            products that are not quantised.
        of: How many nodes of the graph read or compute fp32 values; for int8, how many products can be quantised.
        modules: Paths of the PyTorch modules they come from.
        total: Distance without the list.
        error: Distance that is left with all other nodes in low precision, on the same samples.
        found_error: The same on the samples that the list was found on.
        tolerance: What was aimed at.
        precision: ``"fp16"``, ``"bf16"``, ``"tf32"`` or ``"int8"``.
        unit: What the distances are counted in.
        samples: Number of inputs that it was found on.
        checked: Number of other inputs, which `total` and `error` are of; 0 if there were none: then they are of those
            that it was found on.
        complete: False if time was up before the list could be shortened.
    """

    nodes: tuple[str, ...]
    of: int
    modules: tuple[str, ...]
    total: float
    error: float
    found_error: float
    tolerance: float
    precision: Low
    unit: str
    samples: int
    checked: int
    complete: bool

    @property
    def met(self) -> bool:
        """Whether the tolerance is met, on the samples that it was checked on."""
        return self.error <= self.tolerance

    @property
    def found_met(self) -> bool:
        """Whether the tolerance is met on the samples that it was found on."""
        return self.found_error <= self.tolerance

    @property
    def setting(self) -> str:
        """The setting that takes the list: ``"keep_fp32"`` or ``"exclude_int8"``."""
        return "exclude_int8" if self.precision == "int8" else "keep_fp32"

    def write(self, path: str | Path) -> None:
        """Write it as JSON: ``nodes_to_exclude`` are the regular expressions that ModelOpt takes.

        AutoCast takes them for half precision, and ``modelopt.onnx.quantization`` for int8.
        """
        patterns = [f"^{re.escape(name)}$" for name in self.nodes]
        content = asdict(self) | {"met": self.met, "found_met": self.found_met, "nodes_to_exclude": patterns}
        Path(path).write_text(json.dumps(jsonable(content), indent=2) + "\n", encoding="utf-8")


def find_keep_list(sweep: NodeSweep, ranking: Sensitivity, tolerance: float, time_limit: float = 60.0) -> KeepList:
    """Find a short list of nodes whose computing in fp32 brings the distance down to a tolerance.

    The nodes that cost most alone are kept, as few as it takes; then each that is not needed is given up again.
    Neighbours that help only together (a norm that overflows) are found because each overflows alone. Nodes that were
    not measured are in no list. Where no list meets the tolerance, it is the shortest that is nearly as good as the
    best.

    Args:
        sweep: The graph and the samples to find the list on.
        ranking: What its nodes cost, from :meth:`~.sweep.NodeSweep.sensitivity`, on these samples or fewer.
        tolerance: Largest allowed distance, in the sweep's unit.
        time_limit: Seconds for the search.

    Raises:
        ValueError: If the tolerance is negative or not finite.
    """
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"Expected `tolerance` to be a number from 0 up, but got {tolerance}.")
    deadline = time.monotonic() + time_limit
    order = [node.name for node in ranking.ranked() if node.isolated is not None]
    total = sweep.cost_of_keeping(())
    aim = max(tolerance, _SLACK * sweep.cost_of_keeping(order)) if total > tolerance else total
    count = _shortest_prefix(sweep, order, aim, deadline) if total > aim else 0
    keep, complete = _drop_needless(sweep, order[:count], aim, deadline)
    modules = dict.fromkeys(sweep.origins[name].module for name in keep if name in sweep.origins)
    error = sweep.cost_of_keeping(keep) if keep else total
    return KeepList(
        nodes=tuple(sweep.with_moves(keep)),
        of=len(sweep.names),
        modules=tuple(modules),
        total=total,
        error=error,
        found_error=error,
        tolerance=tolerance,
        precision=ranking.precision,
        unit=ranking.unit,
        samples=sweep.samples,
        checked=0,
        complete=complete and ranking.complete,
    )


def check_keep_list(keep: KeepList, sweep: NodeSweep) -> KeepList:
    """The list with its distances on other samples than those that it was found on.

    Args:
        keep: The list.
        sweep: The graph with those other samples.
    """
    total, error = sweep.cost_of_keeping(()), sweep.cost_of_keeping(keep.nodes)
    return replace(keep, total=total, error=error, checked=sweep.samples)


def _shortest_prefix(sweep: NodeSweep, order: list[str], aim: float, deadline: float) -> int:
    """The smallest number of leading nodes to keep that meets the aim: doubling, then halving while there is time."""
    low, high = 0, 1
    while high < len(order) and sweep.cost_of_keeping(order[:high]) > aim:
        low, high = high, 2 * high
    high = min(high, len(order))
    while high - low > 1 and time.monotonic() < deadline:
        middle = (low + high) // 2
        low, high = (low, middle) if sweep.cost_of_keeping(order[:middle]) <= aim else (middle, high)
    return high


def _drop_needless(sweep: NodeSweep, keep: list[str], aim: float, deadline: float) -> tuple[list[str], bool]:
    """The list without the nodes that the aim is met without; and whether there was time to try each."""
    for name in track(keep[::-1], "Shortening the keep list"):
        if time.monotonic() > deadline:
            return keep, False
        rest = [other for other in keep if other != name]
        if sweep.cost_of_keeping(rest) <= aim:
            keep = rest
    return keep, True
