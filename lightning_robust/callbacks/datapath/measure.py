"""Pairs of clean and perturbed samples sent through a module of the Trainer, and what becomes of them layer by layer.

The mathematics is in ``functional/datapath.py`` and ``functional/gates.py``, hooks are in ``utilities/activations.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor

from lightning_robust.callbacks.conditions import Condition
from lightning_robust.functional.datapath import (
    LayerDivergence,
    channel_energy,
    lasting,
    parting_point,
    same_norm_noise,
)
from lightning_robust.functional.gates import CriticalChannels, Overlap, critical_channels, overlaps
from lightning_robust.harness.activations import Point, eager, find_points, gated, rounded, visiting
from lightning_robust.harness.batches import validation_batches
from lightning_robust.harness.evaluate import quietly
from lightning_robust.structures import Key, get_args, get_item, map_tensors, take_rows, tensors_in

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""Conditions that round weights and activations instead of moving inputs."""
Pair = tuple[Any, Any]


@dataclass(frozen=True)
class Paths:
    """The channels that the predictions of clean and of perturbed samples rest on.

    Args:
        places: Which layers have such channels, as positions in :attr:`Datapath.layers`.
        clean: Of the clean samples.
        perturbed: Of the same samples perturbed.
    """

    places: list[int]
    clean: CriticalChannels
    perturbed: CriticalChannels
    overlaps: list[Overlap]

    @property
    def changed(self) -> Tensor:
        """Which predictions the perturbation changed, bool ``(N,)``."""
        return self.clean.classes != self.perturbed.classes

    @property
    def shown(self) -> int:
        """The sample to draw: the first whose prediction changed."""
        return int(self.changed.int().argmax())

    @property
    def diverging(self) -> int | None:
        """The layer from which on a perturbed sample has less in common with itself than with others of its class.

        Precisely: the overlap with its own clean path lies below that of two clean samples of the class.
        """
        return self._place(lasting(each.pair < each.within for each in self.overlaps))

    @property
    def merging(self) -> int | None:
        """The layer from which on it has more in common with clean samples of the wrong class than of its own."""
        return self._place(lasting(each.other > each.own for each in self.overlaps))

    def _place(self, found: int | None) -> int | None:
        return None if found is None or not self.changed.any() else self.places[found]


@dataclass(frozen=True)
class Datapath:
    """What one condition does to the network.

    Args:
        condition: Its name.
        samples: How many pairs were compared.
        layers: In the order in which they are computed.
        factor: As of :func:`~lightning_robust.functional.datapath.parting_point`.
        share: Of the difference that is said to be carried.
        start: Divergence of the inputs; None where they do not move.
        paths: None for tasks other than classification.
    """

    condition: str
    samples: int
    layers: list[LayerDivergence]
    factor: float
    share: float
    start: float | None = None
    paths: Paths | None = None

    @property
    def controls(self) -> list[float] | None:
        """The divergence under noise of the same norm, for each layer."""
        values = [layer.control for layer in self.layers]
        return [value for value in values if value is not None] if None not in values else None

    @property
    def parting(self) -> int | None:
        """The layer from which on clean and perturbed go apart."""
        return parting_point([layer.relative for layer in self.layers], self.controls, self.factor, self.start)

    def depth(self, place: int | None) -> float:
        """A position as a share of the network's depth; 1 for nowhere."""
        return 1.0 if place is None else place / len(self.layers)


