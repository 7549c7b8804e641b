"""Speed of PGD-10 beside the physical limit and other libraries in the same run.

    python benchmarks/attacks.py [--rounds 9] [--threads 2]

The limit is ten forward and input-gradient passes. torchattacks, foolbox and ART are measured where they are installed.
Rounds are interleaved; ratios to the limit, their median and spread over rounds. Models are in evaluation mode.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from vision import resnet18
from weights import race, table

from lightning_robust import AdversarialCallback
from lightning_robust.functional.attacks import pgd
from lightning_robust.functional.weights import channels_last

EPS, STEP, STEPS = 0.1, 0.025, 10


def small() -> nn.Module:
    """The network of the MNIST challenge."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3136, 1024),
        nn.ReLU(),
        nn.Linear(1024, 10),
    )


def implementations(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Callable[[], Any]]:
    """PGD-10 in every way there is here."""

    def loss(z: Tensor) -> Tensor:
        return cross_entropy(model(z), y, reduction="none")

    def limit() -> None:
        for _ in range(STEPS):
            z = x.detach().requires_grad_()
            torch.autograd.grad(loss(z).sum(), z)

    def ours() -> Tensor:
        return pgd(loss, x, EPS, steps=STEPS, step_size=STEP, bounds=(0, 1))

    def half() -> Tensor:
        def loss_in_bf16(z: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(z)
            return cross_entropy(logits.float(), y, reduction="none")

        with channels_last(model):
            return pgd(loss_in_bf16, x, EPS, steps=STEPS, step_size=STEP, bounds=(0, 1))

    found: dict[str, Callable[[], Any]] = {"limit": limit, "lightning_robust": ours, "lightning_robust, bf16": half}
    if importlib.util.find_spec("torchattacks"):
        import torchattacks

        attack = torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=STEPS)
        found["torchattacks"] = lambda: attack(x, y)
    if importlib.util.find_spec("foolbox"):
        import foolbox

        other = foolbox.attacks.LinfPGD(steps=STEPS, abs_stepsize=STEP)
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        found["foolbox"] = lambda: other(wrapped, x, y, epsilons=EPS)
    if importlib.util.find_spec("art"):
        from art.attacks.evasion import ProjectedGradientDescentPyTorch
        from art.estimators.classification import PyTorchClassifier

        classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0, 1))
        method = ProjectedGradientDescentPyTorch(
            classifier, eps=EPS, eps_step=STEP, max_iter=STEPS, num_random_init=1, batch_size=len(x), verbose=False
        )
        arrays = x.numpy(), y.numpy()
        found["ART"] = lambda: method.generate(*arrays)
    return found


def agreement(model: nn.Module, x: Tensor) -> None:
    """Largest difference from torchattacks' PGD without a random start, in fp64.

    In fp32 some gradients are so near zero that the mean there and the sum here differ in their sign.
    """
    if not importlib.util.find_spec("torchattacks"):
        return
    import torchattacks

    model, x, y = copy.deepcopy(model).double(), x.double(), torch.randint(10, (len(x),))
    theirs = torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=STEPS, random_start=False)(x, y)
    ours = pgd(
        lambda z: cross_entropy(model(z), y, reduction="none"),
        x,
        EPS,
        steps=STEPS,
        step_size=STEP,
        bounds=(0, 1),
        random_start=False,
    )
    apart = (ours - theirs).abs()
    print(
        f"largest difference from torchattacks: {apart.max():.2g}; beyond 1e-6 at {(apart > 1e-6).float().mean():.2%}"
    )


class Classifier(pl.LightningModule):
    """The small network in Lightning."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross entropy."""
        return cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), 0.01)


def overhead(rounds: int) -> None:
    """What the callback costs in a training step beyond the passes of its attack."""
    x, y = torch.rand(256, 1, 28, 28), torch.randint(10, (256,))
    loader = DataLoader(TensorDataset(x, y), 256)

    def fit(*callbacks: pl.Callback) -> Callable[[], None]:
        def run() -> None:
            with tempfile.TemporaryDirectory() as folder:
                pl.Trainer(
                    max_epochs=5,
                    callbacks=list(callbacks),
                    accelerator="cpu",
                    logger=False,
                    enable_checkpointing=False,
                    enable_progress_bar=False,
                    enable_model_summary=False,
                    default_root_dir=folder,
                ).fit(Classifier(), loader)

        return run

    model = small().eval()

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


def main() -> None:
    """Print both tables and the overhead."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    for name, model, x in (
        ("small CNN, 256 x 1 x 28 x 28", small(), torch.rand(256, 1, 28, 28)),
        ("ResNet-18, 32 x 3 x 32 x 32", resnet18(), torch.rand(32, 3, 32, 32)),
    ):
        agreement(model.eval(), x)
        table(f"PGD-10, {name}", race(implementations(model.eval(), x, torch.randint(10, (len(x),))), options.rounds))
    overhead(options.rounds)


if __name__ == "__main__":
    main()
