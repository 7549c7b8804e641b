"""Critical channels of clean and of perturbed samples: where the paths part, and where they join a wrong class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_robust.callbacks.datapath.activations import ActivationPoint, gated, visiting
from lightning_robust.callbacks.datapath.quiet_network import QuietNetwork
from lightning_robust.functional.datapath import lasting
from lightning_robust.functional.gates import CriticalChannels, Overlap, critical_channels, overlaps
from lightning_robust.harness.batches import count_samples
from lightning_robust.structures import Key

_DESCENT_STEPS = 20


@dataclass(frozen=True)
class Paths:
    """The channels that the predictions of clean and of perturbed samples rest on.

    Args:
        places: The layers that have such channels, as positions in the order of computation.
        clean: Channels of the clean samples.
        perturbed: Channels of the same samples perturbed.
        overlaps: What these have in common, for each of ``places``.
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
    def diverging(self) -> int | None:
        """The layer from which on a perturbed sample has less in common with itself than with others of its class.

        Precisely: the overlap with its own clean path lies below that of two clean samples of the class.
        """
        return self._place(lasting(each.pair < each.within for each in self.overlaps))

    @property
    def merging(self) -> int | None:
        """The layer from which on it has more in common with clean samples of the wrong class than of its own."""
        return self._place(lasting(each.other > each.own for each in self.overlaps))

    def _place(self, index: int | None) -> int | None:
        return None if index is None or not self.changed.any() else self.places[index]


def find_paths(
    network: QuietNetwork,
    points: Sequence[ActivationPoint],
    pairs: Sequence[tuple[Any, Any]],
    condition: str,
    *,
    target_key: Key | None,
    weight: float,
) -> Paths | None:
    """Critical channels of pairs of batches, clean and perturbed; None for other tasks.

    None also where no layer gives a row for each sample, as in networks on graphs.

    Args:
        network: The network.
        points: Its activations.
        pairs: The batches.
        condition: Its arithmetic is that of the perturbed batches.
        target_key: Where the classes are in a batch; None: behind the inputs of a sequence, or by a usual name.
        weight: As in :func:`~lightning_robust.functional.gates.critical_channels`.
    """
    if not pairs or not _classifies(network, pairs[0][0], target_key):
        return None
    places = _gateable(network, points, pairs[0][0])
    if not places:
        return None

    def channels(batch: Any, arithmetic: str) -> CriticalChannels:
        chosen = [points[place] for place in places]

        def predict(gates: Sequence[Tensor]) -> Tensor:
            with gated(network.module, chosen, gates):
                probabilities: Tensor = network.run(batch).float().softmax(1)
                return probabilities

        size = count_samples(batch)
        ones = [torch.ones(size, point.channels, device=network.module.device) for point in chosen]
        with network.arithmetic(arithmetic):
            return critical_channels(predict, ones, weight=weight, steps=_DESCENT_STEPS)

    with network.quiet():
        clean = CriticalChannels.joined([channels(batch, "clean") for batch, _ in pairs])
        perturbed = CriticalChannels.joined([channels(batch, condition) for _, batch in pairs])
    return Paths(places, clean, perturbed, overlaps(clean, perturbed))


def _classifies(network: QuietNetwork, batch: Any, target_key: Key | None) -> bool:
    """Whether ``forward`` gives logits ``(N, classes)`` and the batch has classes ``(N,)``."""
    try:
        target = network.targets(batch, target_key)
    except (KeyError, MisconfigurationException):
        return False
    with network.quiet():
        output = network.run(batch)
    if not (isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] > 1):
        return False
    return isinstance(target, Tensor) and not target.is_floating_point() and target.shape == output.shape[:1]


def _gateable(network: QuietNetwork, points: Sequence[ActivationPoint], batch: Any) -> list[int]:
    """Layers whose channels can be closed for each sample by itself; that of the logits is none."""
    outputs: dict[int, Tensor] = {}
    with network.quiet(), visiting(network.module, points, lambda i, t: outputs.update({i: t})):
        logits = network.run(batch)
    return [i for i, p in enumerate(points) if p.by_sample and i in outputs and outputs[i] is not logits]
