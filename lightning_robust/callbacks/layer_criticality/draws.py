"""Fresh draws of layers from their initial distribution. What is measured with them stands elsewhere."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import nn

from lightning_robust.functional.averaging import State
from lightning_robust.functional.criticality import permuted, reset
from lightning_robust.harness.batches import isolated_rng
from lightning_robust.layers import Layer

Randomise = Literal["permute", "reset_parameters"]


class Draws:
    """Fresh draws of layers from their initial distribution, the same ones on every rank and in every call.

    Args:
        module: The network.
        layers: Its layers.
        initial: Its weights at the start.
        randomise: ``"permute"`` shuffles the elements of each initial tensor; ``"reset_parameters"`` asks the modules.
        factory: Makes the network anew; takes the place of both.
        count: How many.
        seed: Of the first.
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Sequence[Layer],
        initial: State,
        randomise: Randomise,
        factory: Callable[[], nn.Module] | None,
        count: int,
        seed: int,
    ) -> None:
        self._module, self._layers, self._initial, self._randomise = module, layers, initial, randomise
        self._count, self._seed = count, seed
        self._made = [] if factory is None else [self._make(factory, index) for index in range(count)]

    def of(self, layer: Layer) -> list[State]:
        """Draws of one layer."""
        return [self._draw(layer, index) for index in range(self._count)]

    def of_all(self) -> list[State]:
        """Draws of the whole network; what belongs to no layer is as at the start."""
        merged = []
        for index in range(self._count):
            state = dict(self._initial)
            for layer in self._layers:
                state |= self._draw(layer, index)
            merged.append(state)
        return merged

    def _draw(self, layer: Layer, index: int) -> State:
        if self._made:
            return {name: self._made[index][name] for name in layer.tensors}
        with isolated_rng():
            if self._randomise == "reset_parameters":
                torch.manual_seed(self._seed_of(layer.name, index))
                return reset(self._module, layer)
            drawn: State = {}
            for name in layer.tensors:
                generator = torch.Generator().manual_seed(self._seed_of(name, index))
                drawn |= permuted({name: self._initial[name]}, generator)
            return drawn

    def _seed_of(self, name: str, index: int) -> int:
        # torch's generator on the CPU takes 32 bits
        return zlib.crc32(f"{self._seed + index} {name}".encode())

    def _make(self, factory: Callable[[], nn.Module], index: int) -> State:
        with isolated_rng():
            torch.manual_seed(self._seed + index)
            made = factory().state_dict()
        missing = [name for name, value in self._initial.items() if name not in made or made[name].shape != value.shape]
        if missing:
            raise ValueError(
                f"Expected `model_factory` to make the network that is trained, but {missing[:4]} are missing in what "
                "it made or of another shape."
            )
        return {name: tensor.detach().cpu() for name, tensor in made.items()}
