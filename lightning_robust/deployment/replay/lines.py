"""Lines found in consecutive frames, in numbers: by themselves, and against those of a reference.

Columns are ``(frames, rows)`` in pixels for one line, NaN where it was not found. Who found it is not known here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_robust.deployment.parity.distance import compare_decoded
from lightning_robust.functional.lines import bends, swings


def line_metrics(columns: Tensor, places: Tensor | None = None) -> dict[str, float]:
    """What a line does by itself.

    - ``swing``: mean absolute :func:`~lightning_robust.functional.lines.swings` in pixels, the frame-to-frame movement
      less its trend;
    - ``bend``: mean absolute :func:`~lightning_robust.functional.lines.bends`, the second difference along the rows;
    - ``present``: share of frames and rows where it was found.

    Args:
        columns: ``(frames, rows)``.
        places: Number of each frame, rising, where some are missing in between; there is no movement across a gap.

    Returns:
        The metrics; ``swing`` and ``bend`` are absent where there are no three points in a row.

    Example:
        >>> line_metrics(torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]))
        {'swing': 2.0, 'present': 1.0}
    """
    moved = _means({"swing": swings(_in_time(columns, places)), "bend": bends(columns)})
    return moved | {"present": _share(~columns.isnan())}


def deviation_metrics(reference: Tensor, columns: Tensor, places: Tensor | None = None) -> dict[str, float]:
    """How far a line is from the reference's.

    - ``mean``, ``p99``, ``max``, ``bias``: of the deviation in pixels, as in :func:`~.compare.compare_decoded`;
      infinite where every point is lost;
    - ``lost``, ``gained``: share of the reference's points that are not found, and of the points beyond those;
    - ``frames_lost``: share of the frames in which the reference has the line and here not one point of it is left;
    - ``swing_beyond``, ``bend_beyond``: mean absolute movement from frame to frame, and mean absolute second difference
      along the rows, of the deviation: what comes on top of the reference's own. A line that is displaced, always by
      the same, has neither; their sum bounds how much more than the reference it swings or bends.

    Args:
        reference: ``(frames, rows)``.
        columns: Likewise.
        places: As for :func:`line_metrics`.

    Example:
        >>> metrics = deviation_metrics(torch.zeros(2, 2), torch.tensor([[1.0, 1.0], [3.0, torch.nan]]))
        >>> metrics["max"], metrics["lost"], metrics["frames_lost"], metrics["swing_beyond"]
        (3.0, 0.25, 0.0, 2.0)
    """
    moved = compare_decoded({"d": reference}, {"d": columns})
    here, there = ~reference.isnan(), ~columns.isnan()
    seen = here.any(1)
    deviation = columns - reference
    return (
        {key: moved[f"d_{key}"] for key in ("mean", "p99", "max", "bias")}
        | {"lost": _share(~there[here]), "gained": _share(there[~here]), "frames_lost": _share(~there[seen].any(1))}
        | _means({"swing_beyond": _in_time(deviation, places).diff(dim=0), "bend_beyond": bends(deviation)})
    )


def _in_time(columns: Tensor, places: Tensor | None) -> Tensor:
    """The same with a frame of NaN in every gap."""
    if places is None or len(places) < 2:
        return columns
    filled = columns.new_full((int(places[-1] - places[0]) + 1, *columns.shape[1:]), torch.nan)
    filled[places - places[0]] = columns
    return filled


def _means(values: dict[str, Tensor]) -> dict[str, float]:
    """Mean absolute values, where there are any."""
    known = {name: value[~value.isnan()].abs() for name, value in values.items()}
    return {name: float(value.mean()) for name, value in known.items() if value.numel()}


def _share(mask: Tensor) -> float:
    return float(mask.double().mean()) if mask.numel() else 0.0
