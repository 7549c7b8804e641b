"""The weights that fine-tuning began from, tensor by tensor beside those that it reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_robust.functional.averaging import State


def with_counterparts(start: Mapping[str, Tensor], fine_tuned: Mapping[str, Tensor], name: str) -> State:
    """A copy of the initial weights, with fine-tuned ones where they have no counterpart of the same shape.

    Args:
        start: The initial weights.
        fine_tuned: The fine-tuned weights.
        name: Names the initial weights in messages.

    Raises:
        ValueError: If no tensor has a counterpart, or most of those with one have it in another shape.
    """
    common = fine_tuned.keys() & start.keys()
    shared = {key for key in common if start[key].shape == fine_tuned[key].shape}
    _require_most(start, fine_tuned, sorted(common - shared), shared, name)
    _tell(fine_tuned.keys() - shared, f"are not in {name} and stay fine-tuned")
    _tell(start.keys() - fine_tuned.keys(), f"of {name} are not in the model and are left out")
    return {k: start[k].to(tensor, copy=True) if k in shared else tensor.clone() for k, tensor in fine_tuned.items()}


def _tell(names: AbstractSet[str], what: str) -> None:
    if names:
        rank_zero_info(f"WiSE-FT: {sorted(names)} {what}.")


def _require_most(
    start: Mapping[str, Tensor], fine_tuned: Mapping[str, Tensor], reshaped: Sequence[str], shared: set[str], name: str
) -> None:
    """A head may differ; where most differs, what is left would be interpolated without meaning."""
    if len(reshaped) > len(shared):
        key = reshaped[0]
        raise ValueError(
            f"Expected {key} of shape {tuple(fine_tuned[key].shape)} in {name}, but got {tuple(start[key].shape)} (and "
            f"{len(reshaped) - 1} more differ). Only a head may; name a checkpoint of this architecture."
        )
    if not shared:
        raise ValueError(
            f"Expected tensors of the fine-tuned model in {name}, but none of {sorted(start)[:3]} ... has a "
            f"counterpart among {sorted(fine_tuned)[:3]} ... of its shape. Is it a checkpoint of this architecture?"
        )
