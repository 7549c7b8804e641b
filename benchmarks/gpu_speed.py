"""What attacks and averages cost on a device beside a plain training step, as a part of ``gpu_day.py``.

Times are wall-clock, taken when the device has done all it was given; steps are those of a Trainer, after the first
few. Everything is timed in interleaved rounds, and a ratio is the median over rounds.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from attacks import Classifier
from guests import limit
from racing import Contestants, race
from rows import quiet_trainer
from text import Reader, sentences
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from vision import large_resnet18, resnet18, small_cnn, vit_s
from weights import exchanges, updates

from lightning_robust import AdversarialCallback, SWACallback
from lightning_robust.functional.averaging import RunningAverage
from lightning_robust.functional.soups import uniform_soup

Numbers = dict[str, Any]
Net = tuple[Callable[[], nn.Module], tuple[int, ...]]
EPS = 8 / 255
ATTACKS: dict[str, dict[str, Any]] = {
    "FGSM": {"method": "fgsm", "attack_precision": "32", "guard_every_n_steps": 0},
    "FGSM, attacked in bf16": {"method": "fgsm", "guard_every_n_steps": 0},
    "PGD-10": {"method": "pgd", "steps": 10, "attack_precision": "32"},
    "PGD-10, attacked in bf16": {"method": "pgd", "steps": 10},
}
TEXT: dict[str, dict[str, Any]] = {
    "FGM": {"method": "fgm", "embedding": "embedding"},
    "PGD-3 on the embedding": {"method": "pgd", "steps": 3, "embedding": "embedding"},
    "FreeLB-3": {"method": "freelb", "steps": 3, "embedding": "embedding"},
}
AVERAGES: dict[str, dict[str, Any]] = {
    "EMA, updated every step": {"kind": "ema", "half_life": 693},
    "SWA, updated every step": {"kind": "uniform"},
}


@dataclass(frozen=True)
class Scale:
    """How much is timed.

    Args:
        rounds: Of every race.
        steps: Timed training steps of a round, and calls of what is no step.
        warm: Steps before them.
        batch: Small pictures in a batch; of large ones an eighth as many.
    """

    rounds: int = 5
    steps: int = 20
    warm: int = 5
    batch: int = 256


QUICK = Scale(rounds=1, steps=1, warm=0, batch=8)


class Clock(pl.Callback):
    """Milliseconds of a step, from the end of the warm-up to the last step."""

    def __init__(self, scale: Scale) -> None:
        self.scale, self.began, self.milliseconds = scale, 0.0, 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        """Start after the warm-up."""
        if index == self.scale.warm:
            self.began = now(pl_module.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Stop after the last."""
        if index == self.scale.warm + self.scale.steps - 1:
            self.milliseconds = 1e3 * (now(pl_module.device) - self.began) / self.scale.steps


