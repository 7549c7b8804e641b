"""What the keys of a budget may be, for each command; known before anything that measures is imported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from lightning_robust.deployment.engines.names import target_names
from lightning_robust.deployment.replay.limits import replay_key
from lightning_robust.gate.budget import Rules, check_subject, read_budget, read_limits
from lightning_robust.gate.options import Gate

PLAIN_METRICS = (
    *("rel_l2", "max_abs", "p99_abs", "rmse", "bias", "nonfinite", "flip_rate"),
    *("storage", "latency_ms", "latency_ms_p99"),
)
"""The metrics of a target that need no ``decode``."""
GOLDEN_PARTS = ("whole", "input", "engine")
"""What a dump's distance to the golden file is told apart into."""
CAUSES = (
    *("channel_order", "gain_offset", "gamma", "color_matrix", "color_range", "shift", "crop", "resize_filter"),
    *("rounding", "compression", "noise", "grey", "rotation", "lens", "overlay"),
    *("orientation", "memory_layout", "frame_sequence", "input_type"),
)
"""The names of what a fingerprint finds."""
FINGERPRINT_NUMBERS = ("causes", "distance", "unexplained")
PRECISIONS = ("fp16", "bf16", "int8")
_DECODED = re.compile(r"\w.*_(mean|p99|max|bias|lost|flips|new|ap_loss|iou_loss|error|worse)")


def parity_key(key: str, decoded: bool = True) -> str:
    """A key of ``parity``, with the metric that a target alone stands for.

    Args:
        key: ``"<target>"`` or ``"<target>/<metric>"``.
        decoded: Whether outputs are decoded, so that there are metrics in the task's units.

    Raises:
        ValueError: For an unknown target or metric.

    Example:
        >>> parity_key("emulated-fp16"), parity_key("emulated-fp16/lateral_px_p99")
        ('emulated-fp16/rel_l2', 'emulated-fp16/lateral_px_p99')
    """
    target, _, metric = key.partition("/")
    check_subject(target, target_names())
    return f"{target}/{_metric(metric or 'rel_l2', decoded)}"


def parity_limits(
    gate: Gate, tolerance: Mapping[str, float] | None, *, decoded: bool = True
) -> tuple[dict[str, float], str]:
    """The limits of ``parity``, those of an option beside and before those of the file; and where they are from.

    Args:
        gate: With those of the file.
        tolerance: Those of the option, which are read as those of a file.
        decoded: Whether there are metrics in the task's units.

    Raises:
        ValueError: For an unknown target or metric, or what is no limit.
    """
    given = {} if not tolerance else read_limits(tolerance, "tolerance", RULES).of("parity")
    limits = {**gate.limits, **given}
    source = " and ".join(filter(None, [gate.source, "--tolerance" if given else ""]))
    for key in limits:
        try:
            parity_key(key, decoded)
        except ValueError as error:
            raise ValueError(f"{source}: {key}: {error}") from error
    return limits, source


def read_parity_limits(budget: str | Path | Mapping[str, float]) -> tuple[dict[str, float], str]:
    """The limits of ``parity`` in a file or a mapping, and where they are from.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no budget, or has none of parity.

    Example:
        >>> read_parity_limits({"emulated-fp16": 5e-3})
        ({'emulated-fp16/rel_l2': 0.005}, 'its budget')
    """
    if isinstance(budget, Mapping):
        source, limits = "its budget", read_limits(budget, "the budget", RULES).of("parity")
    else:
        source, limits = str(budget), read_budget(budget, RULES).of("parity")
    if not limits:
        raise ValueError(f"Expected limits as <target>/<metric> in {source}, but it has none of parity.")
    return limits, source


def _golden_key(key: str) -> str:
    part, _, metric = key.partition("/")
    check_subject(part, [*GOLDEN_PARTS, *target_names()], "whole, input, engine or a target")
    return f"{part}/{_metric(metric or 'rel_l2')}"


def _fingerprint_key(key: str) -> str:
    check_subject(key, [*FINGERPRINT_NUMBERS, *CAUSES], "a number or a cause")
    return key


def _precision_key(key: str) -> str:
    precision, _, metric = key.partition("/")
    check_subject(precision, PRECISIONS, "a precision")
    return f"{precision}/{_metric(metric or 'rel_l2')}"


def _metric(metric: str, decoded: bool = True) -> str:
    """A metric's name; of decoded values, whose names the module gives, only the end can be checked."""
    if not (decoded and _DECODED.fullmatch(metric)):
        endings = ", or <value>_ and mean, p99, max, bias, lost or flips" if decoded else ""
        check_subject(metric, PLAIN_METRICS, f"one of the metrics{endings}")
    return metric


RULES = Rules(
    target_names(),
    {
        "parity": parity_key,
        "golden": _golden_key,
        "fingerprint": _fingerprint_key,
        "replay": replay_key,
        "precision": _precision_key,
    },
)
"""What every command's keys may be; those of ``compare`` are the metrics of its runs."""
