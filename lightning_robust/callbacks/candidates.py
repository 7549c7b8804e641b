"""What callbacks share that choose the weights of a module after training: the soup, WiSE-FT, the rewinding of layers.

They judge candidate states by one metric, in a fixed order of callbacks, and save the winner.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from typing_extensions import override

from lightning_robust.callbacks.deployment_parity.callback import DeploymentParityCallback
from lightning_robust.callbacks.judging import PARITY, JudgingCallback
from lightning_robust.functional.averaging import State
from lightning_robust.functional.batchnorm import batchnorm_layers
from lightning_robust.functional.weights import Weights
from lightning_robust.harness.bn_refresh import refresh_statistics
from lightning_robust.harness.closing import warn
from lightning_robust.harness.evaluate import Evaluator, pick
from lightning_robust.harness.inputs import require_inputs
from lightning_robust.harness.load_hook import StartKeeper
from lightning_robust.harness.memory import require_reversible
from lightning_robust.harness.ranks import Guard, agreed, describe_error
from lightning_robust.harness.saving import save_weights
from lightning_robust.harness.trainers import find_callbacks, is_fast_dev_run
from lightning_robust.progress import Progress
from lightning_robust.structures import Key


class Candidates:
    """Judges states by one metric, on the Trainer's validation loaders or by the parity of their deployment.

    The module holds its own weights after every method but :meth:`install`.

    Args:
        trainer: Within ``fit`` or ``validate``.
        pl_module: The module.
        monitor: Name of the metric; one that begins with ``parity/``, ``sensitivity/`` or ``attribution/`` is measured
            by the Trainer's DeploymentParityCallback.
        mode: Whether larger or smaller is better.
        bn_refresh: Recompute BatchNorm statistics of mixed weights from the training data.
        bn_samples: Number of training samples on each rank for that; all if None.
        input_key: Which part of a batch goes into ``forward`` for that.
        guard: Warns once where they cannot be recomputed; mixtures then keep the average of the statistics.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        monitor: str,
        mode: Literal["max", "min"],
        bn_refresh: bool = True,
        bn_samples: int | None = None,
        input_key: Key | list[Key] | None = None,
        guard: Guard | None = None,
    ) -> None:
        self.trainer, self.module = trainer, pl_module
        self.monitor, self.mode = monitor, mode
        self._guard = guard or Guard("Candidates")
        self.evaluator = Evaluator(trainer, pl_module)
        self._weights = Weights(pl_module)
        self._layers = batchnorm_layers(pl_module) if bn_refresh else []
        self._bn_samples, self._input_key = bn_samples, input_key
        self._progress = Progress("Candidates")

    @contextmanager
    def watched(self, what: str, total: int) -> Iterator[None]:
        """The evaluations inside the block show how far they are.

        Args:
            what: Names the work.
            total: How many evaluations there are; it grows with those that are made.
        """
        with Progress(what, total) as self._progress:
            yield

    def mixing(self, states: Iterable[Mapping[str, Tensor]]) -> None:
        """Mixtures will be made of these: a BatchNorm layer whose statistics they all share was frozen, and keeps them.

        Args:
            states: By the names of the module's state dict.
        """
        first, *others = states

        def differs(layer: str) -> bool:
            names = [name for name in (f"{layer}.running_mean", f"{layer}.running_var") if name in first]
            return any(not torch.equal(first[name].cpu(), other[name].cpu()) for name in names for other in others)

        found = {name: layer for name, layer in self.module.named_modules() if layer in self._layers}
        self._layers = [layer for name, layer in found.items() if differs(name)]

    def present(self) -> State:
        """A copy of the state dict that the module has now."""
        return {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}

    @contextmanager
    def holding(self, state: Mapping[str, Tensor], *, mixed: bool) -> Iterator[None]:
        """The module holds a state inside the block.

        Args:
            state: By the names of the module's state dict.
            mixed: Whether the state is a mixture, whose BatchNorm statistics have to be recomputed.
        """
        with self._weights.exchanged([state[name] for name in self._weights.names]):
            if mixed:
                self._refresh()
            yield

    def metrics(self, state: Mapping[str, Tensor], *, mixed: bool) -> dict[str, float]:
        """All validation metrics of a state."""
        with self.holding(state, mixed=mixed):
            metrics = self.evaluator.metrics()
        self._progress.advance(note=f"{self.monitor} {metrics[self.monitor]:.4g}" if self.monitor in metrics else "")
        return metrics

    def running_score(self, state: Mapping[str, Tensor], *, mixed: bool) -> Iterator[tuple[float, float]]:
        """The metric of a state while it is measured: pairs (mean so far, share of the data)."""
        with self.holding(state, mixed=mixed):
            score = math.nan
            try:
                for score, share in self._measure():
                    yield score, share
            finally:  # a candidate that cannot win any more is not measured to its end
                self._progress.advance(note=f"{self.monitor} {score:.4g}")

    def _measure(self) -> Iterator[tuple[float, float]]:
        if self.monitor.startswith(PARITY):
            yield pick(self._parity().measure(self.trainer, self.module, self.monitor), self.monitor), 1.0
        else:
            yield from self.evaluator.running_score(self.monitor)

    def running_mixture(self, state: Mapping[str, Tensor]) -> Iterator[tuple[float, float]]:
        """:meth:`running_score` of a mixture."""
        return self.running_score(state, mixed=True)

    def score(self, state: Mapping[str, Tensor], *, mixed: bool) -> float:
        """The metric of a state."""
        *_, (score, _) = self.running_score(state, mixed=mixed)
        return score

    def install(self, state: Mapping[str, Tensor], *, mixed: bool) -> None:
        """The module holds a state from now on."""
        self._weights.put([state[name].clone() for name in self._weights.names])
        if mixed:
            self._refresh()

    def _refresh(self) -> None:
        if self._layers:
            settings: dict[str, Any] = {"input_key": self._input_key, "samples": self._bn_samples}
            refresh_or_keep(self.trainer, self.module, self._guard, layers=self._layers, **settings)

    def _parity(self) -> DeploymentParityCallback:
        callbacks: list[DeploymentParityCallback] = find_callbacks(self.trainer, DeploymentParityCallback)
        if not callbacks:
            raise ValueError(
                "Expected a DeploymentParityCallback among the callbacks to choose weights by a parity metric, but "
                "there is none. Add it (deployment_parity: true), or monitor a validation metric."
            )
        return callbacks[0]


