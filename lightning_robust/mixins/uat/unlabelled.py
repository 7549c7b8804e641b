"""Which samples of a batch have no label, and what they have to be."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_robust.structures import Key


def require_floating(inputs: Tensor) -> None:
    """Refuse tokens and other integers.

    Raises:
        TypeError: For inputs that are not in floating point.
    """
    if not inputs.is_floating_point():
        raise TypeError(
            "Expected unlabelled pictures in floating point for unsupervised adversarial training, but got "
            f"{inputs.dtype}. Scale 8-bit pictures with / 255; tokens have no neighbours within a radius."
        )


def rows_without_label(targets: Any, key: Key) -> Tensor:
    """Which samples have a target of -1 everywhere.

    Args:
        targets: ``(N, ...)``.
        key: Where they are in the batch.

    Raises:
        TypeError: If they are no tensor with a row for each sample.
    """
    if not isinstance(targets, Tensor) or targets.ndim == 0:
        raise TypeError(
            f"Expected one target tensor with a row for each sample at target_key={key!r}, but got "
            f"{type(targets).__name__}. Give unlabelled samples by a second loader and set `uat_unlabelled_key`."
        )
    return (targets == -1).reshape(len(targets), -1).all(1)
