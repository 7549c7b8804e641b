"""One attacked training step, what every method of adversarial training makes of it, and PGD."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_robust.callbacks.attacked_batches import AttackInputs, BatchPixels, Perturb, attack_batch
from lightning_robust.callbacks.module_loss import AttackPrecision, BatchLoss, ModuleLoss
from lightning_robust.functional.ascent import AttackRecord
from lightning_robust.functional.attacks import pgd
from lightning_robust.functional.norm_ball import Bounds, Norm
from lightning_robust.harness.arguments import parse_fraction
from lightning_robust.harness.compat import batches_before
from lightning_robust.harness.inputs import refuse_several_in_l2
from lightning_robust.harness.quiet import muted
from lightning_robust.harness.steps import call_step, loss_in
from lightning_robust.structures import Key

Loss = Callable[..., Tensor]
_LARGE = 1_000_003


@dataclass
class EpochBill:
    """What attacks cost in an epoch, and what they found odd; all methods pay into it."""

    record: AttackRecord = field(default_factory=AttackRecord)
    """Passes and gradients of the attacks that training sees; probes of a guard cost time alone."""
    steps: int = 0
    """Attacked training steps."""
    seconds: float = 0.0
    """Spent on attacks."""
    start: float = field(default_factory=time.perf_counter)

    @property
    def time_share(self) -> float:
        """Share of the epoch so far."""
        return self.seconds / max(time.perf_counter() - self.start, 1e-9)

    @contextmanager
    def timed(self, share: float = 1.0) -> Iterator[None]:
        """The time of the block, or a share of it, is spent on attacks."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += share * (time.perf_counter() - start)


@dataclass
class AttackedStep:
    """One training step of a module on one batch.

    Args:
        trainer: The Trainer.
        module: The module.
        original: The module's own training step.
        batch: The clean batch.
        batch_idx: Index of the batch in its epoch.
        inputs: What of the batch is perturbed.
        radii: Radius of each input in this step.
        eps: Radius of the first input after the warm-up.
        ratio: Share of the adversarial loss.
        seed: Of the random starts.
        bill: Counts what the attack costs.
    """

    trainer: pl.Trainer
    module: pl.LightningModule
    original: Callable[..., Any]
    batch: Any
    batch_idx: int
    inputs: AttackInputs
    radii: list[float]
    eps: float
    ratio: float
    seed: int
    bill: EpochBill

    @property
    def index(self) -> int:
        """Training batches before this one, over all epochs."""
        return batches_before(self.trainer)

    def run(self, batch: Any) -> Any:
        """The module's own training step on a batch."""
        return call_step(self.original, batch, self.batch_idx)

    def run_attacked(self, batch: Any) -> Any:
        """The module's own training step on a perturbed batch; beside the clean one, its records are put back."""
        with nullcontext() if self.ratio == 1 else muted(self.module):
            return self.run(batch)

    def generator(self) -> torch.Generator:
        """Random numbers that depend on the seed, the step and the rank alone."""
        seed = self.seed + _LARGE * (batches_before(self.trainer) + 1) + self.trainer.global_rank
        return torch.Generator(self.module.device).manual_seed(seed)

    def perturbed(self, perturb: Perturb, loss: ModuleLoss, raised: BatchLoss | None = None, batch: Any = None) -> Any:
        """This batch, or another, with perturbed inputs; see :func:`~..attacked_batches.attack_batch`."""
        # the check of the pixels waits for all work that the device has: it is not the attack's
        view = BatchPixels(self.inputs, self.batch if batch is None else batch, self.radii)
        with self.bill.timed():
            return attack_batch(self.trainer, view, perturb, loss, raised=raised)

    def clean(self) -> Any:
        """The output on the clean batch; None where ``ratio`` gives it no weight."""
        return None if self.ratio == 1 else self.run(self.batch)

    def mixed(self, clean: Any, adversarial: Any) -> Any:
        """The output with the weighted sum of both losses; a step that returns None skips the batch."""
        if self.ratio == 1:
            return adversarial
        if clean is None or adversarial is None:
            return clean
        loss = (1 - self.ratio) * loss_in(clean) + self.ratio * loss_in(adversarial)
        return {**clean, "loss": loss} if isinstance(clean, dict) else loss


