"""Judge the weights that a module holds now by the Trainer's own validation, run quietly.

Nothing here changes the module: what is measured with other weights is put there by the caller.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.data import extract_batch_size
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy, MultilabelAccuracy

from lightning_robust.harness.batches import Batch, HeldBatches, isolated_rng, stage, transferred, twins
from lightning_robust.harness.steps import call_step
from lightning_robust.harness.trainers import replaced

Transform = Callable[[Any, int, int], Any]
_LOG = inspect.signature(pl.LightningModule.log)
_LOG_DICT = inspect.signature(pl.LightningModule.log_dict)


@dataclass
class _Entry:
    """One logged name: a metric object, or numbers with how they are reduced."""

    reduce_fx: Any
    metric: Metric | None = None
    settled: float | None = None
    values: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    @property
    def weight(self) -> float:
        return sum(self.weights)

    def mean(self) -> float:
        if self.settled is not None:
            return self.settled
        if self.metric is not None:
            return float(self.metric.compute())
        return sum(v * w for v, w in zip(self.values, self.weights, strict=True)) / self.weight

    def result(self, trainer: pl.Trainer) -> float:
        if self.settled is not None or self.metric is not None:
            return self.mean()  # torchmetrics synchronises ranks itself
        if self.reduce_fx == "mean":
            pair = torch.tensor([self.mean() * self.weight, self.weight], dtype=torch.float64)
            total = trainer.strategy.reduce(pair.to(_wide_device(trainer)), reduce_op="sum").cpu()
            return (total[0] / total[1]).item()
        return _reduced(self.reduce_fx, self.values)

    @property
    def is_mean_over_samples(self) -> bool:
        """Whether the final value is the mean of what each sample adds, so that a part of the data bounds it."""
        if self.metric is None:
            return self.settled is None and self.reduce_fx == "mean"
        accuracy = isinstance(self.metric, (BinaryAccuracy, MulticlassAccuracy, MultilabelAccuracy))
        return accuracy and self.metric.average == "micro" and self.metric.ignore_index is None


class Evaluator:
    """Runs the module's ``validation_step`` over the Trainer's validation loaders, without leaving a trace.

    Within ``trainer.test()`` it is ``test_step`` and the test loaders.

    ``log`` and ``log_dict`` are caught, torchmetrics objects replaced by twins, loggers by ones that do nothing; modes,
    random numbers, the Trainer's stage and gradients' mode come back as they were, also after an error. Module hooks
    ``on_validation_epoch_start`` and ``..._end`` run, those of callbacks do not. ``limit_val_batches`` holds. Means are
    weighted by batch size and reduced over ranks, so that all ranks see the same numbers.

    Args:
        trainer: The Trainer, within ``fit``, ``validate`` or ``test``.
        pl_module: The module.

    Raises:
        ValueError: If there is no such loader or step.
    """

    def __init__(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        testing = trainer.state.fn == "test"
        self._stage = "testing" if testing else "validating"
        self._step = "test_step" if testing else "validation_step"
        if not is_overridden(self._step, pl_module):
            raise ValueError(
                f"Expected {type(pl_module).__name__} to have a `{self._step}`, which weights are judged by."
            )
        if not testing and trainer.val_dataloaders is None:
            trainer.fit_loop.epoch_loop.val_loop.setup_data()
        self._loaders = trainer.test_dataloaders if testing else trainer.val_dataloaders
        self._limits = list(trainer.num_test_batches if testing else trainer.num_val_batches)
        if self._loaders is None or sum(self._limits) == 0:
            raise ValueError(
                "Expected held-out loaders to judge weights by, but the Trainer has none. Give it some, and leave "
                "`limit_val_batches` above 0."
            )
        self.trainer, self.module = trainer, pl_module
        self.batches = 0
        """Batches evaluated so far, over all passes."""
        self.samples: list[int] = []
        """Samples of each loader in the last whole pass."""
        self._weights: dict[str, float] = {}
        self._best: dict[str, float] = {}
        self._held: HeldBatches | None = None

    def metrics(self, transform: Transform | None = None, limit: int | None = None) -> dict[str, float]:
        """Everything that a validation of the present weights logs, by name.

        Args:
            transform: Applied to each batch after transfer, with its index and that of its loader.
            limit: Use only so many batches of each loader; all if None.
        """
        entries: dict[str, _Entry] = {}
        for entries in self._run(transform, limit):  # noqa: B007 - the last ones are complete
            pass
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
        that is no mean over samples, or no whole pass seen before.
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
            transform: As there.

        Raises:
            ValueError: If it is not among them.
        """
        run, seen = self._run(transform), 0.0
        try:
            for entries in run:
                entry = entries.get(monitor)
                partial = entry is not None and entry.is_mean_over_samples and self.trainer.world_size == 1
                if entry is not None and partial and entry.weight > seen:
                    seen = entry.weight
                    yield entry.mean(), seen
            yield pick({name: entry.result(self.trainer) for name, entry in entries.items()}, monitor), seen
        finally:
            run.close()

    def hold(self, limit: int, transform: Transform | None = None) -> bool:
        """Keep the batches for further passes, after transfer and transform, if they fit into so many bytes.

        What a pass changes in them in place is noticed; later passes then load them again.

        Args:
            limit: In bytes; what was held before is let go.
            transform: As of :meth:`metrics`, which applies its own on top.

        Returns:
            Whether they are held.
        """
        self.release()
        if limit > 0:
            with quietly(self.trainer, self.module, self._stage, None, self._loaders):
                self._held = HeldBatches.gather(self._loaded(transform, None), limit)
        return self._held is not None

    def release(self) -> None:
        """Let go of what is held."""
        self._held = None

    @property
    def held_bytes(self) -> int:
        """What :meth:`hold` keeps."""
        return 0 if self._held is None else self._held.size

    def best_possible(self, monitor: str) -> float | None:
        """1 for accuracies, which no part of the data can exceed; None for what is not known."""
        return self._best.get(monitor)

    def _run(
        self, transform: Transform | None = None, limit: int | None = None
    ) -> Generator[dict[str, _Entry], None, None]:
        """Evaluate; after each batch, what was logged so far."""
        trainer, module = self.trainer, self.module
        samples = [0] * len(self._limits)
        recorder = Recorder(len(samples))
        prefix = "on_test" if self._stage == "testing" else "on_validation"
        if trainer.world_size > 1:
            _share_buffers(module)
        with (
            quietly(trainer, module, self._stage, recorder, self._loaders),
            torch.no_grad(),
            trainer.precision_plugin.val_step_context(),
        ):
            getattr(module, f"{prefix}_epoch_start")()
            for size, batch, index, loader in self._batches(transform, limit):
                recorder.enter(size, loader)
                samples[loader] += size
                call_step(getattr(module, self._step), batch, index, loader if len(samples) > 1 else None)
                self.batches += 1
                yield recorder.entries
            recorder.leave_loaders()
            getattr(module, f"{prefix}_epoch_end")()
            yield recorder.entries
        self.samples = samples

    def _batches(self, transform: Transform | None, limit: int | None) -> Iterator[Batch]:
        if self._held is None:
            yield from self._loaded(transform, limit)
            return
        held = self._held
        try:
            for size, batch, index, loader in held:
                if limit is None or index < limit:
                    yield size, (batch if transform is None else transform(batch, index, loader)), index, loader
        finally:
            self._held = held if held.intact else None

    def _loaded(self, transform: Transform | None, limit: int | None) -> Iterator[Batch]:
        loaders = CombinedLoader(twins(self._loaders), "sequential")
        loaders.limits = [most if limit is None else min(most, limit) for most in self._limits]
        for batch, index, loader in loaders:
            size = extract_batch_size(batch)
            batch = transferred(self.trainer, self.module, batch, loader)
            yield size, (batch if transform is None else transform(batch, index, loader)), index, loader


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


