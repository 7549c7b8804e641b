"""How far each layer's activations move between clean and perturbed samples, beside noise of the same norm."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_robust.callbacks.conditions import Condition
from lightning_robust.callbacks.datapath.activations import eager, find_points, visiting
from lightning_robust.callbacks.datapath.paths import Paths, find_paths
from lightning_robust.callbacks.datapath.quiet_network import PRECISIONS, QuietNetwork
from lightning_robust.functional.datapath import LayerDivergence, channel_energy, parting_point, same_norm_noise
from lightning_robust.harness.batches import count_samples, validation_batches
from lightning_robust.harness.compat import load_validation_data
from lightning_robust.rows import take_rows
from lightning_robust.structures import Key, map_tensors, tensors_in

CARRIED_SHARE = 0.8
"""The share of a layer's squared difference that the channels to look at carry."""


@dataclass(frozen=True)
class Datapath:
    """The effect of one condition on the network.

    Args:
        condition: Its name.
        samples: How many pairs were compared.
        layers: In the order in which they are computed.
        factor: As in :func:`~lightning_robust.functional.datapath.parting_point`.
        start: Divergence of the inputs; None where they do not move.
        paths: None for tasks other than classification.
    """

    condition: str
    samples: int
    layers: list[LayerDivergence]
    factor: float
    start: float | None = None
    paths: Paths | None = None

    @property
    def values(self) -> list[float]:
        """The divergence of each layer."""
        return [layer.relative for layer in self.layers]

    @property
    def controls(self) -> list[float] | None:
        """The divergence of each layer under noise of the same norm."""
        values = [layer.control for layer in self.layers]
        return [value for value in values if value is not None] if None not in values else None

    @property
    def parting(self) -> int | None:
        """The layer from which on clean and perturbed go apart."""
        return parting_point(self.values, self.controls, self.factor, self.start)

    def depth(self, place: int | None) -> float:
        """A position as a share of the network's depth; 1 for nowhere."""
        return 1.0 if place is None else place / len(self.layers)


@dataclass(frozen=True)
class ProbeSettings:
    """Arguments of :class:`~lightning_robust.callbacks.datapath.callback.DatapathCallback`, explained there."""

    layers: list[str] | None
    num_samples: int
    batch_size: int
    num_paths: int
    gate_weight: float
    factor: float
    input_key: Key | list[Key] | None
    target_key: Key | None


