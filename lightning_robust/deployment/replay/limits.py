"""The names of a replay's numbers, and limits for them as files give them; known before torch is imported.

The names are ``<subject>/<metric>``: a target, a perturbation or ``torch-fp32`` (PyTorch by itself), and a metric of
:mod:`~.line_metrics`, with ``_px`` where it is counted in pixels. A name without a subject means every target.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

from lightning_robust.deployment.engines.names import target_names
from lightning_robust.deployment.pixels.names import FAMILIES
from lightning_robust.extensions import extension_names
from lightning_robust.gate.budget import read_limit
from lightning_robust.suggest import did_you_mean

_PIXELS = (
    *("swing", "bend", "mean", "p99", "max", "bias", "swing_beyond", "bend_beyond"),
    *("known_p99", "guessed_p99", "mean_beyond_motion", "p99_beyond_motion"),
)
_SHARES = ("lost", "known_lost", "gained", "frames_lost")
METRICS = (*(f"{name}_px" for name in _PIXELS), *_SHARES)
"""What can be bounded, each the largest of the lines; shares lie between 0 and 1."""
PYTORCH = "torch-fp32"
PERTURBATION_NAMES = tuple(name for family in FAMILIES.values() for name in family)


def read_numbers(given: Any, what: str) -> dict[str, float]:
    """Numbers by name, as a file gives them: ``swing_px: 2``, ``emulated-fp16/p99_px: 0.5`` or a block for a subject.

    Args:
        given: What the file holds.
        what: Names the file and the key in an error.

    Raises:
        ValueError: For an unknown name, or what is no number of at least 0.

    Example:
        >>> read_numbers({"swing": 2, "emulated-fp16": {"lost": 0.01}}, "bounds")
        {'swing_px': 2.0, 'emulated-fp16/lost': 0.01}
    """
    if not isinstance(given, Mapping) or not given:
        raise ValueError(f"{what}: expected names of metrics with a number each, but got {reprlib.repr(given)}.")
    numbers: dict[str, float] = {}
    for key, value in _flat(given, what):
        try:
            name, number = replay_key(key), read_limit(value)
        except ValueError as error:
            raise ValueError(f"{what}: {key}: {error}") from error
        if name in numbers:
            raise ValueError(f"{what}: expected one number for each name, but got two for {name}.")
        numbers[name] = number
    return numbers


def replay_key(key: str) -> str:
    """A name as :func:`replay_numbers` has it, of one in which ``_px`` may be left out.

    Raises:
        ValueError: If it is none; the message says what it may be.

    Example:
        >>> replay_key("emulated-fp16/p99"), replay_key("lost")
        ('emulated-fp16/p99_px', 'lost')
    """
    subject, slash, metric = key.rpartition("/")
    metric = f"{metric}_px" if metric in _PIXELS else metric
    subjects = [*target_names(), *PERTURBATION_NAMES, *extension_names("perturbations")]
    if slash and subject not in subjects:
        raise ValueError(f"expected a target or a perturbation, but got {subject!r}.{did_you_mean(subject, subjects)}")
    if metric not in METRICS:
        hint = did_you_mean(metric, METRICS if slash else [*METRICS, *subjects])
        raise ValueError(f"expected a metric out of {', '.join(METRICS)}, but got {metric!r}.{hint}")
    return f"{subject}{slash}{metric}"


def _flat(given: Mapping[Any, Any], what: str) -> Iterator[tuple[str, Any]]:
    for key, value in given.items():
        if isinstance(value, Mapping):
            if not value:
                raise ValueError(f"{what}: {key}: expected metrics with a number each, but got none.")
            yield from ((f"{key}/{metric}", number) for metric, number in value.items())
        else:
            yield str(key), value
