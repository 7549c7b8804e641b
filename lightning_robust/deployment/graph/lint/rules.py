"""All rules together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import onnx

from lightning_robust.deployment.graph.lint import coordinates, fp16_range, norms, resize, selection, validity
from lightning_robust.deployment.graph.lint.finding import Finding, LintGraph
from lightning_robust.deployment.graph.origin import Origin

RULES: tuple[Callable[[LintGraph], Iterator[Finding]], ...] = (
    resize.check_resize,
    fp16_range.check_weights,
    fp16_range.check_batch_norms,
    fp16_range.check_masks,
    norms.check_written_norms,
    norms.check_reductions,
    coordinates.check_sampling,
    coordinates.check_grids,
    coordinates.check_output_scale,
    selection.check_selection,
    selection.check_topk,
    validity.check_training_mode,
    validity.check_floating_shapes,
    validity.check_grid_types,
    validity.check_types,
)

HALF_RULES = frozenset({"A3", "A4", "A6", "A7", "A8", "A14"})
"""The rules on what half precision does to a node, which a node that stays fp32 need not fear."""


def lint(model: onnx.ModelProto, origins: Mapping[str, Origin] | None = None) -> list[Finding]:
    """Find what TensorRT will refuse, or compute differently in half precision, without running the graph.

    :mod:`~lightning_robust.deployment.numerics` measures how much it matters on real inputs.

    ===  ====================================================================================================
    A1   resize with antialiasing
    A2   resize in a coordinate mode that is refused, or linear of an operator set below 11
    A3   weights beyond the range of fp16, or most of them below its smallest normal number
    A4   constants beyond the range of fp16 that are added or filled in, as in attention masks
    A5   dropout or BatchNorm in training mode
    A6   a normalisation written out as squares, sums and roots
    A7   sampling by coordinates, or a grid of positions beyond 512
    A8   an output in hundreds of units, as pixels or metres
    A9   hard selection: values gathered by ArgMax or TopK, non-maximum suppression
    A10  shapes computed in floating point
    A11  GridSample whose grid and features have different types
    A12  types that do not agree
    A13  a node that the parser of TensorRT-RTX refuses, by :mod:`~lightning_robust.deployment.engines.parser_support`
    A14  reductions that hide squares or exponentials: ReduceL2, ReduceSumSquare, ReduceLogSumExp
    A15  TopK of more than 3840
    ===  ====================================================================================================

    Args:
        model: Any ONNX model with its weights.
        origins: Node name -> place it comes from, :attr:`lightning_robust.deployment.graph.export.Exported.origins`.

    Returns:
        The findings by rule, then in the order of the graph. Empty for a clean model.

    Example:
        >>> from onnx import parser
        >>> text = "g (float[1,6,4] b, float[1,1,6] s) => (int64[n,3] y) { [nms] y = NonMaxSuppression(b, s) }"
        >>> [(f.rule, f.node) for f in lint(parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}'))]
        [('A9', 'nms')]
    """
    graph = LintGraph(model, origins or {})
    findings = [finding for rule in RULES for finding in rule(graph)]
    return sorted(findings, key=lambda finding: int(finding.rule[1:]))
