"""Metrics of lines in consecutive frames: each by itself, and against a reference.

Columns are ``(frames, rows)`` in pixels for one line, NaN where there is none.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_robust.deployment.parity.distance import compare_decoded, share_true
from lightning_robust.functional.line_motion import bends, swings


def line_metrics(columns: Tensor, frames: Tensor | None = None) -> dict[str, float]:
    """How much a line swings and bends by itself.

    - ``swing``: mean absolute :func:`~lightning_robust.functional.line_motion.swings` in pixels, the frame-to-frame
      movement less its trend;
    - ``bend``: mean absolute :func:`~lightning_robust.functional.line_motion.bends`, the second difference along the
      rows;
    - ``present``: share of frames and rows where the line is present.

    Args:
        columns: ``(frames, rows)``.
        frames: Index of each frame, rising, if some are missing in between; there is no movement across a gap.

    Returns:
        The metrics; ``swing`` and ``bend`` are absent where there are no three points in a row.

    Example:
        >>> line_metrics(torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]))
        {'swing': 2.0, 'present': 1.0}
    """
    movement = _means(
        {"swing": _overflowing(_fill_gaps(columns, frames), swings), "bend": _overflowing(columns, bends)}
    )
    return movement | {"present": share_true(~columns.isnan())}


def deviation_metrics(reference: Tensor, columns: Tensor, frames: Tensor | None = None) -> dict[str, float]:
    """How far a line is from the reference's.

    - ``mean``, ``p99``, ``max``, ``bias``: of the deviation in pixels, as in :func:`~.distance.compare_decoded`;
      infinite where every point is lost;
    - ``lost``, ``gained``: share of the reference's points that this line lacks, and of other points that it has;
    - ``frames_lost``: share of the frames in which the reference has the line and this one has no point at all;
    - ``swing_beyond``, ``bend_beyond``: mean absolute movement from frame to frame, and mean absolute second difference
      along the rows, of the deviation: what comes on top of the reference's. A line that is always displaced by the
      same has neither. Swing and bend exceed the reference's by at most these.

    Args:
        reference: ``(frames, rows)``.
        columns: Of the same shape.
        frames: As for :func:`line_metrics`.

    Example:
        >>> metrics = deviation_metrics(torch.zeros(2, 2), torch.tensor([[1.0, 1.0], [3.0, torch.nan]]))
        >>> metrics["max"], metrics["lost"], metrics["frames_lost"], metrics["swing_beyond"]
        (3.0, 0.25, 0.0, 2.0)
    """
    distance = compare_decoded({"d": reference}, {"d": columns})
    here, there = ~reference.isnan(), ~columns.isnan()
    present = here.any(1)
    deviation = columns - reference
    return (
        {key: distance[f"d_{key}"] for key in ("mean", "p99", "max", "bias")}
        | {"lost": share_true(~there[here]), "gained": share_true(there[~here])}
        | {"frames_lost": share_true(~there[present].any(1))}
        | _means(
            {
                "swing_beyond": _overflowing(_fill_gaps(deviation, frames), lambda each: each.diff(dim=0)),
                "bend_beyond": _overflowing(deviation, bends),
            }
        )
    )


def part_metrics(reference: Tensor, columns: Tensor, known: Tensor | None, expected: Tensor | None) -> dict[str, float]:
    """How far known and guessed points are off, and what goes beyond the motion of the picture.

    - ``known_p99``, ``known_lost``, ``guessed_p99``: as :func:`deviation_metrics`, of a part of the points;
    - ``mean_beyond_motion``, ``p99_beyond_motion``: of the deviation from where the right lines are in a moved picture.

    Args:
        reference: ``(frames, rows)``.
        columns: Of the same shape.
        known: Which points the model knows; None where nobody knows.
        expected: The right columns in the moved picture; None where the picture was not moved, or nobody knows.

    Returns:
        The metrics; those of a part are absent where it has no points.

    Example:
        >>> reference, columns = torch.zeros(1, 2), torch.tensor([[1.0, 8.0]])
        >>> part_metrics(reference, columns, torch.tensor([[True, False]]), None)
        {'known_p99': 1.0, 'known_lost': 0.0, 'guessed_p99': 8.0}
        >>> part_metrics(reference, columns, None, reference + 1)["mean_beyond_motion"]
        3.5
    """
    metrics: dict[str, float] = {}
    for name, mask in (("known", known), ("guessed", None if known is None else ~known)):
        if mask is not None and not (part := reference.masked_fill(~mask, torch.nan)).isnan().all():
            found = deviation_metrics(part, columns)
            metrics |= {f"{name}_p99": found["p99"]} | ({"known_lost": found["lost"]} if name == "known" else {})
    if expected is not None:
        found = deviation_metrics(expected, columns)
        metrics |= {f"{key}_beyond_motion": found[key] for key in ("mean", "p99")}
    return metrics


def _fill_gaps(columns: Tensor, frames: Tensor | None) -> Tensor:
    """Put a frame of NaN into every gap."""
    if frames is None or len(frames) < 2:
        return columns
    filled = columns.new_full((int(frames[-1] - frames[0]) + 1, *columns.shape[1:]), torch.nan)
    filled[frames - frames[0]] = columns
    return filled


def _overflowing(columns: Tensor, move: Callable[[Tensor], Tensor]) -> Tensor:
    """What ``move`` makes of columns: infinite, not NaN, where all of its points are there and one is infinite."""
    moved, lacking = move(columns), move(torch.where(columns.isnan(), columns, 0.0))
    return torch.where(moved.isnan() & ~lacking.isnan(), torch.inf, moved)


def _means(values: dict[str, Tensor]) -> dict[str, float]:
    """Mean absolute values, where there are any."""
    known = {name: value[~value.isnan()].abs() for name, value in values.items()}
    return {name: float(value.mean()) for name, value in known.items() if value.numel()}
