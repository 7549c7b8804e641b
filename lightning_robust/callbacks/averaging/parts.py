"""Averages of sharded weights in checkpoints: whole in a file, or in a folder of parts beside those of the weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_robust.functional.averaging import State
from lightning_robust.functional.shards import as_part, gathered, own_part, part_of
from lightning_robust.functional.weights import Weights
from lightning_robust.harness.checkpoints import RAW_KEY
from lightning_robust.harness.compat import writes_parts
from lightning_robust.harness.ranks import agreed
from lightning_robust.harness.sharded_checkpoints import AVERAGES, reader_of, require_whole, tensors_of

Saved = Mapping[str, Any]
"""What SWACallback keeps of itself in a checkpoint."""


def pack(trainer: pl.Trainer, weights: Weights, saved: Saved, checkpoint: dict[str, Any]) -> None:
    """Make the averages in a checkpoint independent of the ranks that hold their parts; all ranks call it.

    Where the checkpoint becomes one file, rank 0 gets them whole, tensor by tensor. Where it becomes a folder of parts,
    they leave ``checkpoint["callbacks"]``, for :func:`beside` to write.
    """
    parts = {f"raw/tensors/{name}": tensor for name, tensor in checkpoint.get(RAW_KEY, {}).items()}
    for name, place, tensors in _lists_in(saved):
        shards = [as_part(part, live) for part, live in zip(tensors, weights.live(), strict=True)]
        if not writes_parts(trainer.strategy):
            tensors[:] = [gathered(shard).to("cpu") for shard in shards]
            continue
        parts |= {f"{name}/{place}/{key}": tensor for key, tensor in weights.by_every_name(shards).items()}
        tensors.clear()
    if writes_parts(trainer.strategy):
        checkpoint.pop(RAW_KEY, None)
        checkpoint[AVERAGES] = parts


def beside(trainer: pl.Trainer) -> Callable[..., None]:
    """The strategy's ``save_checkpoint``, which first writes the averages into a folder of the checkpoint's folder."""
    from torch.distributed.checkpoint.state_dict_saver import save as save_parts

    strategy, save = trainer.strategy, trainer.strategy.save_checkpoint

    def save_checkpoint(checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        if parts := checkpoint.pop(AVERAGES, None):
            path = Path(strategy.broadcast(filepath))
            if strategy.is_global_zero and path.is_file():
                path.unlink()
            strategy.barrier()
            save_parts(parts, checkpoint_id=path / AVERAGES)
        save(checkpoint, filepath, storage_options)

    return save_checkpoint


def checked(trainer: pl.Trainer) -> Callable[..., dict[str, Any]]:
    """The strategy's ``load_checkpoint``, which first refuses a folder of which a part is missing."""
    load = trainer.strategy.load_checkpoint

    def load_checkpoint(checkpoint_path: Any, *args: Any, **settings: Any) -> dict[str, Any]:
        agreed(trainer, lambda: require_whole(checkpoint_path), "Reading the checkpoint")
        return load(checkpoint_path, *args, **settings)

    return load_checkpoint


def unpack(trainer: pl.Trainer, weights: Weights, saved: Saved, checkpoint: Mapping[str, Any]) -> list[Tensor] | None:
    """This rank's parts of the averages in a checkpoint, which may be of another number of ranks, or of one process.

    Args:
        trainer: The Trainer, which has loaded the checkpoint.
        weights: Of the module, as it is sharded now.
        saved: What SWACallback has in the checkpoint; its lists of tensors are filled.
        checkpoint: The rest of it.

    Returns:
        The raw weights, as ``weights`` lists them; None of a checkpoint without an average.

    Raises:
        FileNotFoundError: If parts are missing.
        ValueError: If tensors have other shapes than those of the module.
    """
    from torch.distributed.checkpoint.state_dict_loader import load as load_parts

    live = dict(zip(weights.names, weights.live(), strict=True))
    if RAW_KEY in checkpoint:
        return agreed(trainer, lambda: _own_parts(saved, checkpoint[RAW_KEY], live), "Reading the averages")
    folder = Path(str(trainer.ckpt_path)) / AVERAGES
    if not any(average["running"]["count"] for average in saved.get("averages", {}).values()):
        return None
    wanted, parts = agreed(trainer, lambda: _plan_reading(folder, live), "Reading the averages")
    load_parts(wanted, storage_reader=reader_of(folder))
    for name, place, tensors in _lists_in(saved, empty=True):
        tensors[:] = parts.get(f"{name}/{place}", {}).values()
    return list(parts["raw/tensors"].values())


def _lists_in(saved: Saved, *, empty: bool = False) -> Iterator[tuple[str, str, list[Tensor]]]:
    """Name, place and list of tensors of each average; those of snapshots too."""
    for name, average in saved.get("averages", {}).items():
        running = average["running"]
        places = {"tensors": running["tensors"]}
        places |= {f"snapshots {number}": tensors for number, tensors in enumerate(running["snapshots"])}
        yield from ((name, place, tensors) for place, tensors in places.items() if tensors or empty)


def _own_parts(saved: Saved, raw: State, live: State) -> list[Tensor]:
    """This rank's parts of tensors that a file has whole."""
    for _, _, tensors in _lists_in(saved):
        kept = dict(zip(saved["names"], tensors, strict=True))
        tensors[:] = [part_of(kept[name], tensor).clone() for name, tensor in live.items()]
    return [part_of(raw[name], tensor) for name, tensor in live.items()]


def _plan_reading(folder: Path, live: State) -> tuple[State, dict[str, State]]:
    """What to read, by its name in a folder, and the same memory by average and place, in the order of the module."""
    kept = tensors_of(folder)
    places = dict.fromkeys(key.rpartition("/")[0] for key in kept)
    wanted: State = {}
    parts: dict[str, State] = {place: {} for place in places}
    for place, (name, tensor) in itertools.product(places, live.items()):
        found = kept[f"{place}/{name}"]
        if found.size != tensor.shape:
            raise ValueError(
                f"Expected {name} of shape {tuple(tensor.shape)} in {folder}, but got {tuple(found.size)}. Build the "
                "model with the arguments of that checkpoint's training."
            )
        part = parts[place][name] = torch.empty_like(own_part(tensor), dtype=found.properties.dtype)
        wanted[f"{place}/{name}"] = as_part(part, tensor)
    return wanted, parts
