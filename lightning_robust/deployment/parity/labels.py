"""How good decoded values are by the labels of the samples, and how much worse the deployed side's are for it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_robust.decoding.alignment import Decoded
from lightning_robust.deployment.parity.distance import named, share_true
from lightning_robust.deployment.parity.readout import Values

WORSE = "worse"
"""Behind the name of a metric: by how much the deployed side's is worse than the reference's."""


def label_metrics(reference: Values, deployed: Values, truth: Values) -> dict[str, float]:
    """The deployed side's metrics by labels, and by how much each is worse than the reference's.

    Of boxes ``map``, of masks ``miou``, of other values the mean absolute ``error`` of the points that are there and
    have labels, or the ``accuracy`` of integers and bools. How much worse an error is, is said of the points that both
    sides have.

    Args:
        reference: Decoded values of the reference.
        deployed: Those of the deployed side.
        truth: What is right, for some of the values.

    Raises:
        ValueError: If labels are of no value, or do not fit one.

    Example:
        >>> import torch
        >>> truth, ours, theirs = ({"x_px": torch.tensor([place])} for place in (1.0, 1.5, 3.0))
        >>> label_metrics(ours, theirs, truth)
        {'x_px_error': 2.0, 'x_px_error_worse': 1.5}
    """
    if unknown := sorted(truth.keys() - reference.keys()):
        raise ValueError(f"Expected labels of the decoded values {sorted(reference)}, but got some of {unknown}.")
    metrics: dict[str, float] = {}
    for name, right in truth.items():
        ours, theirs = (_score(side[name], right, name) for side in (reference, deployed))
        if "error" in theirs and isinstance(right, Tensor):
            worse = _error_beyond(reference[name], deployed[name], right)
        else:
            worse = {f"{metric}_{WORSE}": ours[metric] - theirs[metric] for metric in theirs}
        metrics |= named(name, theirs | worse)
    return metrics


def _score(value: Tensor | Decoded, right: Tensor | Decoded, name: str) -> dict[str, float]:
    if type(value) is not type(right) or value.shape[:1] != right.shape[:1]:
        kinds = f"{_describe_kind(value)}, but got {_describe_kind(right)}"
        raise ValueError(f"Expected labels of {name!r} as `decode` gives the values, {kinds}.")
    if isinstance(value, Decoded) and isinstance(right, Decoded):
        return value.score(right)
    if not isinstance(value, Tensor) or not isinstance(right, Tensor) or value.shape != right.shape:
        raise ValueError(f"Expected labels of {name!r} of shape {tuple(value.shape)}, but got {tuple(right.shape)}.")
    if not value.is_floating_point():
        return {"accuracy": share_true(value.cpu() == right.cpu())}
    error = _errors(value, right)
    return {"error": float(error[~error.isnan()].mean())}


def _errors(value: Tensor, right: Tensor) -> Tensor:
    return (value.double().cpu() - right.double().cpu()).abs()


def _error_beyond(ours: Any, theirs: Any, right: Tensor) -> dict[str, float]:
    """By how much the deployed side's mean error is larger on the points that all have; nothing without one."""
    beyond = _errors(theirs, right) - _errors(ours, right)
    both = ~beyond.isnan()
    return {f"error_{WORSE}": float(beyond[both].mean())} if both.any() else {}


def _describe_kind(value: Tensor | Decoded) -> str:
    return f"{type(value).__name__} of {value.shape[0]} samples" if len(value.shape) else type(value).__name__
