"""What a module logs while it runs quietly: each name with its values, reduced as Lightning reduces them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from torchmetrics import Metric
from torchmetrics.classification import BinaryAccuracy, MulticlassAccuracy, MultilabelAccuracy

from lightning_robust.harness.compat import parts_of, set_parts, states_of_metric

_LOG = inspect.signature(pl.LightningModule.log)
_LOG_DICT = inspect.signature(pl.LightningModule.log_dict)


@dataclass
class LoggedValue:
    """One logged name: a metric object, or numbers with how they are reduced."""

    reduce_fx: Any
    metric: Metric | None = None
    aside: bool = False
    """Whether the metric object is a copy that no loader updates any more."""
    values: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    @property
    def weight(self) -> float:
        """The number of samples so far."""
        return sum(self.weights)

    def mean(self) -> float:
        """The value so far, of this rank."""
        if self.metric is not None:
            return float(self.metric.compute())
        return sum(v * w for v, w in zip(self.values, self.weights, strict=True)) / self.weight

    def result(self, trainer: pl.Trainer) -> float:
        """The value over all ranks; every rank calls it."""
        if self.metric is not None:
            return self.mean()  # torchmetrics synchronises ranks itself
        if self.reduce_fx == "mean":
            pair = torch.tensor([self.mean() * self.weight, self.weight], dtype=torch.float64)
            total = trainer.strategy.reduce(pair.to(_wide_device(trainer)), reduce_op="sum").cpu()
            return (total[0] / total[1]).item()
        reduced = _reduce(self.reduce_fx, self.values)
        return reduced if trainer.world_size == 1 else _over_ranks(trainer, self.reduce_fx, reduced)

    @property
    def is_mean_over_samples(self) -> bool:
        """Whether the final value is the mean of what each sample adds, so that a part of the data bounds it."""
        if self.metric is None:
            return bool(self.reduce_fx == "mean")
        accuracy = isinstance(self.metric, (BinaryAccuracy, MulticlassAccuracy, MultilabelAccuracy))
        return accuracy and self.metric.average == "micro" and self.metric.ignore_index is None


def _over_ranks(trainer: pl.Trainer, reduce_fx: Any, value: float) -> float:
    """The sum, the largest or the smallest of all ranks; of another function that of the first one, as all have it."""
    names = {torch.sum: "sum", torch.max: "max", torch.min: "min"}
    operation = names.get(reduce_fx, reduce_fx)
    if operation not in names.values():
        return float(trainer.strategy.broadcast(value, 0))
    tensor = torch.tensor(value, dtype=torch.float64).to(_wide_device(trainer))
    return float(trainer.strategy.reduce(tensor, reduce_op=operation))


class Recorder:
    """Replaces ``log`` and ``log_dict`` of a module.

    Args:
        loaders: The number of loaders; with several, names end in ``/dataloader_idx_<n>`` as Lightning's do.
    """

    def __init__(self, loaders: int) -> None:
        self.entries: dict[str, LoggedValue] = {}
        self.batch_size = 1
        self._loaders = loaders
        self._loader: int | None = None

    def enter(self, batch_size: int, loader: int) -> None:
        """A batch begins."""
        if self._loader is not None and loader != self._loader:
            self._set_metrics_aside()
        self.batch_size, self._loader = batch_size, loader

    def leave_loaders(self) -> None:
        """All batches have ended; what is logged from now on belongs to no loader."""
        self.batch_size, self._loader = 1, None

    def log(self, *args: Any, **settings: Any) -> None:
        """As ``LightningModule.log``."""
        self._record(**_bind(_LOG, args, settings))

    def log_dict(self, *args: Any, **settings: Any) -> None:
        """As ``LightningModule.log_dict``."""
        arguments = _bind(_LOG_DICT, args, settings)
        for name, value in arguments.pop("dictionary").items():
            self._record(name=name, value=value, **arguments)

    def _record(self, name: str, value: Any, reduce_fx: Any, add_dataloader_idx: bool, **settings: Any) -> None:
        several = self._loaders > 1 and add_dataloader_idx and self._loader is not None
        suffix = f"/dataloader_idx_{self._loader}" if several else ""
        new = LoggedValue("mean" if reduce_fx is torch.mean else reduce_fx)
        entry = self.entries.setdefault(f"{name}{suffix}", new)
        if settings.get("on_step") and settings.get("on_epoch") is not False:
            # Lightning's monitors know the mean of an epoch by both names then
            self.entries[f"{name}_epoch{suffix}"] = entry
        entry.weights.append(float(settings.get("batch_size") or self.batch_size))
        if isinstance(value, Metric):
            entry.metric = entry.metric if entry.aside else value
        else:
            entry.values.append(float(value))

    def _set_metrics_aside(self) -> None:
        """Keep metrics as they are, before the next loader updates the same objects.

        Lightning computes their values here; that is left to the end, since it makes ranks wait for each other.
        """
        for entry in self.entries.values():
            if entry.metric is not None and not entry.aside:
                entry.metric, entry.aside = set_aside(entry.metric), True


def set_aside(metric: Metric) -> Metric:
    """A metric with the same states, which updates of the original leave alone.

    Example:
        >>> from torchmetrics import SumMetric
        >>> metric = SumMetric()
        >>> metric.update(1.0)
        >>> copied = set_aside(metric)
        >>> metric.update(2.0)
        >>> float(metric.compute()), float(copied.compute())
        (3.0, 1.0)
    """
    twin = copy.copy(metric)
    for name in states_of_metric(metric):
        state = getattr(metric, name)
        setattr(twin, name, list(state) if isinstance(state, list) else state.detach().clone())
    parts = {n: set_aside(part) if isinstance(part, Metric) else part for n, part in parts_of(metric).items()}
    set_parts(twin, parts)
    return twin


def _bind(signature: inspect.Signature, args: tuple[Any, ...], settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name, with the defaults of Lightning's method."""
    bound = signature.bind(None, *args, **settings)
    bound.apply_defaults()
    return {key: value for key, value in bound.arguments.items() if key != "self"}


def _reduce(reduce_fx: Any, values: list[float]) -> float:
    known: dict[Any, Callable[[list[float]], float]] = {"sum": sum, "max": max, "min": min}
    known |= {torch.sum: sum, torch.max: max, torch.min: min}
    return float(known[reduce_fx](values) if reduce_fx in known else reduce_fx(torch.tensor(values)))


def _wide_device(trainer: pl.Trainer) -> torch.device:
    """The device on which fp64 exists and ranks can reduce it."""
    device: torch.device = trainer.strategy.root_device
    return torch.device("cpu") if device.type == "mps" else device
