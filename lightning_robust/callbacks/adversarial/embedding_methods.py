"""Methods for inputs that are indices, as text: they perturb the output of the module that embeds the indices."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_robust.callbacks.adversarial.methods import Attack, AttackedStep, require_step_size, require_steps
from lightning_robust.callbacks.attacked_batches import AttackInputs
from lightning_robust.callbacks.module_loss import AttackPrecision, ModuleLoss, require_loss
from lightning_robust.functional.embeddings import freelb_loss, perturb_embedding
from lightning_robust.harness.arguments import parse_fraction
from lightning_robust.harness.batches import count_samples
from lightning_robust.harness.quiet import muted, quietly
from lightning_robust.structures import Key


@dataclass
class EmbeddingAttack(Attack):
    """What methods on an embedding share; there is no robust validation with them."""

    refuses: ClassVar[tuple[str, ...]] = ("mean", "std", "bounds")

    embedding: str

    def check_inputs(self, keys: list[Key], eps: float | str | list[float | str]) -> None:
        """Refuse several radii, and several inputs: what is perturbed is ``embedding``."""
        if isinstance(eps, list) and len(eps) > 1:
            raise ValueError(f"Expected one `eps` for a method on an embedding, but got {eps}.")
        if len(keys) > 1:
            raise ValueError(
                f"Expected no list of `input_key` for a method on an embedding, but got {keys}. It perturbs what "
                "`embedding` gives, in every call of it; leave `input_key` out."
            )

    def inputs_in(self, inputs: AttackInputs, module: pl.LightningModule, batch: Any) -> AttackInputs:
        """The inputs stay as they are."""
        return inputs

    def find_embedding(self, pl_module: pl.LightningModule) -> torch.nn.Module:
        """The module to perturb.

        Raises:
            MisconfigurationException: If there is none of that name.
        """
        try:
            return pl_module.get_submodule(self.embedding)
        except AttributeError as error:
            names = [name for name, part in pl_module.named_modules() if isinstance(part, torch.nn.Embedding)]
            raise MisconfigurationException(
                f"Expected a module at embedding={self.embedding!r}, but there is none. Embeddings are at {names}."
            ) from error


@dataclass
class EmbeddingPGD(EmbeddingAttack):
    """Projected gradient descent on an embedding: ``method: pgd`` with ``embedding``; nothing in it is random.

    Args:
        embedding: Path of the module to perturb, e.g. ``"encoder.embeddings"``.
        steps: Number of steps.
        step_size: In units of the embedding, as ``eps``; None is 2.5 eps / steps.
        attack_precision: ``"bf16"`` where the device computes in it, ``"32"``, or ``"same"`` as training.

    Raises:
        ValueError: For arguments out of range.
    """

    refuses: ClassVar[tuple[str, ...]] = (*EmbeddingAttack.refuses, "seed")

    steps: int = 7
    step_size: float | str | None = None
    attack_precision: AttackPrecision = "bf16"

    def __post_init__(self) -> None:
        """Check the arguments."""
        require_steps(self.steps)
        require_step_size(self.step_size)

    def train(self, step: AttackedStep) -> Any:
        """The module's own step on a perturbed embedding."""
        return _train_on_embedding(step, self, self.steps)


@dataclass
class FGM(EmbeddingAttack):
    """The fast gradient method: one step on an embedding (`Miyato et al. 2016 <https://arxiv.org/abs/1605.07725>`_).

    Args:
        embedding: Path of the module to perturb, e.g. ``"encoder.embeddings"``.
        step_size: In units of the embedding, as ``eps``; None is ``eps``.
        attack_precision: ``"bf16"`` where the device computes in it, ``"32"``, or ``"same"`` as training.

    Raises:
        ValueError: For a step size that is negative or no number.
    """

    refuses: ClassVar[tuple[str, ...]] = (*EmbeddingAttack.refuses, "seed")

    step_size: float | str | None = None
    attack_precision: AttackPrecision = "bf16"

    def __post_init__(self) -> None:
        """Check the arguments."""
        require_step_size(self.step_size)

    def train(self, step: AttackedStep) -> Any:
        """The module's own step on a perturbed embedding."""
        return _train_on_embedding(step, self, 1)


@dataclass
class FreeLB(EmbeddingAttack):
    """Free large-batch training: the mean loss over the steps of an ascent, each of which trains the weights.

    `Zhu et al. 2019 <https://arxiv.org/abs/1909.11764>`_. ``eps`` is the length of the random start.

    Args:
        embedding: Path of the module to perturb, e.g. ``"encoder.embeddings"``.
        steps: Forward and backward passes a step.
        step_size: In units of the embedding; None is 0.1.

    Raises:
        ValueError: For arguments out of range.
    """

    returns_objective: ClassVar[bool] = True

    steps: int = 7
    step_size: float | str | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        require_steps(self.steps)
        require_step_size(self.step_size)

    def train(self, step: AttackedStep) -> Any:
        """The mean of the losses; only the last pass logs, and leaves what the module gathers."""
        passes, output = itertools.count(1), None

        def loss() -> Tensor:
            nonlocal output
            with nullcontext() if next(passes) == self.steps else muted(step.module):
                output = step.run_attacked(step.batch)
                return require_loss(output)

        # each pass trains, and all but the last also move the perturbation
        with step.bill.timed((self.steps - 1) / self.steps):
            adversarial = freelb_loss(
                loss,
                self.find_embedding(step.module),
                steps=self.steps,
                step_size=0.1 if self.step_size is None else parse_fraction(self.step_size, "step_size"),
                magnitude=step.radii[0],
                generator=step.generator(),
                record=step.bill.record,
            )
        last = {**output, "loss": adversarial} if isinstance(output, dict) else adversarial
        return step.mixed(step.clean(), last)


def _train_on_embedding(step: AttackedStep, method: EmbeddingPGD | FGM, steps: int) -> Any:
    loss, size = ModuleLoss(step.module, step.run, method.attack_precision), count_samples(step.batch)
    step_size = None if method.step_size is None else parse_fraction(method.step_size, "step_size")
    with step.bill.timed(), quietly(step.trainer, step.module, "training"):
        deltas = perturb_embedding(
            lambda: loss(step.batch, size),
            method.find_embedding(step.module),
            step.radii[0],
            steps=steps,
            step_size=step_size,
            record=step.bill.record,
        )
    with deltas.applied():
        adversarial = step.run_attacked(step.batch)
    return step.mixed(step.clean(), adversarial)
