"""Put every ambient layer back to where training began, and keep the network like that if the metric holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_robust.callbacks.conditions import CLEAN, Condition
from lightning_robust.callbacks.deployment_parity.callback import DeploymentParityCallback
from lightning_robust.functional.batchnorm import batchnorm_layers
from lightning_robust.functional.weights import Weights
from lightning_robust.harness.batches import refresh_statistics
from lightning_robust.harness.evaluate import Evaluator, pick
from lightning_robust.harness.trainers import find_callbacks
from lightning_robust.layers import Layer
from lightning_robust.structures import Key


@dataclass
class Rewound:
    """What putting layers back did."""

    layers: list[str]
    share: float
    """What is kept of what training gained."""
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
    untrained: float,
    tolerance: float,
    bn_samples: int | None = None,
    input_key: Key | list[Key] = 0,
) -> Rewound:
    """Put layers back together, refresh BatchNorm, measure, and leave the network as trained if it is worse.

    Args:
        trainer: Within ``fit`` or ``validate``.
        pl_module: The module, as trained.
        layers: Which.
        initial: The weights to go back to.
        conditions: To report on besides clean batches.
        monitor: Metric to judge by.
        untrained: Its value at initialisation.
        tolerance: Share of what training gained that may be lost.
        bn_samples: Refresh BatchNorm from about so many training samples; all if None.
        input_key: Which part of a batch goes into ``forward`` for it.
    """
    evaluator = Evaluator(trainer, pl_module)
    before = _measured(trainer, pl_module, evaluator, conditions, monitor)
    names = dict.fromkeys(name for layer in layers for name in layer.tensors)
    with _unless_kept(pl_module, initial, list(names)) as decision:
        if batchnorm_layers(pl_module):
            refresh_statistics(trainer, pl_module, input_key=input_key, samples=bn_samples)
        after = _measured(trainer, pl_module, evaluator, conditions, monitor)
        gain = before[CLEAN.name] - untrained
        share = (after[CLEAN.name] - untrained) / gain if gain else 0.0
        decision.keep = share >= 1 - tolerance
    return Rewound([layer.name for layer in layers], share, decision.keep, before, after)


@dataclass
class _Decision:
    keep: bool = False


@contextmanager
def _unless_kept(pl_module: pl.LightningModule, initial: Mapping[str, Tensor], names: list[str]) -> Iterator[_Decision]:
    """The module holds copies of initial weights; afterwards what it held, unless they are to be kept."""
    decision = _Decision()
    own = {id(t) for layer in batchnorm_layers(pl_module) for t in layer.buffers(recurse=False)}
    everything = Weights(pl_module)
    statistics = [n for n, t in zip(everything.names, everything.tensors(), strict=True) if id(t) in own]
    weights = Weights(pl_module, {*names, *statistics})
    present = dict(zip(weights.names, weights.tensors(), strict=True))
    held = weights.put([(initial[n] if n in names else t).to(t, copy=True) for n, t in present.items()])
    try:
        yield decision
    finally:
        if not decision.keep:
            weights.restore(held)


def _measured(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    evaluator: Evaluator,
    conditions: Sequence[Condition],
    monitor: str,
) -> dict[str, float]:
    found = {CLEAN.name: evaluator.score(monitor)}
    for condition in conditions:
        try:
            found[condition.name] = pick(evaluator.metrics(condition.transform), monitor)
        except Exception as error:
            rank_zero_warn(f"LayerCriticalityCallback: nothing measured under {condition.name}: {error}")
    for callback in find_callbacks(trainer, DeploymentParityCallback):
        try:
            tags = callback.measure(trainer, pl_module, "")
        except Exception as error:
            rank_zero_warn(f"LayerCriticalityCallback: no parity was measured: {error}")
            continue
        found |= {tag: value for tag, value in tags.items() if tag.startswith("parity/") and tag.endswith("/rel_l2")}
    return found
