"""Judge the weights that a module holds now by the Trainer's own validation, run quietly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import nn

from lightning_robust.harness.batches import copied, count_samples, transferred
from lightning_robust.harness.compat import load_validation_data, overrides
from lightning_robust.harness.memory import ModuleMemory
from lightning_robust.harness.quiet import quietly
from lightning_robust.harness.ranks import agreed
from lightning_robust.harness.recorder import Recorder
from lightning_robust.harness.steps import call_step
from lightning_robust.progress import track

Transform = Callable[[Any, int, int], Any]
"""Changes a batch after its transfer, or leaves it out by None; takes it with its index and that of its loader."""


class Evaluator:
    """Runs the module's ``validation_step`` over the Trainer's validation loaders, without leaving a trace.

    Within ``trainer.test()`` it runs ``test_step`` over the test loaders.

    ``log`` and ``log_dict`` are recorded, loggers replaced by ones that do nothing. What the module remembers (metrics,
    gathered outputs, buffers), modes, random numbers, the Trainer's stage and the gradient mode are restored, also
    after an error. The module's hooks of the epoch and of its batches run, those of callbacks do not.
    ``limit_val_batches`` holds. Means are weighted by batch size and reduced over ranks, so that all ranks see the same
    numbers.

    Args:
        trainer: The Trainer, within ``fit``, ``validate`` or ``test``.
        pl_module: The module.
        since: What the module remembered when the validation epoch began, for evaluations inside of it: outputs that
            its clean batches have left so far do not count. None outside of an epoch.

    Raises:
        ValueError: If there is no such loader or step.
    """

    def __init__(self, trainer: pl.Trainer, pl_module: pl.LightningModule, since: ModuleMemory | None = None) -> None:
        testing = trainer.state.fn == "test"
        self._stage = "testing" if testing else "validating"
        self._step = "test_step" if testing else "validation_step"
        if not overrides(pl_module, self._step):
            raise ValueError(
                f"Expected {type(pl_module).__name__} to have a `{self._step}`, which weights are judged by."
            )
        if not testing:
            load_validation_data(trainer)
        self._loaders = trainer.test_dataloaders if testing else trainer.val_dataloaders
        self._limits = list(trainer.num_test_batches if testing else trainer.num_val_batches)
        if self._loaders is None or sum(self._limits) == 0:
            raise ValueError(
                "Expected held-out loaders to judge weights by, but the Trainer has none. Give it some, and leave "
                "`limit_val_batches` above 0."
            )
        self.trainer, self.module, self._since = trainer, pl_module, since
        self.batches = 0
        """Batches evaluated so far, over all passes."""
        self.samples: list[int] = []
        """Samples of each loader in the last whole pass."""
        self._weights: dict[str, float] = {}
        self._best: dict[str, float] = {}

    def metrics(self, transform: Transform | None = None, limit: int | None = None) -> dict[str, float]:
        """Everything that a validation of the present weights logs, by name.

        Args:
            transform: Applied to each batch.
            limit: Batches of each loader to use; all if None.

        Raises:
            RankError: On every rank of several, if the validation of one of them fails.
        """
        if self.trainer.world_size > 1:
            _share_buffers(self.module)
        recorder = Recorder(len(self._limits))
        with self._quietly(recorder):
            agreed(self.trainer, lambda: list(self._over_batches(recorder, transform, limit)), "Validation")
            # the module may compute its own metrics there, for which ranks wait for each other
            agreed(self.trainer, lambda: self._finish(recorder), "The end of validation")
            entries = recorder.entries
            self._require_same_names(list(entries))
            self._weights = {name: entry.weight for name, entry in entries.items() if entry.is_mean_over_samples}
            self._best = {name: 1.0 for name in self._weights if entries[name].metric is not None}
            return {name: entry.result(self.trainer) for name, entry in entries.items()}

    def score(self, monitor: str) -> float:
        """One of :meth:`metrics`.

        Raises:
            ValueError: If it is not among them; the message lists them.
        """
        return pick(self.metrics(), monitor)

    def running_score(self, monitor: str) -> Iterator[tuple[float, float]]:
        """Pairs (mean so far, share of the data), the last of them (final score, 1.0).

        Gives only the last pair where a part of the data says nothing about the rest: several processes, a metric
        that is no mean over samples, or no whole pass before this one.
        """
        total = self._weights.get(monitor)
        if total is None or self.trainer.world_size > 1:
            yield self.score(monitor), 1.0
            return
        mean = 0.0
        for mean, weight in self.course(monitor):
            if weight < total:
                yield mean, weight / total
        yield mean, 1.0

    def course(self, monitor: str, transform: Transform | None = None) -> Iterator[tuple[float, float]]:
        """Pairs (mean so far, its weight) of one metric, batch by batch; the last is the final score.

        Gives only the last pair where a part of the data says nothing about the rest, and for several processes.

        Args:
            monitor: Which of :meth:`metrics`.
            transform: Applied to each batch.

        Raises:
            ValueError: If it is not among them.
        """
        if self.trainer.world_size > 1:
            yield pick(self.metrics(transform), monitor), 0.0
            return
        recorder, weight = Recorder(len(self._limits)), 0.0
        with self._quietly(recorder):
            for _ in self._over_batches(recorder, transform, None):
                entry = recorder.entries.get(monitor)
                if entry is not None and entry.is_mean_over_samples and entry.weight > weight:
                    weight = entry.weight
                    yield entry.mean(), weight
            self._finish(recorder)
            yield pick({name: entry.result(self.trainer) for name, entry in recorder.entries.items()}, monitor), weight

    def best_possible(self, monitor: str) -> float | None:
        """1 for accuracies, which no part of the data can exceed; None for what is not known."""
        return self._best.get(monitor)

    @contextmanager
    def _quietly(self, recorder: Recorder) -> Iterator[None]:
        """Inside the block, the module is validated as the Trainer validates it, without a trace."""
        precision = self.trainer.precision_plugin.val_step_context
        quiet = quietly(self.trainer, self.module, self._stage, recorder, self._loaders, self._since, "validation")
        with quiet, torch.no_grad(), precision():
            yield

    def _over_batches(self, recorder: Recorder, transform: Transform | None, limit: int | None) -> Iterator[None]:
        """Evaluate batch by batch."""
        samples, step = [0] * len(self._limits), getattr(self.module, self._step)
        if self._since is None:
            self._call_hook("start")
        self._call_hook("epoch_start")
        for size, batch, index, loader in self._batches(transform, limit):
            recorder.enter(size, loader)
            samples[loader] += size
            place = (index, loader) if len(samples) > 1 else (index,)
            self._call_hook("batch_start", batch, *place)
            outputs = call_step(step, batch, index, loader if len(samples) > 1 else None)
            self._call_hook("batch_end", outputs, batch, *place)
            self.batches += 1
            yield
        self.samples = samples

    def _finish(self, recorder: Recorder) -> None:
        """What the module does at the end of the epoch."""
        recorder.leave_loaders()
        self._call_hook("epoch_end")
        if self._since is None:
            self._call_hook("end")

    def _require_same_names(self, names: list[str]) -> None:
        """Refuse metrics that some ranks do not log, in whose reduction the others would wait."""
        if self.trainer.world_size == 1:
            return
        first = self.trainer.strategy.broadcast(names, 0)

        def compare() -> None:
            if names != first:
                raise ValueError(f"Expected the same metrics on every rank, but rank 0 logs {first}, this one {names}.")

        agreed(self.trainer, compare, "Validation")

    def _call_hook(self, name: str, *arguments: Any) -> None:
        prefix = "on_test" if self._stage == "testing" else "on_validation"
        getattr(self.module, f"{prefix}_{name}")(*arguments)

    def _batches(self, transform: Transform | None, limit: int | None) -> Iterator[tuple[int, Any, int, int]]:
        """The number of samples, the batch, its index and that of its loader."""
        loaders = CombinedLoader(copied(self._loaders), "sequential")
        loaders.limits = [most if limit is None else min(most, limit) for most in self._limits]
        total = int(sum(loaders.limits)) if all(map(math.isfinite, loaders.limits)) else None
        for batch, index, loader in track(loaders, "Evaluating", total):
            size = count_samples(batch)
            batch = transferred(self.trainer, self.module, batch, loader)
            if transform is not None:
                batch = transform(batch, index, loader)
                if batch is None:
                    continue
            yield size, batch, index, loader


def pick(metrics: Mapping[str, float], monitor: str) -> float:
    """One metric by name.

    Raises:
        ValueError: If it is missing; the message lists what there is.
    """
    if monitor not in metrics:
        raise ValueError(
            f"Expected a validation metric {monitor!r}, but validation logs {sorted(metrics)}. "
            "Set `monitor` to one of them."
        )
    return metrics[monitor]


def _share_buffers(module: nn.Module) -> None:
    """Rank 0's buffers on all ranks, as DDP shares them at every forward pass of its own."""
    for buffer in module.buffers():
        torch.distributed.broadcast(buffer, 0)
