"""Batches that hold their pictures one by one, which techniques cannot take as one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor


def refuse_single_pictures(batch: Any, inputs: Any) -> None:
    """Refuse pictures one by one in a list, as detectors take them: alone, or each beside its target.

    Args:
        batch: The batch.
        inputs: The part of it that goes into the network.

    Raises:
        MisconfigurationException: Saying how many there are.
    """
    if not isinstance(inputs, list | tuple) or len(inputs) < 2:
        return
    beside_targets = all(isinstance(entry, list | tuple) and entry for entry in inputs)
    pictures = [entry[0] for entry in inputs] if beside_targets else inputs
    if all(map(_is_single_picture, pictures)) and (beside_targets or _has_other_list(batch, inputs)):
        raise MisconfigurationException(
            f"Expected the pictures of a batch in one tensor (N, C, H, W), but got a list of {len(inputs)}. Stack them "
            "in the loader's `collate_fn`, or in `on_after_batch_transfer` of the module."
        )


def _is_single_picture(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 3


def _has_other_list(batch: Any, inputs: Sequence[Any]) -> bool:
    """Whether another part of the batch is a list of as many entries, as of targets."""
    others = batch if isinstance(batch, list | tuple) else ()
    return any(isinstance(o, list | tuple) and o is not inputs and len(o) == len(inputs) for o in others)
