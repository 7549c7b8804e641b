"""All rules together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import onnx

from lightning_robust.deployment.graph.export import Origin
from lightning_robust.deployment.graph.lint import coordinates, fp16_range, resize, selection, validity
from lightning_robust.deployment.graph.lint.finding import Finding, LintGraph

RULES: tuple[Callable[[LintGraph], Iterator[Finding]], ...] = (
    resize.check_resize,
    fp16_range.check_weights,
    fp16_range.check_masks,
    fp16_range.check_written_norms,
    fp16_range.check_output_scale,
    coordinates.check_sampling,
    coordinates.check_coordinate_ranges,
    selection.check_selection,
    validity.check_training_mode,
    validity.check_floating_shapes,
    validity.check_grid_types,
    validity.check_types,
)


def lint(model: onnx.ModelProto, origins: Mapping[str, Origin] | None = None) -> list[Finding]:
    """Find what TensorRT will refuse, or compute differently in half precision, without running the graph.

    :mod:`~lightning_robust.deployment.numerics` measures how much it matters on real inputs.

    ===  ====================================================================================================
    A1   resize with antialiasing
    A2   resize in an unusual coordinate mode, or of an operator set below 11
    A3   weights beyond the range of fp16, or many below its smallest normal number
    A4   constants beyond the range of fp16 that are added or filled in, as in attention masks
    A5   dropout or BatchNorm in training mode
    A6   a normalisation layer written out as powers, means and roots
    A7   sampling by coordinates, or long ranges of coordinates, in floating point
    A8   an output scaled to hundreds of units, as pixels or metres
    A9   hard selection: values gathered by ArgMax or TopK, non-maximum suppression
    A10  shapes computed in floating point
    A11  GridSample whose grid and features have different types
    A12  types that do not agree
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
