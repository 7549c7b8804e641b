"""Links of the chain in words, and what to do about each."""

from __future__ import annotations

from lightning_robust.deployment.parity.links import Link
from lightning_robust.deployment.parity.readout import PLAIN_UNIT
from lightning_robust.deployment.parity.result import ParityReport
from lightning_robust.deployment.parity.tolerances import DEFAULT_TOLERANCES

_NAMES = {
    "export": "export to ONNX",
    "tf32": "TF32",
    "fp16": "fp16",
    "bf16": "bf16",
    "quantisation": "int8",
    "preprocessing": "other preprocessing (hypothetical)",
}
_REMEDIES = {
    "export": "The graph is another function: look in `forward` for what depends on training mode or on the batch.",
    "tf32": "Build without TF32: --noTF32 for trtexec, tf32: false here.",
    "fp16": "Keep the nodes that cost most in fp32.",
    "bf16": "Keep the nodes that cost most in fp32, or deploy in fp16, which has three more bits.",
    "quantisation": "Leave the nodes that cost most out of int8, or calibrate on more inputs.",
    "engine": "The runtime fuses and sums in its own order: compare its version and flags; keep the list in fp32.",
    "preprocessing": "Ask whether the deployed side has it: lightning-robust fingerprint.",
}
_SOUND = "Nothing: as near as sound models are."


def link_label(key: str) -> str:
    """A link in words, from its key.

    Example:
        >>> link_label("export"), link_label("engine/openvino-bf16"), link_label("engine")
        ('export to ONNX', 'openvino-bf16, executed', 'engine, executed')
    """
    name, _, target = key.partition("/")
    return f"{target or name}, executed" if name == "engine" else _NAMES.get(name, name)


def link_remedy(report: ParityReport, link: Link) -> str:
    """What to do about a link: nothing, where its target is as near as sound models are."""
    if link.name == "preprocessing":
        return _REMEDIES[link.name]
    limit = DEFAULT_TOLERANCES.get(link.target)
    result = report.targets.get(link.target)
    distance = None if result is None else result.metrics.get(PLAIN_UNIT)
    if limit is not None and distance is not None and distance <= limit and not _is_half(link):
        return _SOUND
    return f"{_REMEDIES.get(link.name, '')}{_name_file(report, link)}"


def _name_file(report: ParityReport, link: Link) -> str:
    """The file that names the nodes, where there is one."""
    precision = {"quantisation": "int8"}.get(link.name, link.name)
    keeps = [examined.keep for examined in report.examined if examined.layers.precision == precision]
    return "".join(f" {keep.setting}.json has them." for keep in keeps if keep is not None and keep.nodes)


def _is_half(link: Link) -> bool:
    """Whether a list of nodes can bring it down further."""
    return link.name in ("fp16", "bf16", "quantisation")