class Attack:
    """A method of adversarial training: how one step is trained, and the arguments of that.

    Arguments are attributes of the same names, and two methods are equal if their arguments are. What a method carries
    from step to step is its state.
    """

    refuses: ClassVar[tuple[str, ...]] = ()
    """Arguments of AdversarialCallback that have no meaning with this method."""
    returns_objective: ClassVar[bool] = False
    """Whether training asks for what the method returns, or for its order of passes."""

    @property
    def needs_whole_weights(self) -> str:
        """The argument that cannot work where each rank holds a part of the weights; none if that is empty."""
        return ""

    def train(self, step: AttackedStep) -> Any:
        """The output of the training step; its loss trains the weights."""
        raise NotImplementedError

    def check_inputs(self, keys: list[Key], eps: float | str | list[float | str]) -> None:
        """Refuse inputs that the method cannot perturb, or radii that it would not use."""
        refuse_several_in_l2(getattr(self, "norm", None), keys)

    def inputs_in(self, inputs: AttackInputs, module: pl.LightningModule, batch: Any) -> AttackInputs:
        """The inputs that are perturbed, with their keys in this batch."""
        return inputs.in_batch(module, batch)

    def check_module(self, module: pl.LightningModule) -> None:
        """Refuse a module that the method cannot train.

        Raises:
            MisconfigurationException: For manual optimisation, where what the method returns has to be optimised.
        """
        if self.returns_objective and not module.automatic_optimization:
            raise MisconfigurationException(
                f"Expected automatic optimisation with {type(self).__name__}, whose own loss or order of passes has to "
                "be optimised, but got manual optimisation, in which the step decides that. Take method='pgd'."
            )

    def begin(self, inputs: AttackInputs) -> None:
        """Start a fit without the state of an earlier one."""

    def end(self) -> None:
        """Leave the module as it was, also in the middle of a step that failed."""

    def after_backward(self, radii: list[float], bill: EpochBill) -> None:
        """Use the gradients of the step."""

    def metrics(self) -> dict[str, float]:
        """What the method logs at the end of an epoch."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What the method carries from step to step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint; entries of other methods are skipped."""


@dataclass(frozen=True)
class AttackRun:
    """Where one attack draws from, what limits it, and what counts it."""

    eps: float
    """The radius after the warm-up, which ``step_size`` is relative to."""
    bounds: Bounds | None
    generator: torch.Generator
    record: AttackRecord


class InputAttack(Attack):
    """A method that trains on perturbed inputs."""

    attack_precision: AttackPrecision = "same"

    def perturb(self, loss: Loss, pixels: Tensor, radius: Tensor, run: AttackRun) -> Tensor:
        """Perturbed pixels ``(batch, ...)``; ``loss(pixels)`` is a scalar or one value for each sample."""
        raise NotImplementedError

    def attack_in(self, step: AttackedStep, record: AttackRecord | None = None) -> Perturb:
        """The attack of one training step, counted by the epoch's record or another."""
        run = AttackRun(step.eps, step.inputs.range, step.generator(), record or step.bill.record)
        return functools.partial(self.perturb, run=run)

    def train(self, step: AttackedStep) -> Any:
        """The module's own step on perturbed inputs."""
        batch = step.perturbed(self.attack_in(step), ModuleLoss(step.module, step.run, self.attack_precision))
        return step.mixed(step.clean(), step.run_attacked(batch))


@dataclass
class ProjectedAscent(InputAttack):
    """What PGD, TRADES and MART share: several projected steps from a random start."""

    steps: int = 7
    step_size: float | str | None = None
    norm: Norm = "linf"

    def __post_init__(self) -> None:
        """Check the arguments."""
        require_steps(self.steps)
        require_step_size(self.step_size)

    def perturb(self, loss: Loss, pixels: Tensor, radius: Tensor, run: AttackRun) -> Tensor:
        """Perturbed pixels."""
        size = relative_step(self.step_size, radius, run)
        settings: dict[str, Any] = {"bounds": run.bounds, "generator": run.generator, "record": run.record}
        return pgd(loss, pixels, radius, steps=self.steps, step_size=size, norm=self.norm, **settings)


@dataclass
class PGD(ProjectedAscent):
    """Projected gradient descent (`Madry et al. 2017 <https://arxiv.org/abs/1706.06083>`_).

    Args:
        steps: Number of steps.
        step_size: In pixels, as ``eps``; None is 2.5 eps / steps. It warms up with ``eps``.
        norm: ``"linf"`` or ``"l2"``.
        attack_precision: ``"bf16"`` where the device computes in it, ``"32"``, or ``"same"`` as training.

    Raises:
        ValueError: For arguments out of range.

    Example:
        >>> PGD(steps=3)
        PGD(steps=3, step_size=None, norm='linf', attack_precision='bf16')
    """

    attack_precision: AttackPrecision = "bf16"


def relative_step(step_size: float | str | None, radius: Tensor, run: AttackRun) -> Tensor | None:
    """The step size for this radius, in proportion to ``eps``; None is the default of the attack."""
    if step_size is None:
        return None
    return radius * (parse_fraction(step_size, "step_size") / max(run.eps, 1e-30))


def require_steps(steps: int) -> None:
    """Refuse fewer than one step."""
    if steps < 1:
        raise ValueError(f"Expected `steps` of at least 1, but got {steps}.")


def require_step_size(step_size: float | str | None) -> None:
    """Refuse what is neither None, a number from 0 nor a quotient."""
    if step_size is not None:
        parse_fraction(step_size, "step_size")
