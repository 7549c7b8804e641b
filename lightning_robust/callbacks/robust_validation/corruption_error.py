"""The mean corruption error of Hendrycks and Dietterich, of any metric that is an error or an accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_robust.checks import check_file
from lightning_robust.harness.directions import Mode
from lightning_robust.reading import read_json
from lightning_robust.suggest import first_of

CLEAN_NAME = "clean"
Metrics = Mapping[str, float]
"""Metric -> value."""
UnderEach = Mapping[str, Metrics]
"""Condition, ``"clean"`` or ``"fog@3"``, -> its metrics."""


def by_corruption(conditions: Sequence[str]) -> dict[str, list[str]]:
    """The conditions of each corruption; a perturbation has one, its own.

    Example:
        >>> by_corruption(["fog@1", "fog@2", "jpeg_90"])
        {'fog': ['fog@1', 'fog@2'], 'jpeg_90': ['jpeg_90']}
    """
    groups: dict[str, list[str]] = {}
    for condition in conditions:
        groups.setdefault(condition.partition("@")[0], []).append(condition)
    return groups


def means(measured: UnderEach) -> dict[str, dict[str, float]]:
    """Corruption -> metric -> mean over the severities that were measured."""
    groups = by_corruption([name for name in measured if name != CLEAN_NAME])
    return {
        corruption: {
            metric: sum(measured[name][metric] for name in names) / len(names) for metric in measured[names[0]]
        }
        for corruption, names in groups.items()
    }


def errors(measured: UnderEach, metric: str, mode: Mode) -> dict[str, float] | None:
    """The error under each condition: the metric where smaller is better, else what an accuracy lacks to one.

    None where larger is better and the metric is no share of one, so that there is no saying what its error is.

    Example:
        >>> errors({"clean": {"acc": 0.75}, "fog@1": {"acc": 0.5}}, "acc", "max")
        {'clean': 0.25, 'fog@1': 0.5}
    """
    values = {name: metrics[metric] for name, metrics in measured.items()}
    if mode == "min":
        return values
    return {name: 1 - value for name, value in values.items()} if all(0 <= v <= 1 for v in values.values()) else None


def mean_error(found: Mapping[str, float]) -> float:
    """The mean over corruptions of the mean error over severities.

    Example:
        >>> mean_error({"clean": 0.1, "fog@1": 0.2, "fog@2": 0.4, "jpeg_90": 0.1})
        0.2
    """
    groups = by_corruption([name for name in found if name != CLEAN_NAME])
    each = [sum(found[name] for name in names) / len(names) for names in groups.values()]
    return sum(each) / len(each)


def mean_corruption_error(found: Mapping[str, float], baseline: Mapping[str, float]) -> float:
    r"""Errors relative to those of a baseline, as the paper defines it; 1 is the baseline's.

    .. math:: \mathrm{mCE} = \frac{1}{|C|} \sum_{c \in C} \frac{\sum_s E_{s, c}}{\sum_s E_{s, c}^{\text{baseline}}}

    (`Hendrycks and Dietterich 2019 <https://arxiv.org/abs/1903.12261>`_, who write it in percent.)

    Raises:
        ZeroDivisionError: If the baseline makes no error under a corruption.

    Example:
        >>> mean_corruption_error({"fog@1": 0.25, "fog@2": 0.5}, {"clean": 0.1, "fog@1": 0.5, "fog@2": 1.0})
        0.5
    """
    groups = by_corruption([name for name in found if name != CLEAN_NAME])
    ratios = [sum(found[n] for n in names) / sum(baseline[n] for n in names) for names in groups.values()]
    return sum(ratios) / len(ratios)


def read_baseline(baseline: str | Mapping[str, Any], conditions: Sequence[str], argument: str) -> UnderEach:
    """The numbers of a baseline, from ``corruptions.json`` of another run or from a mapping of that form.

    Args:
        baseline: The path or the mapping: condition -> metric -> value.
        conditions: What it must have.
        argument: As the user named it.

    Raises:
        ValueError: If it is nothing like that, or lacks a condition.
        OSError: If the file cannot be read.
    """
    if isinstance(baseline, str):
        check_file(f"the corruptions.json of another run for `{argument}`", baseline)
    content = read_json(baseline) if isinstance(baseline, str) else baseline
    source = baseline if isinstance(baseline, str) else "the mapping"
    if not _is_measured(content):
        raise ValueError(
            f"Expected `{argument}` as numbers by condition and metric, such as {{'fog@3': {{'val/acc': 0.6}}}}, or "
            f"the path of such a file, but got {str(content)[:80]} from {source}."
        )
    missing = [name for name in conditions if name not in content]
    if missing:
        raise ValueError(
            f"Expected `{argument}` to have all that `under` names, but {source} lacks {first_of(missing)}. Measure "
            "it with the same `under`."
        )
    return {str(name): metrics for name, metrics in content.items()}


def _is_measured(content: Any) -> bool:
    if not isinstance(content, Mapping) or not content:
        return False
    inner = [metrics for metrics in content.values() if isinstance(metrics, Mapping)]
    numbers = [isinstance(value, int | float) for metrics in inner for value in metrics.values()]
    return len(inner) == len(content) and bool(numbers) and all(numbers)