class Recorder:
    """Stands in for ``log`` and ``log_dict`` of a module."""

    def __init__(self, loaders: int) -> None:
        self.entries: dict[str, _Entry] = {}
        self.batch_size = 1
        self._loaders = loaders
        self._loader: int | None = None

    def enter(self, batch_size: int, loader: int) -> None:
        """A batch begins."""
        if self._loader is not None and loader != self._loader:
            self._settle()
        self.batch_size, self._loader = batch_size, loader

    def leave_loaders(self) -> None:
        """What follows belongs to no loader."""
        self.batch_size, self._loader = 1, None

    def _settle(self) -> None:
        """As Lightning does, take the value of a metric object before the next loader goes into the same one."""
        for entry in self.entries.values():
            if entry.metric is not None:
                entry.settled = float(entry.metric.compute())
                entry.metric = None

    def log(self, *args: Any, **settings: Any) -> None:
        """As ``LightningModule.log``."""
        given = _LOG.bind(None, *args, **settings)
        given.apply_defaults()
        self._keep(**{key: value for key, value in given.arguments.items() if key != "self"})

    def log_dict(self, *args: Any, **settings: Any) -> None:
        """As ``LightningModule.log_dict``."""
        given = _LOG_DICT.bind(None, *args, **settings)
        given.apply_defaults()
        common = {key: value for key, value in given.arguments.items() if key not in ("self", "dictionary")}
        for name, value in given.arguments["dictionary"].items():
            self._keep(name=name, value=value, **common)

    def _keep(self, name: str, value: Any, reduce_fx: Any, add_dataloader_idx: bool, **settings: Any) -> None:
        if self._loaders > 1 and add_dataloader_idx and self._loader is not None:
            name = f"{name}/dataloader_idx_{self._loader}"
        entry = self.entries.setdefault(name, _Entry("mean" if reduce_fx is torch.mean else reduce_fx))
        entry.weights.append(float(settings.get("batch_size") or self.batch_size))
        if isinstance(value, Metric):
            entry.metric = value
        else:
            entry.values.append(float(value))