class DatapathProbe:
    """Measures conditions on the first samples of the first validation loader.

    Clean activations of ``batch_size`` samples at all layers are held at a time, nothing else of that size.

    Args:
        trainer: Within ``fit`` or ``validate``.
        pl_module: The module; left as it was by every method.
        layers: As of :func:`~lightning_robust.harness.activations.find_points`.
        num_samples: How many samples.
        batch_size: How many at once.
        num_paths: Of so many samples critical channels are sought.
        weight: As of :func:`~lightning_robust.functional.gates.critical_channels`.
        steps: Likewise.
        factor: As of :class:`Datapath`.
        share: Likewise.
        input_key: Which part of a batch goes into ``forward``; a list for several.
        target_key: Which part holds the classes.
        seed: Of the noise.

    Raises:
        ValueError: If there are no validation batches, or as :func:`find_points`.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        *,
        layers: list[str] | None,
        num_samples: int,
        batch_size: int,
        num_paths: int,
        weight: float,
        steps: int,
        factor: float,
        share: float,
        input_key: Key | list[Key],
        target_key: Key,
        seed: int,
    ) -> None:
        self._trainer, self._module = trainer, pl_module
        self._num_paths, self._weight, self._steps, self._seed = num_paths, weight, steps, seed
        self._factor, self._share = factor, share
        self._input_key, self._target_key = input_key, target_key
        self._batches = self._gathered(num_samples, batch_size)
        first = self._batches[0]
        with self._quietly():
            self.points = find_points(pl_module, lambda: self._run(first), extract_batch_size(first), layers)

    def measure(self, condition: Condition) -> Datapath:
        """Divergence of all layers, and for classifiers the critical channels."""
        pairs = [(batch, self._perturbed(condition, batch, index)) for index, batch in enumerate(self._batches)]
        moving = condition.name not in PRECISIONS
        generator = torch.Generator().manual_seed(self._seed)
        with self._quietly():
            energies = [[torch.zeros(p.channels, dtype=torch.float64) for p in self.points] for _ in range(3)]
            for pair in pairs:
                self._compare(condition, pair, energies, generator)
        clean, moved, noise = energies
        layers = [
            LayerDivergence(p.name, c, m, n if moving else None)
            for p, c, m, n in zip(self.points, clean, moved, noise, strict=True)
        ]
        samples = sum(extract_batch_size(batch) for batch in self._batches)
        start = self._start(pairs) if moving else None
        paths = self._paths(condition, pairs)
        return Datapath(condition.name, samples, layers, self._factor, self._share, start, paths)

    def _gathered(self, count: int, batch_size: int) -> list[Any]:
        """The first samples, in parts of at most ``batch_size``."""
        if self._trainer.val_dataloaders is None:
            self._trainer.fit_loop.epoch_loop.val_loop.setup_data()
        parts: list[Any] = []
        if self._trainer.val_dataloaders is not None:
            with closing(validation_batches(self._trainer, self._module)) as batches:
                for batch in batches:
                    size = extract_batch_size(batch)
                    cuts = range(0, min(size, count), batch_size)
                    parts += [take_rows(batch, slice(at, min(at + batch_size, count)), size) for at in cuts]
                    count -= size
                    if count <= 0:
                        break
        if not parts:
            raise ValueError(
                "Expected validation batches to compare activations on, but the Trainer has none. Give it a "
                "validation loader, and leave `limit_val_batches` above 0."
            )
        return [map_tensors(torch.clone, part) for part in parts]

    def _perturbed(self, condition: Condition, batch: Any, index: int) -> Any:
        if condition.transform is None:
            return batch
        with eager():
            return map_tensors(Tensor.detach, condition.transform(batch, index, 0))

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        with quietly(self._trainer, self._module, "validating"), eager(), torch.no_grad():
            yield

    def _run(self, batch: Any) -> Any:
        # a network that draws random numbers draws the same ones every time
        torch.default_generator.manual_seed(self._seed)
        if self._module.device.type == "cuda":
            torch.cuda.manual_seed(self._seed)
        with self._trainer.precision_plugin.forward_context():
            return self._module(*get_args(batch, self._input_key))

    def _start(self, pairs: Sequence[Pair]) -> float:
        """How far the inputs of the network moved, relative to what they are."""
        energies = torch.zeros(2, dtype=torch.float64)
        for clean, perturbed in pairs:
            both = zip(*(tensors_in(get_args(each, self._input_key)) for each in (clean, perturbed)), strict=True)
            for before, after in both:
                if before.is_floating_point():
                    change = after.float() - before.float()
                    energies += torch.stack([each.float().square().sum().cpu().double() for each in (before, change)])
        return LayerDivergence("inputs", energies[:1], energies[1:]).relative

    def _compare(
        self, condition: Condition, pair: Pair, energies: list[list[Tensor]], generator: torch.Generator
    ) -> None:
        """Add up squares of the clean activations, of how far they moved, and of how far noise moves them."""
        kept: dict[int, Tensor] = {}

        def keep(index: int, tensor: Tensor) -> None:
            # later layers may change it in place
            kept[index] = tensor.detach().clone()
            energies[0][index] += channel_energy(tensor, self.points[index].dim)

        def compare(into: list[Tensor], index: int, tensor: Tensor) -> None:
            clean = kept.get(index)
            if clean is not None and clean.shape == tensor.shape:
                into[index] += channel_energy(tensor.float() - clean.float(), self.points[index].dim)

        with visiting(self._module, self.points, keep):
            self._run(pair[0])
        with self._under(condition), visiting(self._module, self.points, lambda i, t: compare(energies[1], i, t)):
            self._run(pair[1])
        if condition.name not in PRECISIONS:
            with visiting(self._module, self.points, lambda i, t: compare(energies[2], i, t)):
                self._run(_noisy(*pair, generator))

    def _under(self, condition: Condition) -> AbstractContextManager[None]:
        """The arithmetic that the condition has; hooks that are to see rounded values come inside."""
        precision = PRECISIONS.get(condition.name)
        return nullcontext() if precision is None else rounded(self._module, precision)

    def _paths(self, condition: Condition, pairs: Sequence[Pair]) -> Paths | None:
        """Critical channels of the first samples and their overlaps."""
        wanted, left = [], self._num_paths
        for pair in pairs:
            size = extract_batch_size(pair[0])
            if left > 0:
                wanted.append(tuple(take_rows(each, slice(left), size) for each in pair))
            left -= size
        if not wanted or not self._classifies(wanted[0][0]):
            return None
        places = self._gateable(wanted[0][0])
        with self._quietly():
            clean = [self._critical(Condition("clean"), batch, places) for batch, _ in wanted]
            perturbed = [self._critical(condition, batch, places) for _, batch in wanted]
        sides = CriticalChannels.joined(clean), CriticalChannels.joined(perturbed)
        return Paths(places, *sides, overlaps(*sides))

    def _classifies(self, batch: Any) -> bool:
        """Whether ``forward`` gives logits ``(N, classes)`` and the batch has classes ``(N,)``."""
        try:
            target = get_item(batch, self._target_key)
        except KeyError:
            return False
        with self._quietly():
            output = self._run(batch)
        if not (isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] > 1):
            return False
        return isinstance(target, Tensor) and not target.is_floating_point() and target.shape == output.shape[:1]

    def _gateable(self, batch: Any) -> list[int]:
        """Layers whose channels can be closed for each sample by itself; that of the logits is none."""
        outputs: dict[int, Tensor] = {}
        with self._quietly(), visiting(self._module, self.points, lambda i, t: outputs.update({i: t})):
            logits = self._run(batch)
        return [i for i, p in enumerate(self.points) if p.by_sample and i in outputs and outputs[i] is not logits]

    def _critical(self, condition: Condition, batch: Any, places: list[int]) -> CriticalChannels:
        points: list[Point] = [self.points[place] for place in places]
        size, device = extract_batch_size(batch), self._module.device

        def predict(gates: Sequence[Tensor]) -> Tensor:
            with gated(self._module, points, gates):
                return self._run(batch).float().softmax(1)

        ones = [torch.ones(size, point.channels, device=device) for point in points]
        with self._under(condition):
            return critical_channels(predict, ones, weight=self._weight, steps=self._steps)


def _noisy(clean: Any, perturbed: Any, generator: torch.Generator) -> Any:
    """The clean batch with noise in place of the perturbation, in every tensor that it moved."""
    before = tensors_in(clean)
    moved = iter(
        same_norm_noise(one, other, generator) if one.is_floating_point() and one.ndim > 1 else one
        for one, other in zip(before, tensors_in(perturbed), strict=True)
    )
    return map_tensors(lambda _: next(moved), clean)
