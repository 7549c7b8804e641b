"""Methods of one gradient step, which a guard watches for catastrophic overfitting: FGSM, FGSM-RS, N-FGSM."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_robust.callbacks.adversarial.guard import OnCollapse, OverfittingGuard
from lightning_robust.callbacks.adversarial.methods import (
    AttackedStep,
    AttackRun,
    InputAttack,
    Loss,
    relative_step,
    require_step_size,
    require_steps,
)
from lightning_robust.callbacks.attacked_batches import AttackInputs
from lightning_robust.callbacks.module_loss import AttackPrecision, ModuleLoss, NoLossError
from lightning_robust.functional.ascent import AttackRecord
from lightning_robust.functional.attacks import fgsm, nfgsm, pgd
from lightning_robust.functional.norm_ball import Norm
from lightning_robust.harness.quiet import quietly
from lightning_robust.rows import take_rows

_PROBED = 64
"""Samples of a batch that the guard looks at."""


@dataclass
class SingleStep(InputAttack):
    """What methods of one step share: a guard that probes them with PGD, and PGD in their place after a collapse."""

    guard_every_n_steps: int = 50
    guard_limit: float = 3.0
    on_collapse: OnCollapse = "warn"
    steps: int | None = None
    attack_precision: AttackPrecision = "bf16"
    guard: OverfittingGuard = field(init=False, compare=False, repr=False)

    @property
    def needs_whole_weights(self) -> str:
        """To put weights back it keeps them whole."""
        return "on_collapse='rollback'" if self.on_collapse == "rollback" else ""

    def __post_init__(self) -> None:
        """Check the arguments."""
        self.guard = OverfittingGuard(self.guard_limit, self.on_collapse)
        if self.steps is None:
            return
        require_steps(self.steps)
        if self.on_collapse not in ("pgd", "rollback"):
            raise ValueError(
                f"Expected no `steps` for a method of a single step, but got {self.steps}. They belong to the PGD that "
                "takes over after a collapse with on_collapse='pgd' or 'rollback', and to method='pgd'."
            )

    def begin(self, inputs: AttackInputs) -> None:
        """Start with a fresh guard."""
        self.guard = OverfittingGuard(self.guard_limit, self.on_collapse)

    def train(self, step: AttackedStep) -> Any:
        """The module's own step on perturbed inputs, after a probe where one is due."""
        if self.guard.is_due(step.index, self.guard_every_n_steps):
            self._probe(step)
        return super().train(step)

    def metrics(self) -> dict[str, float]:
        """The quotient of the losses at the last probe."""
        return {"adversarial/guard_ratio": self.guard.ratio} if self.guard.ratio else {}

    def state_dict(self) -> dict[str, Any]:
        """The decisions of the guard, and the last sound weights."""
        return {"guard": self.guard.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with these decisions."""
        if "guard" in state:
            self.guard.load_state_dict(state["guard"])

    def _ascend(
        self, loss: Loss, pixels: Tensor, radius: Tensor, run: AttackRun, step_size: Tensor | None = None
    ) -> Tensor:
        """The PGD that takes over after a collapse."""
        settings: dict[str, Any] = {"bounds": run.bounds, "generator": run.generator, "record": run.record}
        return pgd(loss, pixels, radius, steps=self.steps or 7, step_size=step_size, norm=self._norm, **settings)

    def _probe(self, step: AttackedStep) -> None:
        """Attack a part of the batch with this method and with PGD, and let the guard compare the losses."""
        try:
            losses = self._probed_losses(step)
        except NoLossError:
            losses = None  # of this rank; others wait for it
        self.guard.judge(step.trainer, step.module, losses)

    def _probed_losses(self, step: AttackedStep) -> list[Tensor]:
        size = len(step.inputs.read(step.batch)[0])
        part = take_rows(step.batch, slice(_PROBED), size)
        loss = ModuleLoss(step.module, step.run, self.attack_precision)

        strong = functools.partial(pgd, steps=10, norm=self._norm, bounds=step.inputs.range, generator=step.generator())
        attacks = (self.attack_in(step, AttackRecord()), strong)
        batches = [step.perturbed(attack, loss, batch=part) for attack in attacks]
        with step.bill.timed(), quietly(step.trainer, step.module, "training"), torch.no_grad():
            return [loss.mean(batch, min(size, _PROBED)) for batch in batches]

    @property
    def _norm(self) -> Norm:
        return getattr(self, "norm", "linf")


@dataclass
class FGSM(SingleStep):
    r"""The fast gradient sign method (`Goodfellow et al. 2014 <https://arxiv.org/abs/1412.6572>`_).

    .. math:: x' = \Pi_\epsilon(x + \alpha \operatorname{sign} \nabla_x L(x))

    Args:
        guard_every_n_steps: How often a part of the batch is probed with PGD for catastrophic overfitting; 0 never.
        guard_limit: Largest sound quotient of the losses under PGD and under the training attack.
        on_collapse: ``"warn"``; or also continue with ``"pgd"``, ``"shrink"`` the step to half, or ``"rollback"`` to
            the weights of the last sound probe and continue with PGD.
        steps: Of the PGD that takes over after a collapse, 7 if None; only for ``"pgd"`` and ``"rollback"``.
        attack_precision: ``"bf16"`` where the device computes in it, ``"32"``, or ``"same"`` as training.
        norm: ``"linf"`` or ``"l2"``.
        step_size: :math:`\alpha` in pixels, as ``eps``; None is ``eps``. It warms up with ``eps``.

    Raises:
        ValueError: For arguments out of range.
    """

    norm: Norm = "linf"
    step_size: float | str | None = None
    random_start: ClassVar[bool] = False
    default_step: ClassVar[float] = 1.0
    """The default of ``step_size`` as a multiple of ``eps``."""

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        require_step_size(self.step_size)

    def perturb(self, loss: Loss, pixels: Tensor, radius: Tensor, run: AttackRun) -> Tensor:
        """One step; PGD after a collapse that asks for it."""
        size = relative_step(self.step_size, radius, run)
        if self.guard.use_pgd:
            return self._ascend(loss, pixels, radius, run, size)
        size = (radius * self.default_step if size is None else size) * self.guard.step_scale
        settings: dict[str, Any] = {"bounds": run.bounds, "generator": run.generator, "record": run.record}
        settings |= {"norm": self.norm, "random_start": self.random_start}
        return fgsm(loss, pixels, radius, step_size=size, **settings)


@dataclass
class FGSMRS(FGSM):
    """FGSM from a random start, with a step of 1.25 eps: the cheapest method that works.

    `Wong et al. 2020 <https://arxiv.org/abs/2001.03994>`_.

    Args:
        guard_every_n_steps: How often a part of the batch is probed with PGD for catastrophic overfitting; 0 never.
        guard_limit: Largest sound quotient of the losses under PGD and under the training attack.
        on_collapse: ``"warn"``; or also continue with ``"pgd"``, ``"shrink"`` the step to half, or ``"rollback"`` to
            the weights of the last sound probe and continue with PGD.
        steps: Of the PGD that takes over after a collapse, 7 if None; only for ``"pgd"`` and ``"rollback"``.
        attack_precision: ``"bf16"`` where the device computes in it, ``"32"``, or ``"same"`` as training.
        norm: ``"linf"`` or ``"l2"``.
        step_size: In pixels, as ``eps``; None is 1.25 eps. It warms up with ``eps``.

    Raises:
        ValueError: For arguments out of range.
    """

    random_start: ClassVar[bool] = True
    default_step: ClassVar[float] = 1.25


@dataclass
class NFGSM(SingleStep):
    """Noise FGSM: a step of eps from a point drawn from the ball of 2 eps, without a projection; for the linf norm.

    `de Jorge et al. 2022 <https://arxiv.org/abs/2202.01181>`_. Pixels stay in their range, as in the authors' code, but
    move by as much as 3 eps.

    Args:
        guard_every_n_steps: How often a part of the batch is probed with PGD for catastrophic overfitting; 0 never.
        guard_limit: Largest sound quotient of the losses under PGD and under the training attack.
        on_collapse: ``"warn"``; or also continue with ``"pgd"``, ``"shrink"`` the step to half, or ``"rollback"`` to
            the weights of the last sound probe and continue with PGD.
        steps: Of the PGD that takes over after a collapse, 7 if None; only for ``"pgd"`` and ``"rollback"``.
        attack_precision: ``"bf16"`` where the device computes in it, ``"32"``, or ``"same"`` as training.

    Raises:
        ValueError: For arguments out of range.
    """

    def perturb(self, loss: Loss, pixels: Tensor, radius: Tensor, run: AttackRun) -> Tensor:
        """One step from a noisy point; PGD after a collapse that asks for it."""
        if self.guard.use_pgd:
            return self._ascend(loss, pixels, radius, run)
        size = radius * self.guard.step_scale
        settings: dict[str, Any] = {"bounds": run.bounds, "generator": run.generator, "record": run.record}
        return nfgsm(loss, pixels, radius, step_size=size, **settings)
