"""The perturbed samples of a parity pass, stored for the runtimes that take them later."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from lightning_robust.deployment.engines.base import BulkRunner, Runner
from lightning_robust.deployment.engines.execution import run_in_batches


class PerturbedInputs:
    """The perturbed samples of one pass, on which runtimes can be run as well, also later in a thread."""

    def __init__(self) -> None:
        self._args: dict[Any, tuple[Any, ...]] = {}
        self._trained: dict[str, Any] = {}

    def add(self, name: str, deployed: tuple[Any, ...], key: Any, trained: tuple[Any, ...]) -> None:
        """Store a perturbation's deployed inputs, and training's under a key that several perturbations may share."""
        self._args |= {key: trained, name: deployed}
        self._trained[name] = key

    def run(self, runner: Runner, late: Callable[[], bool]) -> dict[Any, list[Tensor]]:
        """Outputs on all inputs, until ``late`` says that the time is up. It draws no random number."""
        if isinstance(runner, BulkRunner):
            return {} if late() else dict(zip(self._args, runner.run_sets(list(self._args.values())), strict=True))
        outputs = {}
        for key, args in self._args.items():
            if late():
                break
            outputs[key] = run_in_batches(runner, args)
        return outputs

    def pairs(self, outputs: Mapping[Any, list[Tensor]]) -> Iterator[tuple[str, list[Tensor], list[Tensor]]]:
        """For each perturbation that was run: its name, the outputs on training's inputs and on the deployed ones."""
        for name, key in self._trained.items():
            if name in outputs and key in outputs:
                yield name, outputs[key], outputs[name]
