"""The weights that training began from and passed by, kept on the CPU. What is done with them stands elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
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


class Trajectory:
    """Weights at the start and at moments of a fit, a tensor being kept again only where it has changed.

    Args:
        moments: Epochs (3), ``"500 steps"``, or shares of the run (0.5); None is after 1, 2, 4, 8, ... epochs.
        dtype: Of what comes after the start; as in the module if None. The start is always kept exactly.

    Raises:
        ValueError: For a moment that is none.
    """

    def __init__(self, moments: list[float | str] | None = None, dtype: torch.dtype | None = None) -> None:
        self._moments = {str(value): parse_moment(value) for value in (_DOUBLING if moments is None else moments)}
        self._dtype = dtype
        self.labels: list[str] = []
        self.states: list[State] = []
        self._taken: list[str] = []

    def start(self, module: nn.Module) -> None:
        """Keep the start, unless a resumed run has it already."""
        if not self.states:
            self._add("start", module)

    def pass_by(self, trainer: pl.Trainer, module: nn.Module, batch_idx: int) -> None:
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

    def load_files(self, paths: list[str], module: nn.Module) -> None:
        """Take all from files: the first is the start; or a full checkpoint of a run that kept a trajectory.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If one cannot be read, or its weights are not of this module.
        """
        files = expand(paths)
        kept = read_callback(files[0], "LayerCriticalityCallback") if len(files) == 1 else None
        if kept is not None and kept["states"]:
            self.load_state_dict(kept)
        else:
            self.labels = ["start", *(path.stem for path in files[1:])]
            self.states = [read_state(path) for path in files]
        wanted = Weights(module)
        for path, state in zip([files[0]] * len(self.states) if kept else files, self.states, strict=True):
            _require(state, dict(zip(wanted.names, wanted.tensors(), strict=True)), path)

    def state_dict(self) -> dict[str, Any]:
        """All weights kept so far."""
        return {"labels": list(self.labels), "states": [dict(s) for s in self.states], "taken": list(self._taken)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from them."""
        self.labels, self._taken = list(state["labels"]), list(state["taken"])
        self.states = [dict(each) for each in state["states"]]

    def _add(self, label: str, module: nn.Module) -> None:
        weights = Weights(module)
        previous = self.states[-1] if self.states else {}
        dtype = self._dtype if self.states else None
        self.states.append(
            {
                name: _kept(tensor.detach(), previous.get(name), dtype)
                for name, tensor in zip(weights.names, weights.tensors(), strict=True)
            }
        )
        self.labels.append(label)


def _kept(tensor: Tensor, previous: Tensor | None, dtype: torch.dtype | None) -> Tensor:
    """A copy on the CPU, or what is kept already if it is the same."""
    kept = tensor.to("cpu", copy=True)
    if previous is not None and previous.dtype == kept.dtype and torch.equal(previous, kept):
        return previous
    kept = kept.to(dtype) if dtype is not None and kept.is_floating_point() else kept
    return previous if previous is not None and previous.dtype == kept.dtype and torch.equal(previous, kept) else kept


def _label(moment: Moment, trainer: pl.Trainer) -> str:
    return f"epoch {trainer.current_epoch}" if moment.unit == "epochs" else f"step {trainer.global_step}"


def _require(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    other = [name for name, tensor in wanted.items() if name not in state or state[name].shape != tensor.shape]
    if other:
        raise ValueError(
            f"Expected all weights of the module in {path}, but {other[:4]} are missing or of another shape. Give "
            "files of the same architecture."
        )
