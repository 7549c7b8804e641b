"""The module of a Trainer run quietly, the same way every time, so that two runs differ by the inputs alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_robust.callbacks.datapath.activations import eager, rounded
from lightning_robust.harness.inputs import call_forward, forward_arguments, targets_of
from lightning_robust.harness.quiet import quietly
from lightning_robust.structures import Key, tensors_in

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""Conditions that round weights and activations instead of changing inputs."""


class QuietNetwork:
    """A module as a function of a batch.

    Args:
        trainer: Within ``fit`` or ``validate``.
        module: The module; nothing is left behind in it.
        input_key: Which part of a batch goes into ``forward``; a list for several.
    """

    def __init__(self, trainer: pl.Trainer, module: pl.LightningModule, input_key: Key | list[Key] | None) -> None:
        self._trainer, self.module, self._input_key = trainer, module, input_key

    def run(self, batch: Any) -> Any:
        """One forward pass, inside of :meth:`quiet`; a network that draws random numbers draws the same ones."""
        torch.default_generator.manual_seed(0)
        if self.module.device.type == "cuda":
            torch.cuda.manual_seed(0)
        with self._trainer.precision_plugin.forward_context():
            return call_forward(self.module, batch, self._input_key)

    def inputs(self, batch: Any) -> list[Tensor]:
        """The tensors that go into ``forward``."""
        return tensors_in(forward_arguments(self.module, batch, self._input_key))

    def targets(self, batch: Any, target_key: Key | None) -> Any:
        """What the outputs are to be; see :func:`~lightning_robust.harness.inputs.targets_of`."""
        return targets_of(self.module, batch, target_key, self._input_key)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Inside the block the module is evaluated eagerly, without gradients and without a trace."""
        with quietly(self._trainer, self.module, "validating", runs="forward"), eager(), torch.no_grad():
            yield

    def arithmetic(self, condition: str) -> AbstractContextManager[None]:
        """Inside the block, the precision of a condition; hooks that are to see rounded values come inside."""
        precision = PRECISIONS.get(condition)
        return nullcontext() if precision is None else rounded(self.module, precision)
