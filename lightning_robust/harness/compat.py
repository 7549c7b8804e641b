"""Every private or internal name of Lightning and torch that the package uses, each behind a small function.

tests/harness/test_compat.py has one test for each, which fails when the name moves, and one that no other module uses
such a name. Those of torch that rooms below this one need live in ``lightning_robust/torch_names.py``.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import nn
from torch.utils.data import DataLoader

from lightning_robust.torch_names import AnyBatchNorm as AnyBatchNorm
from lightning_robust.torch_names import AnyConvolution as AnyConvolution
from lightning_robust.torch_names import hook_dicts as hook_dicts
from lightning_robust.torch_names import is_compiled as is_compiled
from lightning_robust.torch_names import is_hook_of_sharding as is_hook_of_sharding
from lightning_robust.torch_names import is_state_of_sharding as is_state_of_sharding
from lightning_robust.torch_names import lerp_all_ as lerp_all_
from lightning_robust.torch_names import original_of_compiled as original_of_compiled
from lightning_robust.torch_names import version_of as version_of
from lightning_robust.torch_names import without_compiled_prefix as without_compiled_prefix

if TYPE_CHECKING:  # a torch without torch.distributed lacks it
    from torch._C._distributed_c10d import Store as Store


def takes_batch_index(step: Callable[..., Any]) -> bool:
    """Whether Lightning passes the index of the batch to a user's step: always by position, whatever its name."""
    return is_param_in_hook_signature(step, "batch_idx", min_args=2)


def overrides(owner: pl.LightningModule | pl.LightningDataModule, method: str) -> bool:
    """Whether a module or data module has a step, hook or loader of its own in place of Lightning's."""
    return is_overridden(method, owner)


def is_attached(module: pl.LightningModule) -> bool:
    """Whether the module belongs to a Trainer, without the error that ``module.trainer`` raises where it does not."""
    return module._trainer is not None


def is_compiled_as_lightning_module(module: pl.LightningModule) -> bool:
    """Whether the Trainer was given ``torch.compile(module)``, or the module was compiled in place: steps included."""
    return module._compiler_ctx is not None or getattr(module, "_compiled_call_impl", None) is not None


def loaders_given_to_fit(trainer: pl.Trainer) -> Any:
    """Training loaders passed to ``trainer.fit``; None where a module or data module has them.

    ``trainer.train_dataloader`` is None until the training loop begins.
    """
    source = trainer.fit_loop._data_source.instance
    return None if isinstance(source, (pl.LightningModule, pl.LightningDataModule)) else source


def mode_of(loaders: CombinedLoader) -> Any:
    """How loaders are combined: ``"max_size_cycle"``, ``"min_size"``, ``"max_size"`` or ``"sequential"``."""
    return loaders._mode


def combined_in_fit(trainer: pl.Trainer) -> CombinedLoader | None:
    """The training loaders as the present fit combines them; None before its loop has begun."""
    return trainer.fit_loop._combined_loader


def has_validation_data(trainer: pl.Trainer) -> bool:
    """Whether the fit was given validation loaders, or its data module or module has them; also before it begins."""
    return bool(trainer.fit_loop.epoch_loop.val_loop._data_source.is_defined())


def load_validation_data(trainer: pl.Trainer) -> None:
    """Fill ``trainer.val_dataloaders``, which a fit without a sanity check leaves empty until its first validation."""
    if trainer.val_dataloaders is None:
        trainer.fit_loop.epoch_loop.val_loop.setup_data()


def batches_before(trainer: pl.Trainer) -> int:
    """How many batches training has taken before the present one, over all epochs; it resumes with the run."""
    return int(trainer.fit_loop.total_batch_idx)


def batch_in_epoch(trainer: pl.Trainer) -> int:
    """Index of the present training batch in its epoch."""
    return int(trainer.fit_loop.batch_idx)


def epochs_at(trainer: pl.Trainer) -> float:
    """How many epochs have passed at the end of the present training batch.

    Raises:
        MisconfigurationException: Where the batches of an epoch are not counted, so that no share of one has passed.
    """
    if trainer.num_training_batches == math.inf:
        raise MisconfigurationException(
            "Expected a training loader of a known length for a warm-up over epochs, but it does not say how many "
            "batches it has. Set the Trainer's `limit_train_batches` to a number, or the warm-up to 0."
        )
    return trainer.current_epoch + (batch_in_epoch(trainer) + 1) / max(trainer.num_training_batches, 1)


def logged_step(trainer: pl.Trainer) -> int:
    """The step under which Lightning writes validation scalars."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def silent_logger() -> Logger:
    """A logger that accepts every call and writes nothing."""
    return DummyLogger()


@functools.cache
def internal_attributes() -> frozenset[str]:
    """Names of attributes in which Lightning, torch and torchmetrics keep what is theirs on a module."""
    hyperparameters = {"_hparams", "_hparams_initial", "_hparams_name"}
    of_metrics = {"_defaults", "_persistent", "_reductions", "_update_signature"}
    return frozenset({*vars(pl.LightningModule()), *hyperparameters, *of_metrics})


def is_layer_of_torch(module: nn.Module) -> bool:
    """Whether a module is one of torch's layers, which change their buffers in training mode alone."""
    return type(module) is not nn.Module and type(module).__module__.startswith("torch.nn.")


def buffers_of(module: nn.Module) -> dict[str, torch.Tensor | None]:
    """The buffers that a module itself has, in the dict that it keeps them in."""
    return module._buffers


def parts_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """The children of a module, in the dict that it keeps them in."""
    return module._modules


def hooks_of(module: nn.Module) -> list[dict[int, Any]]:
    """What a module calls before and after its ``forward``, in the dicts that it keeps them in."""
    return [module._forward_pre_hooks, module._forward_hooks]


def set_parts(module: nn.Module, parts: dict[str, nn.Module | None]) -> None:
    """Give a module, and not those that share its dict of children, other children."""
    vars(module)["_modules"] = parts


def states_of_metric(metric: nn.Module) -> frozenset[str]:
    """Names of the attributes that a metric accumulates in; none for a collection or another module."""
    return frozenset(getattr(metric, "_defaults", ()))


def forget_workers(loader: DataLoader[Any]) -> None:
    """Let a copy of a loader with persistent workers start its own, instead of those that the original waits for."""
    loader._iterator = None


def compiler_is_loaded() -> bool:
    """Whether ``torch.compile`` was used in this process; importing the compiler to ask takes seconds."""
    return "torch._dynamo" in sys.modules


def writes_parts(strategy: object) -> bool:
    """Whether a strategy's checkpoints are folders, in which each rank writes its own part of the weights."""
    return bool(getattr(strategy, "_save_distributed_checkpoint", False))


def default_store() -> Store | None:
    """The store of keys and values by which the ranks of the default process group found each other, if there is one.

    Unlike a collective, a question to it has no time limit of its own that would end the training.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    return torch.distributed.distributed_c10d._get_default_store()
