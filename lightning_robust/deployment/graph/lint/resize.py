"""Rules on resizing feature maps."""

from __future__ import annotations

from collections.abc import Iterator

from lightning_robust.deployment.graph.lint.finding import Finding, LintGraph

_ACCEPTED = {"half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_half_pixel_for_nn"}


def check_resize(graph: LintGraph) -> Iterator[Finding]:
    """A1 and A2: antialiasing, coordinate modes that TensorRT refuses, and linear resizes of old operator sets."""
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
        if opset >= 11 and mode not in _ACCEPTED:
            yield graph.finding(
                "A2",
                node,
                f"{kind} resize by {mode!r}",
                "TensorRT refuses the node: there is no engine.",
                "Resize by 'half_pixel', which torch.nn.functional.interpolate exports with align_corners=False.",
            )
        elif opset < 11 and kind != "nearest":
            yield graph.finding(
                "A2",
                node,
                f"{kind} resize of operator set {opset}",
                "Operator sets below 11 know asymmetric positions only, PyTorch's are those of pixel centres: features "
                "shift by up to half a pixel.",
                "Export with operator set 18 or later.",
            )
