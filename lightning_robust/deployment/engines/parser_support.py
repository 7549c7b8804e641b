"""Which nodes the parser of TensorRT-RTX refuses: all of them at once, without a build and without a GPU.

The parser runs in a child process, which takes half a second to start; the answer is kept for the structure of a graph.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from lightning_robust.deployment.engines import abilities
from lightning_robust.deployment.engines.abilities import CHILD_SCRIPT
from lightning_robust.deployment.engines.child.process import EngineError, run_child
from lightning_robust.deployment.engines.child.supervisor import scratch
from lightning_robust.deployment.engines.refit import structure
from lightning_robust.deployment.graph.export import Exported
from lightning_robust.deployment.graph.lint import Finding
from lightning_robust.deployment.graph.origin import Origin

_QUOTED = re.compile(r'&& "([^"]+)"')
_ASSERTION = re.compile(r"Assertion failed: [^:]+: (.+)")
_USAGE = re.compile(r"API Usage Error \((?:[^:]*: )?(.+?) In \w+ at ", re.DOTALL)
_KNOWN = {"A1", "A2", "A5", "A11", "A12"}
"""Rules that name a node which is refused, with a remedy of their own."""
_answers: dict[bytes, tuple[Refusal, ...]] = {}


class Refusal(NamedTuple):
    """A node that the parser refuses; ``place`` is its index in the graph, -1 for the whole graph."""

    place: int
    operator: str
    reason: str


def refused_nodes(model: bytes, time_limit: float = 30.0) -> tuple[Refusal, ...]:
    """The nodes that the parser of TensorRT-RTX refuses, each with its reason; nothing where it is not installed.

    A parser that crashes or hangs refuses nothing: it is asked for advice, and a build will say what is wrong.

    Args:
        model: A serialised ONNX model with its weights.
        time_limit: Seconds for the child process.

    Example:
        >>> import onnx.parser
        >>> text = '<ir_version: 9, opset_import: ["" : 17]> g (float[2,2] x) => (float y) { y = Det(x) }'
        >>> refused = refused_nodes(onnx.parser.parse_model(text).SerializeToString())
        >>> [node.operator for node in refused] == ([] if abilities.missing_package("tensorrt_rtx") else ["Det"])
        True
    """
    if abilities.missing_package("tensorrt_rtx"):
        return ()
    key = hashlib.sha256(structure(model)).digest()
    if key not in _answers:
        try:
            _answers[key] = _ask(model, time_limit)
        except (EngineError, OSError):
            _answers[key] = ()
    return _answers[key]


def with_refusals(exported: Exported, findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The findings of a graph, and A13 for each node that is refused and is not among them with a remedy of its own."""
    named = {finding.node for finding in findings if finding.rule in _KNOWN}
    found = [_refused(exported, refusal) for refusal in refused_nodes(exported.model.SerializeToString())]
    return (*findings, *(finding for finding in found if finding.node not in named))


def _ask(model: bytes, time_limit: float) -> tuple[Refusal, ...]:
    with scratch() as folder:
        reads = {"model": folder / "model.onnx"}
        reads["model"].write_bytes(model)
        spec = {"backend": "tensorrt_rtx", "stand_in": False}
        result, _ = run_child(CHILD_SCRIPT, "support", spec, folder, time_limit, reads=reads)
    first: dict[int, Refusal] = {}
    for place, operator, reason in result.get("refused", ()):
        first.setdefault(place, Refusal(place, operator, _readable(reason)))
    return tuple(first.values())


def _refused(exported: Exported, refusal: Refusal) -> Finding:
    graph = exported.model.graph
    node = graph.node[refusal.place] if 0 <= refusal.place < len(graph.node) else None
    name = graph.name if node is None else node.name or node.output[0]
    origin = exported.origins.get(name, Origin("", ""))
    version = abilities.library_version("tensorrt_rtx")
    return Finding(
        "A13",
        name,
        origin.module,
        origin.source,
        f"{'a graph' if node is None else node.op_type} that the parser of TensorRT-RTX {version} refuses",
        f"There is no engine. Its reason: {refusal.reason}." if refusal.reason else "There is no engine.",
        "Write it with operators that TensorRT has, or apply it before or after the engine.",
    )


def _readable(reason: str) -> str:
    """The sentence in a failed assertion of the parser; '' where there is only code."""
    for pattern in (_QUOTED, _ASSERTION, _USAGE):
        told = pattern.search(reason)
        if told:
            return " ".join(told[1].split()).rstrip(".")
    return "" if reason in ("", "false") else " ".join(reason.split())[:200].rstrip(".")
