"""Free adversarial training: one backward pass serves the weights and the perturbation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_robust.callbacks.adversarial.methods import Attack, AttackedStep, EpochBill, require_steps
from lightning_robust.callbacks.attacked_batches import AttackInputs
from lightning_robust.functional.ascent import AttackRecord, count_useless
from lightning_robust.structures import flatten, rebuild, replace_items


@dataclass
class Free(Attack):
    r"""Free training: each batch is trained on ``steps`` times in a row, and each pass also moves its perturbation.

    `Shafahi et al. 2019 <https://arxiv.org/abs/1904.12843>`_; for the linf norm. An epoch costs what it costs without
    this, and sees one batch in ``steps``.

    Args:
        steps: Replays of each batch.

    Raises:
        ValueError: For fewer than one.
    """

    refuses: ClassVar[tuple[str, ...]] = ("ratio", "every_n_steps")

    steps: int = 7
    training: FreeTraining | None = field(default=None, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Check the arguments."""
        require_steps(self.steps)

    def begin(self, inputs: AttackInputs) -> None:
        """Start without a perturbation."""
        self.training = FreeTraining(inputs, self.steps)

    def train(self, step: AttackedStep) -> Any:
        """The module's own step on the batch that is being replayed."""
        if self.training is None:
            return step.run(step.batch)
        self.training.inputs = step.inputs  # with their keys in this batch
        with step.bill.timed():
            batch = self.training.perturbed(step.batch)
        return step.run(batch)

    def after_backward(self, radii: list[float], bill: EpochBill) -> None:
        """Move the perturbation by the same gradient: no pass is the attack's own."""
        if self.training is not None:
            with bill.timed():
                self.training.update(radii, bill.record)

    def state_dict(self) -> dict[str, Any]:
        """The perturbation, and the batch that is being replayed."""
        return {} if self.training is None else {"free": self.training.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the replays."""
        if self.training is not None and "free" in state:
            self.training.load_state_dict(state["free"])


class FreeTraining:
    r"""Trains on each batch several times in a row and moves its perturbation by the gradient of each pass.

    .. math:: \delta \leftarrow \Pi_\epsilon(\delta + \epsilon \operatorname{sign} \nabla_x L)

    `Shafahi et al. 2019 <https://arxiv.org/abs/1904.12843>`_. The perturbation is carried from batch to batch. The
    loader goes on giving batches; all but one of ``replays`` are passed over, so that an epoch costs what it costs
    without this and sees that part of the data. The state holds perturbation and batch: a run resumes exactly between
    replays.

    Args:
        inputs: What of a batch is perturbed.
        replays: How often each batch is trained on.
    """

    def __init__(self, inputs: AttackInputs, replays: int) -> None:
        self.inputs, self.replays = inputs, replays
        self.left = 0
        self._deltas: list[Tensor] = []
        self._leaves: list[Tensor] = []
        self._tensors: list[Tensor] = []

    def perturbed(self, batch: Any) -> Any:
        """The batch to train on: the held one while it is replayed, else this one, with the perturbation."""
        if self.left == 0:
            self._tensors, self.left = list(flatten(batch).values()), self.replays
        device = next(iter(flatten(batch).values())).device
        held = rebuild(batch, iter([tensor.to(device) for tensor in self._tensors]))
        parts = self.inputs.read(held)
        pixels = [self.inputs.to_pixels(part.detach()) for part in parts]
        carried = self._deltas or [torch.zeros_like(part) for part in pixels]
        self._leaves = [self._inside(_fitted(d, p), p).requires_grad_() for d, p in zip(carried, pixels, strict=True)]
        moved = [part + leaf for part, leaf in zip(pixels, self._leaves, strict=True)]
        new = [self.inputs.from_pixels(part).to(old.dtype) for part, old in zip(moved, parts, strict=True)]
        return replace_items(held, dict(zip(self.inputs.keys, new, strict=True)))

    def _inside(self, delta: Tensor, part: Tensor) -> Tensor:
        """What of a perturbation keeps pixels in range; clamping their sum would stop the gradient of all others."""
        if self.inputs.range is None:
            return delta
        low, high = self.inputs.range
        return torch.minimum(torch.maximum(delta, low - part), high - part)

    def update(self, radii: list[float], record: AttackRecord | None = None) -> None:
        """After the backward pass."""
        if not self._leaves:
            return
        for leaf in self._leaves:
            if record is not None and leaf.grad is not None:
                record.add_gradients(len(leaf), count_useless(leaf.grad))
        self._deltas = [
            (leaf.detach() + radius * torch.nan_to_num(leaf.grad).sign()).clamp(-radius, radius)
            if leaf.grad is not None
            else leaf.detach()
            for leaf, radius in zip(self._leaves, radii, strict=True)
        ]
        self._leaves = []
        self.left -= 1

    def state_dict(self) -> dict[str, Any]:
        """The perturbation, and the batch that is being replayed."""
        return {"left": self.left, "deltas": list(self._deltas), "batch": list(self._tensors) if self.left else []}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on replaying."""
        self.left, self._deltas, self._tensors = state["left"], list(state["deltas"]), list(state["batch"])


def _fitted(delta: Tensor, part: Tensor) -> Tensor:
    """The perturbation for a batch of another size: the first rows, zeros beyond them."""
    fitted = torch.zeros_like(part)
    if delta.shape[1:] == part.shape[1:]:
        count = min(len(delta), len(part))
        fitted[:count] = delta[:count].to(part)
    return fitted
