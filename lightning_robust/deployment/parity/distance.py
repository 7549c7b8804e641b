"""The distance between two sets of outputs, as plain numbers and in the task's own units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

EPS = {"fp64": 2.0**-53, "fp32": 2.0**-24}
EPS |= dict.fromkeys(("tf32", "fp16", "fp16acc", "bf16", "int8"), 2.0**-11)
"""The rounding below which a spread is lost, relative to the number: half a step of fp64 and of fp32; whatever is lower
has fp16's, so that the distances are of one scale."""
_UNRESOLVED = 64  # an output that spreads over fewer steps is constant: rounding alone would be its whole distance


def compare_outputs(
    reference: Sequence[Tensor], deployed: Sequence[Tensor], precision: str = "fp32"
) -> dict[str, float]:
    r"""Distance of a deployed model's outputs to the reference; of several outputs the worst counts.

    With :math:`e = d - r`, over all elements that are finite on both sides:

    - ``rel_l2``: :math:`\|e\| / \|r - \bar r\|`, the centred relative distance. An output that is constant to what
      fp32, or below it fp16, resolves (:func:`is_constant`) has no spread: there it is :math:`\|e\| / \|r\|`, and
      infinite if that is zero and anything differs.
    - ``max_abs``, ``p99_abs``, ``rmse``: of :math:`|e|`; ``bias``: the mean of :math:`e`. A bias bends a line, noise
      does not.
    - ``nonfinite``: share of elements that are finite in the reference and not in the deployed outputs. Where there is
      one, ``rel_l2``, ``max_abs``, ``p99_abs`` and ``rmse`` are infinite and ``bias`` is that of the finite pairs.
      They are infinite also where the reference has no finite element: NaN throughout is no perfect deployment.
    - ``flip_rate``: share of differing decisions: of the largest class for floating outputs of shape
      ``(batch, classes > 1)``, of the elements for integers and bools. Absent where no output decides anything.

    Args:
        reference: Tensors ``(batch, ...)``, usually fp64.
        deployed: As many, of the same shapes, any type.
        precision: That of the deployed side, a key of :data:`EPS`; one of a package that is none counts as fp32.

    Raises:
        ValueError: If numbers of outputs or shapes differ, or an output is empty.

    Example:
        >>> round(compare_outputs([torch.tensor([0.0, 2.0])], [torch.tensor([0.0, 2.1])])["rel_l2"], 4)
        0.0707
    """
    rows = per_output(reference, deployed, precision)
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: max((row[key] for row in rows if key in row), key=abs) for key in keys}


def per_output(
    reference: Sequence[Tensor], deployed: Sequence[Tensor], precision: str = "fp32"
) -> list[dict[str, float]]:
    """The metrics of :func:`compare_outputs` for each output by itself."""
    if len(reference) != len(deployed) or not reference:
        raise ValueError(
            f"Expected as many outputs as the reference's {len(reference)}, at least one, but got {len(deployed)}. "
            "Compare the outputs of one model."
        )
    pairs = ((r.detach().cpu(), d.detach().cpu()) for r, d in zip(reference, deployed, strict=True))
    return [_compare_output(r, d, precision) for r, d in pairs]


def is_constant(values: Tensor, precision: str = "fp32") -> bool:
    """Whether a floating output spreads over fewer than 64 steps of fp32, or of fp16 for what is lower.

    Rounding would be its whole distance then.

    Example:
        >>> is_constant(torch.tensor([1.0, 1.001]), "fp16"), is_constant(torch.tensor([1.0, 1.001]), "fp32")
        (True, False)
    """
    finite = values[values.isfinite()].double()
    return bool(_centred_norm(finite) <= _UNRESOLVED * EPS.get(precision, EPS["fp32"]) * finite.norm())


def compare_decoded(reference: Mapping[str, Tensor], deployed: Mapping[str, Tensor]) -> dict[str, float]:
    """Distance in the task's own units, between two results of a ``decode`` hook.

    For a floating value: ``<name>_mean``, ``<name>_p99``, ``<name>_max`` of the absolute and ``<name>_bias`` of the
    signed deviation where both sides have a value (NaN means there is none), and ``<name>_lost``, the share of places
    that have a value on one side only. Where the reference has values and the deployed side has none of them, the
    absolute deviations are infinite; where the reference has none, they are 0 and only ``<name>_lost`` differs from 0.
    For integers and bools: ``<name>_flips``, the share of differing elements.

    Args:
        reference: Name -> tensor.
        deployed: The same names and shapes.

    Raises:
        ValueError: If names or shapes differ, or a value is empty.

    Example:
        >>> metrics = compare_decoded({"x_px": torch.tensor([1.0, 2.0])}, {"x_px": torch.tensor([1.0, 2.5])})
        >>> metrics["x_px_max"], metrics["x_px_lost"]
        (0.5, 0.0)
    """
    if reference.keys() != deployed.keys():
        raise ValueError(f"Expected the decoded values {sorted(reference)}, but got {sorted(deployed)}.")
    metrics: dict[str, float] = {}
    for name, value in reference.items():
        require_comparable(value, deployed[name])
        metrics |= named(name, compare_points(value.cpu(), deployed[name].cpu()))
    return metrics


