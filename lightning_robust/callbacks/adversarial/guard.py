"""The guard of single-step adversarial training: a small PGD attack now and then tells catastrophic overfitting."""

from __future__ import annotations

from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_robust.functional.weights import state_on_cpu
from lightning_robust.harness.closing import warn

OnCollapse = Literal["warn", "pgd", "shrink", "rollback"]


class OverfittingGuard:
    """Compares the loss under a strong attack with that under the training attack.

    A network that has learned to withstand a single step but not several
    (`Wong et al. 2020 <https://arxiv.org/abs/2001.03994>`_) has a loss under PGD many times that under the step; a
    sound one has nearly the same. It has collapsed where the quotient exceeds ``limit`` and the loss under PGD is more
    than half of what it was at the first probe: small losses of a sound network have quotients that mean nothing.

    Args:
        limit: Largest sound quotient of the losses.
        on_collapse: ``"warn"``; or besides, train with ``"pgd"`` from then on, ``"shrink"`` the step to half, or
            ``"rollback"`` to the weights at the last sound probe and go on with pgd.
    """

    def __init__(self, limit: float, on_collapse: OnCollapse) -> None:
        if limit <= 1:
            raise ValueError(f"Expected `guard_limit` above 1, but got {limit}.")
        self.limit, self.on_collapse = limit, on_collapse
        self.ratio = 0.0
        self._first = 0.0
        self.use_pgd = False
        self.step_scale = 1.0
        self.collapses = 0
        self._next = 0
        self._good: dict[str, Tensor] = {}

    def is_due(self, index: int, every: int) -> bool:
        """Whether to probe in this batch: the first that is attacked in each ``every`` ones.

        Args:
            index: Of the batch, over all epochs.
            every: How often; 0 never.
        """
        if every == 0 or self.use_pgd or index < self._next:  # PGD beside PGD tells nothing
            return False
        self._next = (index // every + 1) * every
        return True

    def judge(self, trainer: pl.Trainer, pl_module: pl.LightningModule, losses: list[Tensor] | None) -> None:
        """Take in the losses of a probe under the training attack and under PGD; all ranks decide alike.

        Args:
            trainer: The Trainer.
            pl_module: The module.
            losses: Both losses; None on a rank whose batch has none, which takes part in the decision all the same.
        """
        mine = torch.zeros(3, device=pl_module.device)
        if losses is not None:
            mine = torch.stack([*losses, torch.ones_like(losses[0])]).detach().float()
        total = trainer.strategy.reduce(mine, reduce_op="sum")
        if total[2] == 0:
            return
        both = total[:2] / total[2]
        if not bool(both.isfinite().all()) or both[0] <= 0:  # of losses below zero no quotient tells anything
            return
        self.ratio = (both[1] / both[0].clamp(min=1e-12)).item()
        strong = both[1].item()
        self._first = self._first or strong
        if self.ratio <= self.limit or strong <= self._first / 2:
            if self.on_collapse == "rollback":
                self._good = state_on_cpu(pl_module)
            return
        self.collapses += 1
        action = self._act(pl_module)
        if self.collapses == 1:
            warn(
                f"AdversarialCallback: catastrophic overfitting at step {trainer.global_step}: the loss under PGD is "
                f"{self.ratio:.1f} times that under the training attack (sound: below {self.limit:g}). {action}"
            )

    def _act(self, pl_module: pl.LightningModule) -> str:
        if self.on_collapse == "warn":
            return "Robustness is lost unless you change method to pgd or lower eps; set on_collapse to have it done."
        if self.on_collapse == "shrink":
            self.step_scale /= 2
            return "The step is halved from here on."
        self.use_pgd = True
        if self.on_collapse == "rollback" and self._good:
            pl_module.load_state_dict(self._good)
            return "The weights go back to the last sound probe, and training goes on with PGD."
        return "Training goes on with PGD."

    def state_dict(self) -> dict[str, Any]:
        """What it has decided, and the last sound weights."""
        return {
            "ratio": self.ratio,
            "first": self._first,
            "use_pgd": self.use_pgd,
            "step_scale": self.step_scale,
            "collapses": self.collapses,
            "next": self._next,
            "good": dict(self._good),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with it."""
        self.ratio, self._first, self.use_pgd = state["ratio"], state["first"], state["use_pgd"]
        self.step_scale, self.collapses, self._good = state["step_scale"], state["collapses"], dict(state["good"])
        self._next = state.get("next", 0)