def refresh_or_keep(trainer: pl.Trainer, pl_module: pl.LightningModule, guard: Guard, **settings: Any) -> None:
    """Recompute the BatchNorm statistics of the present weights; where that fails they stay, and one warning says why.

    Args:
        trainer: The Trainer.
        pl_module: The module.
        guard: Warns.
        **settings: Of :func:`~lightning_robust.harness.bn_refresh.refresh_statistics`.
    """
    work = functools.partial(refresh_statistics, trainer, pl_module, **settings)
    try:
        agreed(trainer, work, "BatchNorm")
    except Exception as error:
        guard.warn(
            "BatchNorm statistics could not be refreshed, and their averages are used. Set `input_key` to what "
            f"`forward` takes. {describe_error(error)}",
            key="BatchNorm",
        )


class MixingCallback(JudgingCallback, StartKeeper):
    """A callback that mixes weights, and recomputes the BatchNorm statistics of mixtures from training batches.

    Raises:
        MisconfigurationException: At the first training batch, if there are such layers and it has no inputs for them.
    """

    bn_refresh: bool = True
    input_key: Key | list[Key] | None = None
    """Which part of a batch goes into ``forward``; None infers it."""

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a module whose validations leave traces that cannot be undone, and begin."""
        require_reversible(pl_module)
        super().on_fit_start(trainer, pl_module)

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Refuse batches without inputs."""
        if batch_idx == 0 and self.bn_refresh and batchnorm_layers(pl_module):
            require_inputs(pl_module, batch, self.input_key, type(self).__name__)


def require_last(trainer: pl.Trainer, callback: pl.Callback, others: Any) -> None:
    """Refuse an order in which another callback would replace the weights that this one chooses.

    Args:
        trainer: The Trainer.
        callback: The callback that chooses weights.
        others: Class, or union of classes, of those that must come before it.

    Raises:
        MisconfigurationException: Naming both.
    """
    order = find_callbacks(trainer, pl.Callback)
    for other in find_callbacks(trainer, others):
        if callback in order and order.index(other) > order.index(callback):
            raise MisconfigurationException(
                f"Expected {type(other).__name__} before {type(callback).__name__}, but it comes after and would "
                "replace the chosen weights. Change their order in `callbacks`."
            )


def save_chosen(trainer: pl.Trainer, path: Path, *, monitor: str, score: float | None) -> str:
    """Save the weights that the module holds, without hyperparameters that are objects.

    Where a ModelCheckpoint monitors the same metric, ``ckpt_path="best"`` means this file from now on.

    Returns:
        The path.
    """
    if is_fast_dev_run(trainer):
        return str(path)
    left_out = save_weights(trainer, path)
    if left_out:
        warn(
            f"{path} holds no hyperparameters that are objects, which files of weights cannot hold: {left_out}. Give "
            "them to `load_from_checkpoint` as arguments."
        )
    for keeper in find_callbacks(trainer, ModelCheckpoint):
        if keeper.monitor == monitor:
            keeper.best_model_path = str(path)
            if score is not None and keeper.best_model_score is not None:
                keeper.best_model_score = keeper.best_model_score.new_tensor(score)
    return str(path)
