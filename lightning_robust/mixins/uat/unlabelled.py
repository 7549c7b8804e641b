"""Which samples of a batch have no label, and what they have to be."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_robust.structures import Key, get_item, split_path

ALL_LABELLED = (
    "no sample without a label was seen in an epoch: unsupervised adversarial training has done nothing. Mark such "
    "samples by targets of -1, or give them by a second loader and set `uat_unlabelled_key`."
)
LOADER_ENDED = (
    "the loader of unlabelled samples has ended before the other one; the rest of the epoch is trained on labels "
    "alone. CombinedLoader(..., 'max_size_cycle') begins it again."
)


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


def of_second_loader(batch: Any, key: Key) -> Tensor | None:
    """The pictures that a second loader gives; None where it has ended.

    Args:
        batch: Of several loaders.
        key: Where the pictures are in it; its first part names the loader.

    Raises:
        TypeError: If there is anything else.
    """
    if get_item(batch, split_path(key)[0] if isinstance(key, str) else key) is None:
        return None
    pictures = get_item(batch, key)
    if not isinstance(pictures, Tensor):
        raise TypeError(
            f"Expected pictures at uat_unlabelled_key={key!r}, but got {type(pictures).__name__}. Name their place in "
            f"it, as '{key}.0'."
        )
    return pictures