def compare_points(reference: Tensor, deployed: Tensor) -> dict[str, float]:
    """The metrics of one decoded value, as :func:`compare_decoded` defines them, without its name."""
    if not reference.is_floating_point():
        return {"flips": share_true(reference != deployed)}
    here, there = ~reference.isnan(), ~deployed.isnan()
    both = here & there
    metrics = _summarise(deviation(reference[both], deployed[both]))
    if bool(here.any()) and not bool(both.any()):
        metrics |= dict.fromkeys(("mean", "p99", "max"), math.inf)
    return metrics | {"lost": share_true(here != there)}


def deviation(reference: Tensor, deployed: Tensor) -> Tensor:
    """Signed deviations in fp64 of values that are there on both sides; infinite where one side alone is."""
    error = (deployed.double() - reference.double()).masked_fill(deployed == reference, 0.0)
    return error.nan_to_num(math.inf, math.inf, -math.inf)


def named(name: str, metrics: Mapping[str, T]) -> dict[str, T]:
    """Metrics, or their intervals, under the name of their value."""
    return {f"{name}_{key}": number for key, number in metrics.items()}


def share_true(mask: Tensor) -> float:
    """Share of the elements that are true; 0 for an empty mask."""
    return float(mask.double().mean().item()) if mask.numel() else 0.0


def require_comparable(reference: Tensor, deployed: Tensor) -> None:
    """Refuse outputs of different shapes, and empty ones.

    Raises:
        ValueError: Naming the shapes.
    """
    if reference.shape != deployed.shape:
        raise ValueError(
            f"Expected an output of shape {tuple(reference.shape)}, but got {tuple(deployed.shape)}. "
            "Does the engine take the same inputs?"
        )
    if reference.numel() == 0:
        raise ValueError(f"Expected outputs with elements, but got shape {tuple(reference.shape)}.")


def _summarise(error: Tensor) -> dict[str, float]:
    if error.numel() == 0:
        return {"mean": 0.0, "p99": 0.0, "max": 0.0, "bias": 0.0}
    size = error.abs()
    return {
        "mean": size.mean().item(),
        "p99": _percentile_99(size),
        "max": size.max().item(),
        "bias": error.mean().item(),
    }


def _compare_output(reference: Tensor, deployed: Tensor, precision: str) -> dict[str, float]:
    require_comparable(reference, deployed)
    if not reference.is_floating_point():
        return {"flip_rate": share_true(reference != deployed)}
    exact, inexact = reference.double().flatten(), deployed.double().flatten()
    comparable = exact.isfinite()
    lost = comparable & ~inexact.isfinite()
    both = comparable & ~lost
    error = (inexact - exact)[both]
    summary = _summarise(error)
    metrics = {"bias": summary["bias"], "nonfinite": share_true(lost)}
    if bool(lost.any()) or error.numel() == 0:
        metrics |= dict.fromkeys(("rel_l2", "max_abs", "p99_abs", "rmse"), math.inf)
    else:
        metrics |= {
            "rel_l2": _relative_l2(error, exact[both], precision),
            "max_abs": summary["max"],
            "p99_abs": summary["p99"],
            "rmse": error.square().mean().sqrt().item(),
        }
    if reference.ndim == 2 and reference.shape[1] > 1:
        metrics["flip_rate"] = share_true(reference.argmax(1) != deployed.argmax(1))
    return metrics


def _relative_l2(error: Tensor, exact: Tensor, precision: str) -> float:
    distance = float(error.norm().item())
    spread = float((exact.norm() if is_constant(exact, precision) else _centred_norm(exact)).item())
    if spread > 0:
        return distance / spread
    return 0.0 if distance == 0 else math.inf


def _centred_norm(values: Tensor) -> Tensor:
    return (values - values.mean()).norm() if values.numel() else torch.zeros((), dtype=torch.float64)


def _percentile_99(values: Tensor) -> float:
    """The smallest value that 99 of 100 do not exceed; torch.quantile takes no more than 2**24 values."""
    rank = -(-99 * values.numel() // 100)
    return float(values.kthvalue(rank).values.item())
