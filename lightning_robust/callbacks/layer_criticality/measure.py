"""The cells of a criticality map: the metric of a network in which one layer holds other values."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_robust.callbacks.conditions import Condition
from lightning_robust.callbacks.layer_criticality.readings import Criterion, MetricReader, MetricReading
from lightning_robust.functional.averaging import State
from lightning_robust.functional.criticality import Verdict, criticality_verdict, permuted, weight_distance
from lightning_robust.functional.weights import Weights
from lightning_robust.harness.evaluate import Evaluator
from lightning_robust.layers import Layer, whole
from lightning_robust.progress import track
from lightning_robust.statistics import Estimate, mean_interval, range_of


@dataclass(frozen=True)
class CriticalityCell:
    """The network with other values in one layer."""

    value: float
    """The metric; of the data that was read, where reading stopped early."""
    kept: Estimate
    """The share of training's gain that remains."""
    seen: float = 1.0
    """Share of the data that was read."""


@dataclass(frozen=True)
class CriticalityRow:
    """One layer."""

    name: str
    cells: tuple[CriticalityCell, ...]
    """With the values from the start, from each checkpoint, and as trained."""
    random: tuple[CriticalityCell, ...]
    """With fresh draws."""
    l2: tuple[float, ...]
    """Distance to the start over the square root of the number of weights, at the same moments as ``cells``."""
    linf: tuple[float, ...]
    verdict: Verdict
    limits: tuple[float, float] = (-math.inf, math.inf)
    """Where the metric lies, as far as is known."""

    @property
    def randomised(self) -> Estimate:
        """The metric over the draws; its interval stays where the metric lies."""
        return mean_interval([cell.value for cell in self.random], self.limits)


@dataclass(frozen=True)
class CriticalityMap:
    """All layers under one condition."""

    condition: str
    criterion: Criterion
    labels: tuple[str, ...]
    """Names of the columns."""
    trained: float
    """The metric as trained."""
    rows: tuple[CriticalityRow, ...]
    whole: CriticalityRow
    """The whole network as one layer."""
    evaluations: int
    """Evaluations of the network; equal weights are evaluated once."""
    layers: tuple[Layer, ...]

    def named(self, verdict: Verdict) -> list[str]:
        """The layers with a verdict."""
        return [row.name for row in self.rows if row.verdict == verdict]


class CriticalityMapper:
    """Measures maps. The module holds what it held after every method.

    Args:
        trainer: Within ``fit`` or ``validate``.
        pl_module: The module, as trained.
        layers: The layers that get other values, one at a time.
        labels: Names of ``states``.
        states: Weights to take values from; the first are those at the start.
        draws: How many fresh draws of each layer.
        criterion: What layers are judged by.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        layers: Sequence[Layer],
        labels: Sequence[str],
        states: Sequence[State],
        draws: int,
        criterion: Criterion,
    ) -> None:
        self._trainer, self._module, self._layers = trainer, pl_module, tuple(layers)
        self._labels, self._states, self._draws, self._criterion = (*labels, "end"), list(states), draws, criterion
        self._evaluator = Evaluator(trainer, pl_module)

    def measure(self, condition: Condition) -> CriticalityMap:
        """The whole map under one condition."""
        reader = MetricReader(self._evaluator, condition, self._criterion)
        everything, start = whole(self._module), self._states[0]
        reader.trained = reader.initial = reader.read()
        reader.initial = self._read_with(reader, everything, start)
        drawn = [[draw_layer(layer, start, index) for index in range(self._draws)] for layer in self._layers]
        # a draw of the network; what belongs to no layer is as at the start
        merged = [{**start, **{n: t for draw in draws for n, t in draw.items()}} for draws in zip(*drawn, strict=True)]
        places = list(zip((*self._layers, everything), (*drawn, merged), strict=True))
        what = f"Layer criticality, {condition.name}"
        begun = [(self._values(everything, start), reader.initial)]
        *rows, network = [
            self._row(reader, layer, draws, begun if layer is everything else ())
            for layer, draws in track(places, what)
        ]
        limits = self._limits([*rows, network])
        return CriticalityMap(
            condition.name,
            self._criterion,
            self._labels,
            reader.trained.value,
            tuple(dataclasses.replace(row, limits=limits) for row in rows),
            dataclasses.replace(network, limits=limits),
            reader.evaluations,
            self._layers,
        )

    def _limits(self, rows: Sequence[CriticalityRow]) -> tuple[float, float]:
        """Where the metric lies: as the user says, else as its values tell."""
        values = [cell.value for row in rows for cell in (*row.cells, *row.random)]
        return self._criterion.value_range or range_of(values, mode=self._criterion.mode)

    def _row(
        self, reader: MetricReader, layer: Layer, draws: Sequence[State], read: Sequence[tuple[State, MetricReading]]
    ) -> CriticalityRow:
        """One layer, with values of it whose metric has been read."""
        weights = Weights(self._module, layer.tensors)
        present = {n: t.detach().to("cpu", copy=True) for n, t in zip(weights.names, weights.tensors(), strict=True)}
        known = [(present, reader.trained), *read]
        cells = [self._cell(reader, layer, state, known) for state in self._states]
        random = [self._cell(reader, layer, state, known) for state in draws]
        trained = CriticalityCell(reader.trained.value, reader.share(reader.trained))
        distances = [
            weight_distance(self._states[0], state, layer.parameters or layer.tensors)
            for state in (*self._states, present)
        ]
        unchanged = _equal(present, self._values(layer, self._states[0]))
        return CriticalityRow(
            layer.name,
            (*cells, trained),
            tuple(random),
            tuple(l2 for l2, _ in distances),
            tuple(linf for _, linf in distances),
            "unchanged" if unchanged else criticality_verdict(cells[0].kept, self._criterion.threshold),
        )

    def _cell(
        self, reader: MetricReader, layer: Layer, state: State, known: list[tuple[State, MetricReading]]
    ) -> CriticalityCell:
        """Evaluate, unless the same weights have been evaluated before."""
        values = self._values(layer, state)
        reading = next((reading for seen, reading in known if self._all_agree(_equal(seen, values))), None)
        if reading is None:
            reading = self._read_with(reader, layer, values)
            known.append((values, reading))
        return CriticalityCell(reading.value, reader.share(reading), reading.seen)

    def _read_with(self, reader: MetricReader, layer: Layer, values: Mapping[str, Tensor]) -> MetricReading:
        weights = Weights(self._module, layer.tensors)
        with weights.exchanged([values[name] for name in weights.names]):
            return reader.read()

    def _values(self, layer: Layer, state: Mapping[str, Tensor]) -> State:
        """The layer's part of a state, in the types of the module."""
        weights = Weights(self._module, layer.tensors)
        return {name: state[name].to(t.dtype) for name, t in zip(weights.names, weights.tensors(), strict=True)}

    def _all_agree(self, decision: bool) -> bool:
        return self._trainer.strategy.reduce_boolean_decision(decision, all=True)


def draw_layer(layer: Layer, initial: State, index: int) -> State:
    """The fresh draw with this index of a layer, its initial tensors permuted; the same on every rank."""
    drawn: State = {}
    for name in layer.tensors:
        # torch's generator on the CPU takes 32 bits
        generator = torch.Generator().manual_seed(zlib.crc32(f"{index} {name}".encode()))
        drawn |= permuted({name: initial[name]}, generator)
    return drawn


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())
