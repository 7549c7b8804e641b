"""The target model of UAT-FT: weights that say which class an unlabelled picture has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_robust.functional.averaging import RunningAverage, require_same
from lightning_robust.functional.batchnorm import evaluating
from lightning_robust.functional.weights import Weights
from lightning_robust.harness.checkpoints import read_state
from lightning_robust.harness.schedule import Period


class TargetModel:
    """Weights of the module from a file, from an epoch of this run, or their running average.

    Args:
        module: The module, whose architecture the target model has.
        kind: ``"first"``, ``"ema"``, or the path of a checkpoint.
        half_life: Half-life of the average.
        classify: Gives the classes of pictures under the weights that the module holds.
    """

    def __init__(
        self, module: pl.LightningModule, kind: str, half_life: Period, classify: Callable[[Tensor], Tensor]
    ) -> None:
        self._module, self._kind, self._half_life, self._classify = module, kind, half_life, classify
        self.reset()

    def reset(self) -> None:
        """Forget all weights and answers."""
        self.weights: list[Tensor] | None = None
        self.average: RunningAverage | None = None
        self._saved_average: dict[str, Any] | None = None
        self._answers = torch.empty(0, dtype=torch.long)
        """By the number of a picture: its classes, or -1 where it was not asked for."""
        self._step = 0

    def start(self, trainer: pl.Trainer) -> None:
        """Begin the average, or read the file.

        Raises:
            MisconfigurationException: If there is no such file.
            ValueError: If it holds weights of another shape.
        """
        if self._kind == "ema":
            self._step = trainer.global_step
            self.average = RunningAverage("ema", half_life=self._half_life.steps(trainer))
            if self._saved_average is not None:
                self.average.load_state_dict(self._saved_average)
        elif self._kind != "first" and self.weights is None:
            self.weights = self.read(self._kind)

    def fix(self) -> None:
        """Take the present weights for good, unless there are some."""
        if self.weights is None:
            self.weights = [tensor.detach().clone() for tensor in Weights(self._module).tensors()]

    def update(self, step: int) -> None:
        """Take the present weights into the average, if there is one and the optimizer has stepped.

        Args:
            step: How many optimizer steps there have been.
        """
        if self.average is not None and step > self._step:
            self.average.update(Weights(self._module).tensors(), step - self._step)
            self._step = step

    def classes(self, pictures: Tensor, indices: Tensor | None) -> Tensor | None:
        """The classes of pictures; None as long as there is no target model.

        Args:
            pictures: The pictures.
            indices: Their positions in the data set, under which answers are kept; None keeps none.
        """
        weights = self.weights
        if self.average is not None and self.average.count > 0:
            weights = self.average.values()
        if weights is None:
            return None
        if indices is None:
            return self._answer(weights, pictures)
        numbers = indices.cpu()
        missing = ~self._are_answered(numbers)
        if bool(missing.any()):
            self._keep(numbers[missing], self._answer(weights, pictures[missing.to(pictures.device)]).cpu())
        return self._answers[numbers].to(pictures.device)

    def state_dict(self) -> dict[str, Any]:
        """Weights, average and answers."""
        average = None if self.average is None else self.average.state_dict()
        return {"target": self.weights, "average": average, "answers": self._answers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with them."""
        self.weights, self._saved_average = state["target"], state["average"]
        answers = state["answers"]
        if isinstance(answers, Tensor):
            self._answers = answers
        elif answers:
            # files of earlier versions hold a tensor for each picture
            self._keep(torch.tensor(list(answers)), torch.stack(list(answers.values())))

    def read(self, path: str) -> list[Tensor]:
        """The weights in a file, in the order in which they are exchanged."""
        if not Path(path).exists():
            raise MisconfigurationException(
                f"Expected uat_target to be 'first', 'ema' or the path of a checkpoint, but there is no {path!r}."
            )
        state, present = read_state(path), self._module.state_dict()
        # the head of another mixin, which takes no part in the answers
        state |= {n: t for n, t in present.items() if n not in state and n.startswith("rotation_head")}
        try:
            require_same(present, state)
        except ValueError as error:
            raise ValueError(f"Expected {path} as the target model to be of this module's shape. {error}") from error
        return [state[name].clone() for name in Weights(self._module).names]

    def _are_answered(self, numbers: Tensor) -> Tensor:
        """Which pictures the target model was asked for before."""
        known = torch.zeros(len(numbers), dtype=torch.bool)
        if len(self._answers):
            inside = numbers < len(self._answers)
            known[inside] = self._answers.reshape(len(self._answers), -1)[numbers[inside], 0] >= 0
        return known

    def _keep(self, numbers: Tensor, classes: Tensor) -> None:
        """Keep the answers to some pictures."""
        size = int(numbers.max()) + 1
        if size > len(self._answers):
            grown = classes.new_full((size, *classes.shape[1:]), -1)
            if len(self._answers):
                grown[: len(self._answers)] = self._answers
            self._answers = grown
        self._answers[numbers] = classes

    def _answer(self, target: list[Tensor], pictures: Tensor) -> Tensor:
        module: nn.Module = self._module
        weights = Weights(module)
        target = [tensor.to(live) for tensor, live in zip(target, weights.tensors(), strict=True)]
        with torch.no_grad(), weights.exchanged(target), evaluating(module):
            return self._classify(pictures)
