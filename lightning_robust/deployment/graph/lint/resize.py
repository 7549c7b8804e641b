"""Rules on resizing feature maps."""

from __future__ import annotations

from collections.abc import Iterator

from lightning_robust.deployment.graph.lint.finding import Finding, LintGraph

_PLAIN_MODES = {"half_pixel", "align_corners"}


def check_resize(graph: LintGraph) -> Iterator[Finding]:
    """A1 and A2: antialiasing, and coordinate modes that versions of TensorRT read differently."""
    opset = graph.graph.opset_imports.get("", 1)
    for node in graph.nodes("Resize", "Upsample"):
        mode = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
        kind = node.attributes.get_string("mode", "nearest")
        if node.attributes.get_int("antialias", 0):
            yield graph.finding(
                "A1",
                node,
                f"{kind} resize with antialiasing",
                "TensorRT refuses the node: there is no engine.",
                "Resize with antialias=False, pool before, or resize in the preprocessing.",
            )
        plain = mode in _PLAIN_MODES or (mode == "asymmetric" and kind == "nearest")
        if opset < 11 or not plain:
            yield graph.finding(
                "A2",
                node,
                f"{kind} resize of operator set {opset}" if opset < 11 else f"{kind} resize by {mode!r}",
                "Versions read positions differently: features shift by up to half a pixel, or the node is refused.",
                "Export with operator set 18 or later and align_corners=False.",
            )
