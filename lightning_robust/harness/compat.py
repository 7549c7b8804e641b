"""Every private or internal name of Lightning and torch that the package uses, each behind a small function.

tests/harness/test_compat.py has one test for each, which fails when the name moves, and one that no other module uses
such a name. Those of torch that rooms below this one need live in ``lightning_robust/torch_names.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from lightning_robust.torch_names import AnyBatchNorm as AnyBatchNorm
from lightning_robust.torch_names import AnyConvolution as AnyConvolution
from lightning_robust.torch_names import is_compiled as is_compiled
from lightning_robust.torch_names import lerp_all_ as lerp_all_
from lightning_robust.torch_names import original_of_compiled as original_of_compiled
from lightning_robust.torch_names import without_compiled_prefix as without_compiled_prefix


def takes_batch_index(step: Callable[..., Any]) -> bool:
    """Whether Lightning passes the index of the batch to a user's step: always by position, whatever its name."""
    return is_param_in_hook_signature(step, "batch_idx", min_args=2)


def overrides(owner: pl.LightningModule | pl.LightningDataModule, method: str) -> bool:
    """Whether a module or data module has a step, hook or loader of its own in place of Lightning's."""
    return is_overridden(method, owner)


def is_attached(module: pl.LightningModule) -> bool:
    """Whether the module belongs to a Trainer, without the error that ``module.trainer`` raises where it does not."""
    return module._trainer is not None


def loaders_given_to_fit(trainer: pl.Trainer) -> Any:
    """Training loaders passed to ``trainer.fit``; None where a module or data module has them.

    ``trainer.train_dataloader`` is None until the training loop begins.
    """
    source = trainer.fit_loop._data_source.instance
    return None if isinstance(source, (pl.LightningModule, pl.LightningDataModule)) else source


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


def logged_step(trainer: pl.Trainer) -> int:
    """The step under which Lightning writes validation scalars."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def silent_logger() -> Logger:
    """A logger that accepts every call and writes nothing."""
    return DummyLogger()


def compiler_is_loaded() -> bool:
    """Whether ``torch.compile`` was used in this process; importing the compiler to ask takes seconds."""
    return "torch._dynamo" in sys.modules
