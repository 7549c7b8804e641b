"""The one place that calls a user's ``training_step`` and its like, and the loss in what a step gave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning_robust.harness.compat import takes_batch_index


def call_step(step: Callable[..., Any], batch: Any, batch_idx: int = 0, dataloader_idx: int | None = None) -> Any:
    """Call a step as Lightning's loops call it: by position, with as many arguments as it takes, whatever their names.

    Args:
        step: The step of a module, as ``module.validation_step``.
        batch: Its batch.
        batch_idx: Index of the batch; left out where the step takes a batch alone.
        dataloader_idx: Index of its loader; None where there is only one, as in Lightning.

    Returns:
        What the step returns.

    Example:
        >>> class Host:
        ...     def training_step(self, batch, i):
        ...         return batch * i
        ...
        ...     def validation_step(self, batch):
        ...         return batch
        >>> call_step(Host().training_step, 2, 3), call_step(Host().validation_step, 2, 3)
        (6, 2)
    """
    arguments = [batch]
    if takes_batch_index(step):
        arguments.append(batch_idx)
    if dataloader_idx is not None:
        arguments.append(dataloader_idx)
    return step(*arguments)


def loss_in(output: Any) -> Any:
    """The loss in what a training step returned: its entry ``"loss"``, or all of it.

    Example:
        >>> loss_in({"loss": 1.0, "logits": 2.0}), loss_in(1.0)
        (1.0, 1.0)
    """
    return output["loss"] if isinstance(output, Mapping) else output