def now(device: torch.device) -> float:
    """The time in seconds once the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def fitted(
    build: Callable[[], pl.LightningModule], batch: tuple[Tensor, Tensor], scale: Scale, *callbacks: pl.Callback
) -> Callable[[], float]:
    """A training whose steps are timed, on batches that are on the device already."""
    device = batch[0].device

    def run() -> float:
        clock = Clock(scale)
        # the clock comes last, so that its steps end after those of the others
        trainer = quiet_trainer([*callbacks, clock], "gpu" if device.type == "cuda" else "cpu", devices=1, max_epochs=1)
        trainer.fit(build(), DataLoader([batch] * (scale.warm + scale.steps), batch_size=None))
        return clock.milliseconds

    return run


def timed(run: Callable[[], object], device: torch.device, scale: Scale) -> Callable[[], float]:
    """Milliseconds of a call, the mean of several."""

    def several() -> float:
        began = now(device)
        for _ in range(scale.steps):
            run()
        return 1e3 * (now(device) - began) / scale.steps

    return several


def raced(contestants: Contestants, scale: Scale) -> Numbers:
    """Milliseconds and ratios to the first, by name."""
    times = race(contestants, scale.rounds)
    first = next(iter(times.values()))
    ratios = {
        name: statistics.median(t / base for t, base in zip(values, first, strict=True))
        for name, values in times.items()
    }
    return {"status": "ok", "ms": {name: min(values) for name, values in times.items()}, "ratio": ratios}


def steps(build: Callable[[], nn.Module], shape: tuple[int, ...], device: str, scale: Scale) -> Numbers:
    """Training steps with attacks and averages beside a plain one, and the ten input gradients that PGD-10 needs."""
    x, y = torch.rand(shape, device=device), torch.randint(10, shape[:1], device=device)

    def contestant(*callbacks: pl.Callback) -> Callable[[], float]:
        return fitted(lambda: Classifier(build()), (x, y), scale, *callbacks)

    attacked = {name: AdversarialCallback(eps=EPS, val_eps=[], **how) for name, how in ATTACKS.items()}
    averaged = {name: SWACallback(start=0, every=1, bn_refresh=False, **how) for name, how in AVERAGES.items()}
    contestants: Contestants = {"plain step": contestant()}
    contestants |= {name: contestant(callback) for name, callback in (attacked | averaged).items()}
    bare = limit(build().to(device).eval(), x, y)
    contestants["ten input gradients and nothing else"] = timed(bare, x.device, scale)
    return raced(contestants, scale)


def text_steps(device: str, scale: Scale) -> Numbers:
    """Training steps with attacks on an embedding beside a plain one."""
    tokens, classes = (tensor.to(device) for tensor in sentences(scale.batch, 0))
    contestants: Contestants = {"plain step": fitted(Reader, (tokens, classes), scale)}
    for name, how in TEXT.items():
        callback = AdversarialCallback(eps=0.5, **how)
        contestants[name] = fitted(Reader, (tokens, classes), scale, callback)
    return raced(contestants, scale)


def averages(build: Callable[[], nn.Module], shape: tuple[int, ...], device: str, scale: Scale) -> Numbers:
    """Updates and exchanges of weights, and a soup of five, beside a plain step without a Trainer."""
    module = build().to(device)
    parameters = list(module.parameters())
    x, y = torch.rand(shape, device=device), torch.randint(10, shape[:1], device=device)
    optimizer = torch.optim.SGD(parameters, 1e-4)
    states = [{name: torch.randn_like(p) for name, p in module.named_parameters()} for _ in range(5)]
    uniform = RunningAverage("uniform")

    def step() -> None:
        with torch.enable_grad():
            optimizer.zero_grad()
            cross_entropy(module(x), y).backward()
        optimizer.step()

    ways: dict[str, Callable[[], object]] = {
        "plain step": step,
        **{f"EMA, {name}": run for name, run in updates(module).items()},
        "SWA, lightning_robust": lambda: uniform.update(parameters),
        **{f"exchange, {name}": run for name, run in exchanges(module).items()},
        "soup of five, lightning_robust": lambda: uniform_soup(states),
        "soup of five, stacked and averaged": lambda: {
            name: torch.stack([s[name] for s in states]).mean(0) for name in states[0]
        },
    }
    with torch.no_grad():
        return raced({name: timed(run, x.device, scale) for name, run in ways.items()}, scale)


def linear() -> nn.Module:
    """The smallest network there is, which says nothing about speed: for tests of this file."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def races(device: str, scale: Scale) -> dict[str, Callable[[], Numbers]]:
    """What is timed, by name."""
    small, large = (scale.batch, 1, 28, 28), (max(scale.batch // 8, 2), 3, 224, 224)
    trained: dict[str, Net] = {"small CNN": (small_cnn, small), "ResNet-18": (resnet18, (scale.batch, 3, 32, 32))}
    averaged: dict[str, Net] = {"ResNet-18": (large_resnet18, large), "ViT-S": (vit_s, large)}
    if scale is QUICK:
        trained, averaged = ({"linear": (linear, small)},) * 2
    found: dict[str, Callable[[], Numbers]] = {
        f"training, {name}, {_by(shape)}": functools.partial(steps, build, shape, device, scale)
        for name, (build, shape) in trained.items()
    }
    name = f"training, two transformer layers, {scale.batch} sentences"
    found[name] = functools.partial(text_steps, device, scale)
    for name, (build, shape) in averaged.items():
        found[f"averages, {name}, {_by(shape)}"] = functools.partial(averages, build, shape, device, scale)
    return found


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
