"""Put every ambient layer back to where training began, and keep the network like that if the metric holds."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import lightning.pytorch as pl
from torch import Tensor

from lightning_robust.callbacks.candidates import refresh_or_keep
from lightning_robust.callbacks.conditions import CLEAN, Condition
from lightning_robust.callbacks.deployment_parity.callback import DeploymentParityCallback
from lightning_robust.functional.batchnorm import batchnorm_layers
from lightning_robust.functional.weights import Weights
from lightning_robust.harness.evaluate import Evaluator, pick
from lightning_robust.harness.ranks import Guard
from lightning_robust.harness.trainers import find_callbacks
from lightning_robust.layers import Layer
from lightning_robust.structures import Key


@dataclass
class Rewound:
    """The effect of putting layers back."""

    layers: list[str]
    share: float
    """The share of training's gain that remains."""
    kept: bool
    """Whether the module holds the result."""
    before: dict[str, float] = field(default_factory=dict)
    """Metrics as trained, by condition and parity target."""
    after: dict[str, float] = field(default_factory=dict)


def rewind(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    layers: Sequence[Layer],
    initial: Mapping[str, Tensor],
    conditions: Sequence[Condition],
    *,
    monitor: str,
    mode: Literal["max", "min"],
    untrained: float,
    tolerance: float,
    input_key: Key | list[Key] | None = None,
) -> Rewound:
    """Put layers back together, refresh BatchNorm, measure, and leave the network as trained if it is worse.

    Args:
        trainer: Within ``fit`` or ``validate``.
        pl_module: The module, as trained.
        layers: The layers to put back.
        initial: The weights to go back to.
        conditions: To report on besides clean batches.
        monitor: Metric to judge by.
        mode: Whether larger or smaller is better.
        untrained: Its value at initialisation.
        tolerance: The share of training's gain that may be lost.
        input_key: Which part of a batch goes into ``forward`` to refresh BatchNorm.
    """
    evaluator = Evaluator(trainer, pl_module)
    before = _measure(trainer, pl_module, evaluator, conditions, monitor)
    names = {name for layer in layers for name in layer.tensors}
    with _trial(pl_module, initial, names) as trial:
        if batchnorm_layers(pl_module):
            refresh_or_keep(trainer, pl_module, Guard("LayerCriticalityCallback"), input_key=input_key)
        after = _measure(trainer, pl_module, evaluator, conditions, monitor)
        gain = before[CLEAN.name] - untrained
        share = (after[CLEAN.name] - untrained) / gain if gain else 0.0
        sign = 1.0 if mode == "max" else -1.0
        # where training lost, a share of what it "gained" would allow a further loss
        trial.passed = sign * (after[CLEAN.name] - before[CLEAN.name]) >= -tolerance * max(sign * gain, 0.0)
    return Rewound([layer.name for layer in layers], share, trial.passed, before, after)


@dataclass
class _Trial:
    passed: bool = False


@contextmanager
def _trial(pl_module: pl.LightningModule, initial: Mapping[str, Tensor], names: set[str]) -> Iterator[_Trial]:
    """The module holds copies of initial weights inside the block, and keeps them if the trial has passed."""
    trial = _Trial()
    buffers = {id(b) for layer in batchnorm_layers(pl_module) for b in layer.buffers(recurse=False)}
    everything = Weights(pl_module)
    statistics = {n for n, t in zip(everything.names, everything.tensors(), strict=True) if id(t) in buffers}
    weights = Weights(pl_module, names | statistics)
    present = dict(zip(weights.names, weights.tensors(), strict=True))
    held = weights.put([(initial[n] if n in names else t).to(t, copy=True) for n, t in present.items()])
    try:
        yield trial
    finally:
        if not trial.passed:
            weights.restore(held)


def _measure(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    evaluator: Evaluator,
    conditions: Sequence[Condition],
    monitor: str,
) -> dict[str, float]:
    """The metric under each condition, and the distances of a parity pass if there is such a callback."""
    guard = Guard("LayerCriticalityCallback")
    numbers = {CLEAN.name: evaluator.score(monitor)}

    def score(condition: Condition) -> float:
        return pick(evaluator.metrics(condition.transform), monitor)

    for condition in conditions:
        value = guard.attempt(trainer, functools.partial(score, condition), f"nothing measured under {condition.name}")
        numbers |= {} if value is None else {condition.name: value}
    for callback in find_callbacks(trainer, DeploymentParityCallback):
        measure = functools.partial(callback.measure, trainer, pl_module, "")
        tags = guard.attempt(trainer, measure, "no parity was measured") or {}
        numbers |= {tag: value for tag, value in tags.items() if tag.startswith("parity/") and tag.endswith("/rel_l2")}
    return numbers
