"""The weights that training began from and passed through, kept on the CPU, or read from files of an earlier run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_robust.functional.averaging import State
from lightning_robust.functional.weights import Weights
from lightning_robust.harness.checkpoints import expand, read_callback, read_state
from lightning_robust.harness.schedule import Moment, parse_moment

_DOUBLING = [2**power for power in range(20)]
_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")


class Trajectory:
    """Weights at the start and at moments of a fit; a tensor is stored again only where it has changed.

    Args:
        checkpoints: Moments: epochs (3), ``"500 steps"``, or shares of the run (0.5); None is after 1, 2, 4, 8, ...
            epochs. Or files of an earlier run.

    Raises:
        ValueError: For text that is neither a moment nor the name of a weights file, and for moments beside files.
    """

    def __init__(self, checkpoints: Sequence[float | str] | None = None) -> None:
        chosen = _DOUBLING if checkpoints is None else checkpoints
        self.files = [each for each in chosen if isinstance(each, str) and each.endswith(_SUFFIXES)]
        """Paths and globs; empty where the weights are those of this fit."""
        if self.files and len(self.files) < len(chosen):
            raise ValueError(
                f"Expected `checkpoints` to be moments of this fit or files of an earlier one, but got {checkpoints}. "
                "Leave out one kind."
            )
        self._moments = {} if self.files else {str(value): parse_moment(value) for value in chosen}
        self.labels: list[str] = []
        self.states: list[State] = []
        self._taken: list[str] = []

    def start(self, module: nn.Module) -> None:
        """Keep the start, unless a resumed run has it already; files are read instead."""
        if self.files:
            self._read(module)
        elif not self.states:
            self._add("start", module)

    def visit(self, trainer: pl.Trainer, module: nn.Module, batch_idx: int) -> None:
        """Keep the weights before a training batch, if a moment has come."""
        reached = [
            name
            for name, moment in self._moments.items()
            if name not in self._taken and moment.is_reached(trainer, batch_idx)
        ]
        if reached:
            self._taken += reached
            label = _label(self._moments[reached[-1]], trainer)
            if label not in self.labels and trainer.global_step > 0:
                self._add(label, module)

    def state_dict(self) -> dict[str, Any]:
        """All weights so far."""
        return {"labels": list(self.labels), "states": [dict(s) for s in self.states], "taken": list(self._taken)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the weights of an interrupted run."""
        self.labels, self._taken = list(state["labels"]), list(state["taken"])
        self.states = [dict(each) for each in state["states"]]

    def _read(self, module: nn.Module) -> None:
        """The first file is the start; a lone full checkpoint of a run with the callback holds a whole trajectory."""
        paths = expand(self.files)
        saved = read_callback(paths[0], "LayerCriticalityCallback") if len(paths) == 1 else None
        if saved is not None and saved["states"]:
            self.load_state_dict(saved)
        else:
            self.labels = ["start", *(path.stem for path in paths[1:])]
            self.states = [read_state(path) for path in paths]
        weights = Weights(module)
        expected = dict(zip(weights.names, weights.tensors(), strict=True))
        for index, state in enumerate(self.states):
            _require(state, expected, paths[min(index, len(paths) - 1)])

    def _add(self, label: str, module: nn.Module) -> None:
        weights = Weights(module)
        previous = self.states[-1] if self.states else {}
        self.states.append(
            {
                name: _copy(tensor.detach(), previous.get(name))
                for name, tensor in zip(weights.names, weights.tensors(), strict=True)
            }
        )
        self.labels.append(label)


def _copy(tensor: Tensor, previous: Tensor | None) -> Tensor:
    """A copy on the CPU, or the previous one if it is equal."""
    copy = tensor.to("cpu", copy=True)
    return previous if previous is not None and torch.equal(previous, copy) else copy


def _label(moment: Moment, trainer: pl.Trainer) -> str:
    return f"epoch {trainer.current_epoch}" if moment.unit == "epochs" else f"step {trainer.global_step}"


def _require(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    other = [name for name, tensor in expected.items() if name not in state or state[name].shape != tensor.shape]
    if other:
        raise ValueError(
            f"Expected all weights of the module in {path}, but {other[:4]} are missing or of another shape. Give "
            "files of the same architecture."
        )
