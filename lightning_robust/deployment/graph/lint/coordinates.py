"""Rules on coordinates, which need more digits than fp16 has."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lightning_robust.deployment.graph.lint.finding import Finding, LintGraph, floating_constants
from lightning_robust.deployment.graph.lint.fp16_range import FP16_EXACT


def check_sampling(graph: LintGraph) -> Iterator[Finding]:
    """A7: sampling at coordinates that the network computes."""
    for node in graph.nodes("GridSample"):
        yield graph.finding(
            "A7",
            node,
            "sampling at computed coordinates",
            "In fp16 coordinates have steps of 0.0005 of the picture: half a pixel in a thousand.",
            "Keep the chain that computes the grid, and this node, in fp32.",
        )


def check_coordinate_ranges(graph: LintGraph) -> Iterator[Finding]:
    """A7: a constant that counts up to more than fp16 can resolve."""
    for node in graph.nodes("Add", "Sub", "Mul", "Div"):
        for value in floating_constants(node)[:1]:
            if value.size <= FP16_EXACT:
                continue
            steps = np.diff(value.reshape(-1).astype(np.float64))
            is_range = bool(np.allclose(steps, steps[0], rtol=1e-3, atol=1e-9)) and steps[0] != 0
            if is_range and np.abs(value).max() > FP16_EXACT:
                yield graph.finding(
                    "A7",
                    node,
                    f"a range of {value.size} coordinates up to {np.abs(value).max():.0f}",
                    "From 512 on fp16 has steps of half a unit, from 1024 on of a whole one.",
                    "Compute with normalised coordinates (0 to 1) and scale at the end, in fp32.",
                )