class DatapathProbe:
    """Measures conditions on the first samples of the first validation loader.

    Clean activations of ``batch_size`` samples at all layers are held at a time, nothing else of that size.

    Args:
        trainer: Within ``fit`` or ``validate``.
        pl_module: The module; every method leaves it as it was.
        settings: How much is measured.

    Raises:
        ValueError: If there are no validation batches, or ``layers`` matches nothing that ``forward`` calls.
    """

    def __init__(self, trainer: pl.Trainer, pl_module: pl.LightningModule, settings: ProbeSettings) -> None:
        self._settings = settings
        self._network = QuietNetwork(trainer, pl_module, settings.input_key)
        self._batches = _first_samples(trainer, pl_module, settings.num_samples, settings.batch_size)
        first = self._batches[0]
        with self._network.quiet():
            size = count_samples(first)
            self.points = find_points(pl_module, lambda: self._network.run(first), size, settings.layers)

    def measure(self, condition: Condition) -> Datapath:
        """Divergence of all layers, and for classifiers the critical channels."""
        settings, moves_inputs = self._settings, condition.name not in PRECISIONS
        pairs = [(batch, _perturb(condition, batch, index)) for index, batch in enumerate(self._batches)]
        return Datapath(
            condition.name,
            sum(count_samples(batch) for batch in self._batches),
            self._divergences(condition.name, pairs, moves_inputs),
            settings.factor,
            self._input_divergence(pairs) if moves_inputs else None,
            find_paths(
                self._network,
                self.points,
                _first_pairs(pairs, settings.num_paths),
                condition.name,
                target_key=settings.target_key,
                weight=settings.gate_weight,
            ),
        )

    def _divergences(self, condition: str, pairs: Sequence[tuple[Any, Any]], control: bool) -> list[LayerDivergence]:
        generator = torch.Generator().manual_seed(0)
        energies = [[torch.zeros(p.channels, dtype=torch.float64) for p in self.points] for _ in range(3)]
        clean, moved, noise = energies
        with self._network.quiet():
            for before, after in pairs:
                activations = self._activations(before, clean)
                with self._network.arithmetic(condition):
                    self._add_differences(after, activations, moved)
                if control:
                    self._add_differences(_noisy(before, after, generator), activations, noise)
        return [
            LayerDivergence(p.name, c, m, n if control else None)
            for p, c, m, n in zip(self.points, clean, moved, noise, strict=True)
        ]

    def _activations(self, batch: Any, energies: list[Tensor]) -> dict[int, Tensor]:
        """Activations by point; their squares are added up."""
        activations: dict[int, Tensor] = {}

        def keep(index: int, tensor: Tensor) -> None:
            # later layers may change it in place
            activations[index] = tensor.detach().clone()
            energies[index] += channel_energy(tensor, self.points[index].dim)

        with visiting(self._network.module, self.points, keep):
            self._network.run(batch)
        return activations

    def _add_differences(self, batch: Any, clean: dict[int, Tensor], energies: list[Tensor]) -> None:
        """Add up the squares by which activations differ from the clean ones."""

        def compare(index: int, tensor: Tensor) -> None:
            before = clean.get(index)
            if before is not None and before.shape == tensor.shape:
                energies[index] += channel_energy(tensor.float() - before.float(), self.points[index].dim)

        with visiting(self._network.module, self.points, compare):
            self._network.run(batch)

    def _input_divergence(self, pairs: Sequence[tuple[Any, Any]]) -> float:
        energies = torch.zeros(2, dtype=torch.float64)
        for clean, perturbed in pairs:
            for before, after in zip(self._network.inputs(clean), self._network.inputs(perturbed), strict=True):
                if before.is_floating_point():
                    change = after.float() - before.float()
                    energies += torch.stack([each.float().square().sum().cpu().double() for each in (before, change)])
        return LayerDivergence("inputs", energies[:1], energies[1:]).relative


def _first_samples(trainer: pl.Trainer, pl_module: pl.LightningModule, count: int, batch_size: int) -> list[Any]:
    """The first validation samples, in parts of at most ``batch_size``."""
    load_validation_data(trainer)
    parts: list[Any] = []
    if trainer.val_dataloaders is not None:
        with closing(validation_batches(trainer, pl_module)) as batches:
            for batch in batches:
                size = count_samples(batch)
                cuts = range(0, min(size, count), batch_size)
                parts += [take_rows(batch, slice(at, min(at + batch_size, count)), size) for at in cuts]
                count -= size
                if count <= 0:
                    break
    if not parts:
        raise ValueError(
            "Expected validation batches to compare activations on, but the Trainer has none. Give it a validation "
            "loader, and leave `limit_val_batches` above 0."
        )
    return [map_tensors(torch.clone, part) for part in parts]


def _first_pairs(pairs: Sequence[tuple[Any, Any]], count: int) -> list[tuple[Any, Any]]:
    chosen = []
    for clean, perturbed in pairs:
        size = count_samples(clean)
        if count > 0:
            chosen.append((take_rows(clean, slice(count), size), take_rows(perturbed, slice(count), size)))
        count -= size
    return chosen


def _perturb(condition: Condition, batch: Any, index: int) -> Any:
    if condition.transform is None:
        return batch
    with eager():
        return map_tensors(Tensor.detach, condition.transform(batch, index, 0))


def _noisy(clean: Any, perturbed: Any, generator: torch.Generator) -> Any:
    """The clean batch with noise in place of the perturbation, in every tensor that it moved."""
    tensors = iter(
        same_norm_noise(one, other, generator) if one.is_floating_point() and one.ndim > 1 else one
        for one, other in zip(tensors_in(clean), tensors_in(perturbed), strict=True)
    )
    return map_tensors(lambda _: next(tensors), clean)
