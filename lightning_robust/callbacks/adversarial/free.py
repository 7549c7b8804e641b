"""Free adversarial training: one backward pass serves the weights and the perturbation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_robust.callbacks.adversarial.methods import Attack, AttackedStep, EpochBill, require_steps
from lightning_robust.callbacks.attacked_batches import AttackInputs
from lightning_robust.functional.ascent import AttackRecord, count_useless
from lightning_robust.harness.steps import loss_in
from lightning_robust.structures import parts_of_batch, rebuild, replace_items, tensors_in


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
        output = step.run(batch)
        if not isinstance(loss_in(output), Tensor):
            self.training.skip()
        return output

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
    replays, unless its batches hold more than tensors, such as texts, which a checkpoint does not: then it goes on with
    the next batch.

    Args:
        inputs: What of a batch is perturbed.
        replays: How often each batch is trained on.
    """

    def __init__(self, inputs: AttackInputs, replays: int) -> None:
        self.inputs, self.replays = inputs, replays
        self.left = 0
        self._deltas: list[Tensor] = []
        self._leaves: list[Tensor] = []
        self._held: Any = None
        self._saved: list[Tensor] = []

    def perturbed(self, batch: Any) -> Any:
        """The batch to train on: the held one while it is replayed, else this one, with the perturbation."""
        if self._saved:
            self._resume(batch)
        if self.left == 0:
            self._held, self.left = batch, self.replays
        held = self._held
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

    def skip(self) -> None:
        """Leave the rest of a batch that the module does not train on: no backward pass follows."""
        self.left, self._leaves = 0, []

    def state_dict(self) -> dict[str, Any]:
        """The perturbation, and the tensors of the batch that is being replayed."""
        batch = (self._saved or tensors_in(self._held)) if self.left else []
        return {"left": self.left, "deltas": list(self._deltas), "batch": batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on replaying."""
        self.left, self._deltas, self._saved = state["left"], list(state["deltas"]), list(state["batch"])

    def _resume(self, batch: Any) -> None:
        """Hold the saved tensors in the structure of a batch; one that holds more than tensors is not replayed on."""
        tensors, self._saved = self._saved, []
        here = tensors_in(batch)
        if len(tensors) == len(here) and _holds_tensors_alone(batch):
            self._held = rebuild(batch, iter([tensor.to(here[0].device) for tensor in tensors]))
        else:
            self.left = 0


def _holds_tensors_alone(batch: Any) -> bool:
    if batch is None or isinstance(batch, Tensor):
        return True
    parts = parts_of_batch(batch)
    return bool(parts) and all(map(_holds_tensors_alone, parts.values()))


def _fitted(delta: Tensor, part: Tensor) -> Tensor:
    """The perturbation for a batch of another size: the first rows, zeros beyond them."""
    fitted = torch.zeros_like(part)
    if delta.shape[1:] == part.shape[1:]:
        count = min(len(delta), len(part))
        fitted[:count] = delta[:count].to(part)
    return fitted
