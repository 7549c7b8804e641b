"""Measure a network with one layer put back at a time: the cells of a criticality map.

Which weights there are comes from the callback, what a share or a distance is from ``functional/criticality.py``, and
how a pass begins in the middle of a network from ``utilities/prefix.py``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lightning_robust.callbacks.conditions import CLEAN, Condition
from lightning_robust.callbacks.layer_criticality.draws import Draws
from lightning_robust.callbacks.layer_criticality.prefix import PrefixCache
from lightning_robust.functional.averaging import State
from lightning_robust.functional.batchnorm import batchnorm_layers
from lightning_robust.functional.criticality import Verdict, distance, judge, kept
from lightning_robust.functional.weights import Weights
from lightning_robust.harness.batches import refresh_statistics
from lightning_robust.harness.evaluate import Evaluator, Transform
from lightning_robust.layers import Layer, whole
from lightning_robust.statistics import Estimate, mean_interval
from lightning_robust.structures import Key

Mode = Literal["max", "min"]


@dataclass(frozen=True)
class Cell:
    """The network with a layer put back."""

    value: float
    """The metric; of the data seen, where evaluation stopped early."""
    kept: Estimate
    seen: float = 1.0
    """Share of the data."""


@dataclass(frozen=True)
class Row:
    """A layer."""

    name: str
    cells: tuple[Cell, ...]
    """Put back to the start, to each checkpoint, and as trained."""
    random: tuple[Cell, ...]
    """Fresh draws."""
    l2: tuple[float, ...]
    """Distance to the start over the square root of the number of weights, at the same moments."""
    linf: tuple[float, ...]
    verdict: Verdict

    @property
    def randomised(self) -> Estimate:
        """The metric over the draws."""
        return mean_interval([cell.value for cell in self.random])


@dataclass(frozen=True)
class CriticalityMap:
    """All layers under one condition; the last row is the whole network."""

    condition: str
    monitor: str
    mode: Mode
    threshold: float
    labels: tuple[str, ...]
    """Of the columns."""
    trained: float
    rows: tuple[Row, ...]
    whole: Row
    evaluations: int
    """Cells that were evaluated; equal ones are evaluated once."""
    layers: tuple[Layer, ...]

    def named(self, verdict: Verdict) -> list[str]:
        """The layers with a verdict."""
        return [row.name for row in self.rows if row.verdict == verdict]


@dataclass(frozen=True)
class _Reading:
    """A metric, and what each batch adds to it, if that is known."""

    value: float
    parts: list[float]
    seen: float = 1.0
    limits: tuple[float, float] | None = None
    """Of what is kept, where evaluation stopped early."""


class CriticalityMapper:
    """Evaluates cells. The module holds what it held after every method.

    Args:
        trainer: Within ``fit`` or ``validate``.
        pl_module: The module, as trained.
        layers: What is put back.
        labels: Names of ``states``.
        states: Weights to put back to; the first are those at the start.
        draws: Fresh ones.
        monitor: Metric to judge by.
        mode: Whether larger is better.
        threshold: Which share of what training gained an ambient layer keeps.
        cache_bytes: For batches and activations; 0 evaluates everything in full.
        value_range: Of one sample's metric. Given, a cell is left as soon as the rest of the data cannot change on
            which side of the threshold it is.
        bn_refresh: Recompute the statistics of BatchNorm in every cell, and for the network as trained.
        bn_samples: From about so many samples.
        input_key: Which part of a batch goes into ``forward`` for it.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        layers: Sequence[Layer],
        labels: Sequence[str],
        states: Sequence[State],
        draws: Draws,
        *,
        monitor: str,
        mode: Mode,
        threshold: float,
        cache_bytes: int,
        value_range: tuple[float, float] | None = None,
        bn_refresh: bool = False,
        bn_samples: int | None = None,
        input_key: Key | list[Key] = 0,
    ) -> None:
        self.trainer, self.module, self.layers = trainer, pl_module, tuple(layers)
        self.labels, self.states, self.draws = tuple(labels), list(states), draws
        self.monitor, self.mode, self.threshold = monitor, mode, threshold
        self.cache_bytes, self.value_range = cache_bytes, value_range
        self._refreshes = bn_refresh and bool(batchnorm_layers(pl_module))
        self._bn_samples, self._input_key = bn_samples, input_key
        self.evaluator = Evaluator(trainer, pl_module)
        self._condition = CLEAN
        self._cache = self._new_cache(0)
        self._trained, self._initial = _Reading(0.0, []), _Reading(0.0, [])
        self._weight = 0.0
        self._evaluations = 0

    def measure(self, condition: Condition) -> CriticalityMap:
        """The whole map under one condition."""
        self._condition, self._evaluations = condition, 0
        everything = whole(self.module)
        with self._refreshed():
            self._begin()
            self._initial = self._trained = self._read()
            self._initial = self._put(everything, self.states[0], replay=False)
            rows = {layer.name: self._row(layer) for layer in sorted(self.layers, key=self._depth)}
            last = self._row(everything, self.draws.of_all(), replay=False)
        self._cache.clear()
        self.evaluator.release()
        return CriticalityMap(
            condition.name,
            self.monitor,
            self.mode,
            self.threshold,
            (*self.labels, "end"),
            self._trained.value,
            tuple(rows[layer.name] for layer in self.layers),
            last,
            self._evaluations,
            self.layers,
        )

    def _begin(self) -> None:
        """Hold the batches and trace them, as far as that is sound and fits."""
        fixed, self._weight = self._condition.fixed, 0.0
        self.evaluator.hold(self.cache_bytes if fixed else 0, self._condition.transform)
        self._cache = self._new_cache(self.cache_bytes - self.evaluator.held_bytes if fixed else 0)
        if not self._cache.off:
            with self._cache.tracing():
                self.evaluator.metrics(self._transform())

    def _new_cache(self, limit: int) -> PrefixCache:
        weights = Weights(self.module)
        tensors = dict(zip(weights.names, weights.tensors(), strict=True))
        return PrefixCache(self.module, tensors, limit=limit, leave_out=(Metric, MetricCollection))

    def _depth(self, layer: Layer) -> float:
        uses = [self._cache.first_use(name) for name in layer.tensors]
        return min((use for use in uses if use is not None), default=math.inf)

    def _row(self, layer: Layer, draws: list[State] | None = None, *, replay: bool = True) -> Row:
        names = layer.parameters or layer.tensors
        present = self._present(layer)
        known = [(present, self._trained)]
        cells = [self._cell(layer, state, known, replay=replay) for state in self.states]
        random = [self._cell(layer, state, known, replay=replay) for state in draws or self.draws.of(layer)]
        moved = [distance(self.states[0], state, names) for state in (*self.states, present)]
        unchanged = _equal(present, self._values(layer, self.states[0]))
        return Row(
            layer.name,
            (*cells, Cell(self._trained.value, self._kept(self._trained))),
            tuple(random),
            tuple(l2 for l2, _ in moved),
            tuple(linf for _, linf in moved),
            "unchanged" if unchanged else judge(cells[0].kept, self.threshold),
        )

    def _present(self, layer: Layer) -> State:
        weights = Weights(self.module, layer.tensors)
        return {name: t.detach().to("cpu", copy=True) for name, t in zip(weights.names, weights.tensors(), strict=True)}

    def _values(self, layer: Layer, state: Mapping[str, Tensor]) -> State:
        """Of a layer, in the types of the module."""
        weights = Weights(self.module, layer.tensors)
        return {name: state[name].to(t.dtype) for name, t in zip(weights.names, weights.tensors(), strict=True)}

    def _cell(self, layer: Layer, state: State, known: list[tuple[State, _Reading]], *, replay: bool) -> Cell:
        """Evaluate, unless the same weights have been evaluated before."""
        values = self._values(layer, state)
        reading = next((reading for seen, reading in known if self._all_agree(_equal(seen, values))), None)
        if reading is None:
            reading = self._put(layer, values, replay=replay, check=replay and len(known) == 1)
            known.append((values, reading))
        return Cell(reading.value, self._kept(reading), reading.seen)

    def _put(self, layer: Layer, values: Mapping[str, Tensor], *, replay: bool, check: bool = False) -> _Reading:
        """The metric with a layer put back."""
        statistics = {name: tensor.clone() for name, tensor in self._statistics().items()}
        weights = Weights(self.module, {*layer.tensors, *statistics})
        # refreshing writes into what it is given
        fresh = {name: values.get(name, tensor).clone() for name, tensor in statistics.items()}
        with weights.exchanged([fresh[name] if name in fresh else values[name] for name in weights.names]):
            changed = set(layer.tensors)
            if statistics:
                self._refresh()
                changed |= {name for name, now in self._statistics().items() if not torch.equal(statistics[name], now)}
            with self._cache.replaying(changed) if replay else nullcontext():
                reading = self._read()
            if check and not self._replay_is_exact(changed):
                reading = self._read()
        return reading

    def _replay_is_exact(self, changed: set[str]) -> bool:
        """Compare the first batches with a pass in full; nothing is replayed any more if they differ."""
        if self._cache.off:
            return True
        with self._cache.replaying(changed):
            replayed = self.evaluator.metrics(self._transform(), 1)
        full = self.evaluator.metrics(self._transform(tagged=False), 1)
        same = all(math.isclose(full[k], v, rel_tol=1e-5) or math.isnan(v) for k, v in replayed.items())
        if not self._all_agree(same):
            self._cache.off = True
            self._cache.clear()
            rank_zero_warn(
                "LayerCriticalityCallback: passes that begin in the middle of the network differ from those in full, "
                "which a part that keeps something from one call to the next can cause. All are made in full now."
            )
            return False
        return True

    def _read(self) -> _Reading:
        """Evaluate what the module holds."""
        self._evaluations += 1
        sums, means = [0.0], [0.0]
        for mean, weight in self.evaluator.course(self.monitor, self._transform()):
            sums.append(mean * weight)
            means.append(mean)
            limits = self._settled(mean, weight)
            if limits is not None:
                return _Reading(mean, [], weight / self._weight, limits)
        if self._weight == 0.0 and len(sums) > 2:
            self._weight = weight
        total = self._weight or 1.0
        # the last one repeats the sum of all
        parts = [(now - before) / total for before, now in itertools.pairwise(sums[:-1])]
        return _Reading(means[-1], parts)

    def _settled(self, mean: float, weight: float) -> tuple[float, float] | None:
        """Limits of what is kept, once they lie on one side of the threshold before the data has ended."""
        gain = self._trained.value - self._initial.value
        if self.value_range is None or not 0 < weight < self._weight or gain == 0:
            return None
        seen = weight / self._weight
        ends = [(seen * mean + (1 - seen) * end - self._initial.value) / gain for end in self.value_range]
        low, high = min(ends), max(ends)
        return (low, high) if low >= self.threshold or high < self.threshold else None

    def _kept(self, reading: _Reading) -> Estimate:
        trained, initial = self._trained, self._initial
        gain = trained.value - initial.value
        if not (gain > 0 if self.mode == "max" else gain < 0):
            return Estimate(math.nan)
        if reading.limits is not None:
            value = (reading.value - initial.value) / gain
            return Estimate(value, *reading.limits)
        if len(reading.parts) == len(trained.parts) == len(initial.parts) > 1:
            return kept(reading.parts, trained.parts, initial.parts)
        return kept([reading.value], [trained.value], [initial.value])

    def _transform(self, *, tagged: bool = True) -> Transform:
        """The condition, and word to the cache of which batch comes."""
        own = None if self.evaluator.held_bytes else self._condition.transform

        def transform(batch: Any, index: int, loader: int) -> Any:
            batch = batch if own is None else own(batch, index, loader)
            if tagged:
                self._cache.enter((loader, index))
            return batch

        return transform

    def _statistics(self) -> State:
        """Those of all BatchNorm layers, live, if they are refreshed."""
        if not self._refreshes:
            return {}
        own = {id(t) for layer in batchnorm_layers(self.module) for t in layer.buffers(recurse=False)}
        weights = Weights(self.module)
        return {name: t for name, t in zip(weights.names, weights.tensors(), strict=True) if id(t) in own}

    def _refresh(self) -> None:
        refresh_statistics(self.trainer, self.module, input_key=self._input_key, samples=self._bn_samples)

    @contextmanager
    def _refreshed(self) -> Iterator[None]:
        """The network as trained has fresh statistics inside the block, so that cells differ by the layer alone."""
        if not self._refreshes:
            yield
            return
        weights = Weights(self.module, self._statistics())
        with weights.exchanged([tensor.clone() for tensor in weights.tensors()]):
            self._refresh()
            yield

    def _all_agree(self, decision: bool) -> bool:
        return self.trainer.strategy.reduce_boolean_decision(decision, all=True)


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())
