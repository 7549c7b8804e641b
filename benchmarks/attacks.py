"""PGD-10 beside the physical limit and other libraries, and what the callback adds, as parts of ``speed.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from guests import EPS, STEP, STEPS, Guest, limit
from racing import Contestants, race, table
from rows import quiet_trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from vision import TASKS, small_cnn

from lightning_robust import AdversarialCallback
from lightning_robust.callbacks.attack_precision import computes_in_bf16
from lightning_robust.functional.attacks import pgd
from lightning_robust.functional.weights import channels_last


def attacks(task: str, rounds: int, guests: dict[str, Guest]) -> None:
    """PGD-10 in every way; the limit is ten forward and input-gradient passes."""
    model, x, y = TASKS[task]()
    times = race({**ways(model, x, y), **guests}, rounds)
    table(f"PGD-10, {task}", times, {name: guest.limits for name, guest in guests.items()})


def ways(model: nn.Module, x: Tensor, y: Tensor) -> Contestants:
    """The limit and ours, in bf16 too where the processor computes in it."""

    def loss(z: Tensor) -> Tensor:
        return cross_entropy(model(z), y, reduction="none")

    def ours() -> Tensor:
        return pgd(loss, x, EPS, steps=STEPS, step_size=STEP, bounds=(0, 1))

    def half() -> Tensor:
        def loss_in_bf16(z: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(z)
            return cross_entropy(logits.float(), y, reduction="none")

        with channels_last(model):
            return pgd(loss_in_bf16, x, EPS, steps=STEPS, step_size=STEP, bounds=(0, 1))

    in_bf16 = {"lightning_robust, bf16": half} if computes_in_bf16(x.device) else {}  # others emulate it
    return {"limit: ten input gradients": limit(model, x, y), "lightning_robust": ours, **in_bf16}


class Classifier(pl.LightningModule):
    """A network in Lightning."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross entropy."""
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), 0.01)


def overhead(rounds: int) -> None:
    """What the callback costs in a training step beyond the passes of its attack."""
    x, y = torch.rand(256, 1, 28, 28), torch.randint(10, (256,))
    loader = DataLoader(TensorDataset(x, y), 256)

    def fit(*callbacks: pl.Callback) -> Callable[[], None]:
        def run() -> None:
            quiet_trainer(list(callbacks), max_epochs=5).fit(Classifier(small_cnn()), loader)

        return run

    model = small_cnn().eval()

    def passes() -> None:
        for _ in range(5):
            z = x.detach().requires_grad_()
            torch.autograd.grad(cross_entropy(model(z), y, reduction="sum"), z)

    settings: dict[str, Any] = {"eps": EPS, "val_eps": [], "attack_precision": "32", "guard_every_n_steps": 0}
    times = race({"plain": fit(), "fgsm": fit(AdversarialCallback("fgsm", **settings)), "passes": passes}, rounds)
    extra = sorted((a - p - g) / a for a, p, g in zip(times["fgsm"], times["plain"], times["passes"], strict=True))
    middle = extra[len(extra) // 2]
    print(
        f"\noverhead of the callback in an FGSM step beyond its pass: {middle:.1%} ({extra[0]:.1%} to {extra[-1]:.1%})"
    )
