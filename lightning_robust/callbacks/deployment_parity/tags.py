"""Which numbers of a parity pass go to loggers, and which are for monitors and ``parity.json`` alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import lightning.pytorch as pl

from lightning_robust.callbacks.deployment_parity.pass_settings import Log
from lightning_robust.deployment.engines.base import HALF
from lightning_robust.deployment.parity.tolerances import limits_by_tag
from lightning_robust.harness.trainers import monitored_metrics

STATUS = "parity/status"
_FAMILY = "sensitivity/family/"
_LOW = (*HALF, "fp16acc", "int8")


def split_tags(
    trainer: pl.Trainer, scalars: Mapping[str, float], unit: str, log: Log, tolerance: Mapping[str, float] | None
) -> tuple[dict[str, float], dict[str, float]]:
    """The numbers that loggers get, and the others.

    Args:
        trainer: What its callbacks and schedulers monitor is always logged.
        scalars: Values by tag.
        unit: The metric that stands for a distance.
        log: ``"full"`` logs all.
        tolerance: What has one is always logged.
    """
    shown = set(scalars) if log == "full" else {*brief_tags(scalars, unit), *limits_by_tag(tolerance or {})}
    shown |= monitored_metrics(trainer)
    return {t: v for t, v in scalars.items() if t in shown}, {t: v for t, v in scalars.items() if t not in shown}


def brief_tags(scalars: Mapping[str, float], unit: str) -> Iterator[str]:
    """The tags of about twenty numbers of a pass.

    Example:
        >>> numbers = {
        ...     "parity/status": 0,
        ...     "parity/a-fp32/status": 0,
        ...     "parity/b-fp16/status": 3,
        ...     "parity/a-fp32/bias": 0,
        ... }
        >>> list(brief_tags(numbers | {"parity/a-fp32/rel_l2": 0.1, "sensitivity/bgr/rmse": 0.1}, "rel_l2"))
        ['parity/status', 'parity/b-fp16/status', 'parity/a-fp32/rel_l2']
    """
    for tag, value in scalars.items():
        kind, _, rest = tag.partition("/")
        target, _, metric = rest.partition("/")
        if tag == STATUS or tag.startswith(_FAMILY) or (kind == "parity" and _is_brief(target, metric, value, unit)):
            yield tag


def _is_brief(target: str, metric: str, value: float, unit: str) -> bool:
    """Whether a number of a target is of those that matter: its distance, or why it has none."""
    if metric == "status":
        return value != 0
    ends = (f"{unit}_low", f"{unit}_high") if target.endswith(_LOW) else ()
    return metric in (unit, "step", *ends)
