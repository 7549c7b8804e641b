"""Lengths in epochs that a configuration holds beside ``trainer.max_epochs``, for trainings that are shorter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_SCHEDULES = ("T_max", "T_0", "total_iters", "total_steps", "epochs", "step_size", "milestones")
KNOWN = (*(f"lr_scheduler.{name}" for name in _SCHEDULES), "swa.start")
"""Keys whose numbers from 1 on are epochs."""


def value_at(config: Mapping[str, Any], key: str) -> Any:
    """What a configuration holds at a dotted key; None where there is no such key.

    Args:
        config: A whole configuration.
        key: As on the command line, where ``init_args`` may be left out.

    Example:
        >>> value_at(
        ...     {"lr_scheduler": {"class_path": "x.CosineAnnealingLR", "init_args": {"T_max": 9}}}, "lr_scheduler.T_max"
        ... )
        9
    """
    value: Any = config
    for name in key.split("."):
        if isinstance(value, Mapping) and name not in value:
            value = value.get("init_args")
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def brought_down(value: Any, share: float) -> Any:
    """A number of epochs, or a list of them, in a training of which only a share is left; one at least.

    What is below 1 is a part of the training, whatever its length, and stays.

    Raises:
        ValueError: If it is anything else.

    Example:
        >>> brought_down(15, 1 / 3), brought_down([6, 12], 0.25), brought_down(0.75, 0.5)
        (5, [2, 3], 0.75)
    """
    if isinstance(value, list):
        return [brought_down(each, share) for each in value]
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"Expected a number of epochs, or a list of them, but got {value!r}.")
    return max(1, round(value * share)) if value >= 1 else value


def beyond(config: Mapping[str, Any], epochs: int, but: Sequence[str]) -> list[str]:
    """Which of :data:`KNOWN` are longer than a training of ``epochs``, in order; those in ``but`` do not count."""

    def longest(value: Any) -> float:
        values = value if isinstance(value, list) else [value]
        return max((each for each in values if isinstance(each, int | float)), default=0)

    return [key for key in KNOWN if key not in but and longest(value_at(config, key)) > epochs]