@contextmanager
def quietly(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    stage_name: str,
    recorder: Recorder | None = None,
    loaders: Any = None,
) -> Iterator[None]:
    """The module in evaluation mode, without a trace of what is run inside the block.

    What it logs goes to the recorder, or nowhere; metric objects are twins, loggers do nothing; modes, random numbers
    and the Trainer's stage come back as they were, also after an error.
    """
    loggers = trainer.loggers
    with ExitStack() as stack:
        stack.enter_context(isolated_rng(loaders))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(stage(trainer, stage_name))
        stack.enter_context(muted(module, recorder))
        stack.enter_context(in_evaluation_mode(module))
        trainer.loggers = [DummyLogger() for _ in loggers]
        try:
            yield
        finally:
            trainer.loggers = loggers


@contextmanager
def muted(module: pl.LightningModule, recorder: Recorder | None = None) -> Iterator[None]:
    """What the module logs inside the block goes to the recorder, or nowhere; its metric objects are twins."""
    with (
        _twin_metrics(module),
        replaced(module, "log", recorder.log if recorder else _ignore),
        replaced(module, "log_dict", recorder.log_dict if recorder else _ignore),
    ):
        yield


@contextmanager
def in_evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Every part of the module in evaluation mode inside the block, and as it was afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _share_buffers(module: nn.Module) -> None:
    """Rank 0's buffers on all ranks, as DDP shares them at every forward pass of its own."""
    for buffer in module.buffers():
        torch.distributed.broadcast(buffer, 0)


def _ignore(*_: Any, **__: Any) -> None:
    pass


@contextmanager
def _twin_metrics(module: nn.Module) -> Iterator[None]:
    """Fresh copies of all metric objects inside the block, so that the ones in use keep what they gathered."""
    originals = list(_metrics(module))
    for parent, name, metric in originals:
        twin = copy.deepcopy(metric)
        twin.reset()
        setattr(parent, name, twin)
    try:
        yield
    finally:
        for parent, name, metric in originals:
            setattr(parent, name, metric)


def _metrics(module: nn.Module) -> Iterator[tuple[nn.Module, str, Metric | MetricCollection]]:
    for name, child in module.named_children():
        if isinstance(child, (Metric, MetricCollection)):
            yield module, name, child
        else:
            yield from _metrics(child)


def _reduced(reduce_fx: Any, values: list[float]) -> float:
    known: dict[Any, Callable[[list[float]], float]] = {"sum": sum, "max": max, "min": min}
    for name in ("sum", "max", "min"):
        known[getattr(torch, name)] = known[name]
    if reduce_fx in known:
        return float(known[reduce_fx](values))
    return float(reduce_fx(torch.tensor(values)))


def _wide_device(trainer: pl.Trainer) -> torch.device:
    """Where fp64 exists and ranks can reduce it."""
    device: torch.device = trainer.strategy.root_device
    return torch.device("cpu") if device.type == "mps" else device
