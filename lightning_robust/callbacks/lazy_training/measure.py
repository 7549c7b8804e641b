"""How lazy a network is and how vulnerable, on one fixed batch: numbers by tag."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_robust.callbacks.attacked_batches import AttackInputs
from lightning_robust.callbacks.conditions import Condition, attacked
from lightning_robust.callbacks.diagnostics import finite
from lightning_robust.callbacks.module_loss import ModuleLoss, own_step
from lightning_robust.functional.activation_signs import Signs, activation_signs, changed_signs
from lightning_robust.functional.averaging import State
from lightning_robust.functional.linearization import (
    alignment,
    changed_predictions,
    linearization_gap,
    neuron_movement,
    relative_movement,
    single_step,
    tangent_kernel,
)
from lightning_robust.functional.weights import call_with
from lightning_robust.harness.batches import count_samples
from lightning_robust.harness.compat import without_compiled_prefix
from lightning_robust.harness.inputs import call_forward, forward_arguments, targets_of
from lightning_robust.harness.quiet import quietly
from lightning_robust.harness.ranks import describe_error
from lightning_robust.harness.steps import call_step
from lightning_robust.layers import find_layers
from lightning_robust.number_types import has_mean
from lightning_robust.rows import take_rows
from lightning_robust.structures import Key, get_args, map_tensors, replace_items, tensors_in

Numbers = dict[str, float]


@dataclass(frozen=True)
class LazinessSettings:
    """Arguments of :class:`~lightning_robust.callbacks.lazy_training.callback.LazyTrainingCallback`."""

    betas: tuple[float, ...]
    eps: float
    kernel_samples: int
    target_key: Key | None
    seed: int
    pixels: AttackInputs
    """What FGSM perturbs, in pixels."""
    network: AttackInputs
    """The same as the network takes it."""


@dataclass
class Laziness:
    """Numbers by tag without its prefix; those that are not finite are left out."""

    numbers: Numbers = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    """What could not be measured, and why."""

    def gather(self, subject: str, measure: Callable[[], Mapping[str, float]]) -> None:
        """Add numbers, or the reason why there are none."""
        try:
            self.numbers |= finite(measure())
        except Exception as error:
            self.failures[subject] = describe_error(error)


def weights_of(module: nn.Module) -> State:
    """The parameters, tied ones once, detached; none of integers."""
    return {name: tensor.detach() for name, tensor in module.named_parameters() if has_mean(tensor)}


def measure_laziness(
    trainer: pl.Trainer, pl_module: pl.LightningModule, start: State, batch: Any, settings: LazinessSettings
) -> Laziness:
    """Everything about the weights that the module holds now, without leaving a trace.

    Args:
        trainer: The Trainer.
        pl_module: The module.
        start: Weights at the start, on any device.
        batch: The probe after transfer, on any device; None measures only what needs no inputs.
        settings: What to measure.
    """
    result = Laziness()
    with quietly(trainer, pl_module, "validating"), torch.compiler.set_stance("force_eager"):
        network = _Network(pl_module, start, settings.pixels.given)
        result.gather("movement of the weights", network.movement)
        if batch is None:
            result.failures["outputs and attacks"] = (
                "No batch was seen. Give the Trainer a validation loader with at least one batch."
            )
            return result
        # copies, since tensors of inference mode cannot take part in autograd
        batch = map_tensors(lambda tensor: tensor.to(pl_module.device, copy=True), batch)
        with torch.autocast(pl_module.device.type, enabled=False):
            network.batch = batch
            result.gather("linearisation gap", network.gap)
            result.gather("changed activation signs", network.sign_changes)
            if settings.kernel_samples > 0:
                result.gather("kernel alignment", lambda: network.kernel_alignment(settings))
        attacks = _Attacks(trainer, pl_module, batch, settings)
        result.gather("single gradient step", attacks.single_steps)
        result.gather("FGSM", attacks.fgsm)
    return result


class _Network:
    """The module as a function of its weights, in fp32 at least, with the buffers of the present on both sides."""

    def __init__(self, module: pl.LightningModule, start: State, input_key: list[Key] | None) -> None:
        self._module, self._input_key = module, input_key
        now = weights_of(module)
        changed = [name for name in start.keys() | now.keys() if name not in start or name not in now]
        if changed:
            raise ValueError(
                f"Expected the parameters that the module had at the start, but {sorted(changed)[:4]} came or went. "
                "Build all of them before the fit."
            )
        self._now = {name: _wide(tensor) for name, tensor in now.items()}
        self._start = {name: _wide(start[name].to(tensor.device)) for name, tensor in now.items()}
        self._layers = {without_compiled_prefix(layer.name): layer for layer in find_layers(module)}
        self.batch: Any = None

    def movement(self) -> Numbers:
        """Of all weights and of each layer."""
        groups = {"": list(self._now)}
        groups |= {f"/{name}": [p for p in layer.parameters if p in self._now] for name, layer in self._layers.items()}
        movements = {f"movement{end}": relative_movement(self._start, self._now, g) for end, g in groups.items()}
        return movements | {
            f"neuron_movement{end}": neuron_movement(self._start, self._now, g) for end, g in groups.items()
        }

    def gap(self) -> Numbers:
        """Of the first floating output."""
        return {"linearization_gap": linearization_gap(self._outputs, self._start, self._now).gap}

    def sign_changes(self) -> Numbers:
        """Of all rectifiers, and of those behind each layer; nothing if there are none."""
        counts = changed_signs(self._signs(self._start), self._signs(self._now))
        if not counts:
            return {}
        changed, total = (sum(column) for column in zip(*counts.values(), strict=True))
        shares = {f"sign_changes/{name}": part / all_ for name, (part, all_) in counts.items()}
        return {"sign_changes": changed / total, **shares}

    def kernel_alignment(self, settings: LazinessSettings) -> Numbers:
        """Of the first few samples."""
        rows = slice(settings.kernel_samples)
        with torch.no_grad():
            shape = self._outputs(self._now, rows).shape
        generator = torch.Generator().manual_seed(settings.seed)
        signs = (torch.randint(2, shape, generator=generator) * 2.0 - 1).to(self._module.device)
        kernels = [
            tangent_kernel(lambda state: self._outputs(state, rows), state, signs) for state in (self._start, self._now)
        ]
        return {"kernel_alignment": alignment(*kernels)}

    def _signs(self, state: State) -> Signs:
        modules = dict(self._module.named_modules())
        layers = {name: modules[layer.name] for name, layer in self._layers.items() if layer.name in modules}
        return activation_signs(lambda: self._outputs(state), layers)

    def _outputs(self, state: State, rows: slice = slice(None)) -> Tensor:
        """Buffers are copies, so that nothing can be written into those of the module."""
        buffers = {name: _wide(buffer.detach().clone()) for name, buffer in self._module.named_buffers()}
        batch = map_tensors(_wide, take_rows(self.batch, rows, count_samples(self.batch)))
        args, named = forward_arguments(self._module, batch, self._input_key)
        return first_floating(call_with(self._module, {**buffers, **state}, args, named))


class _Attacks:
    """What attacks do to the predictions of the module as it is, in its own precision; without classes, to its loss."""

    def __init__(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, settings: LazinessSettings) -> None:
        self._trainer, self._module, self._batch, self._settings = trainer, module, batch, settings

    def single_steps(self) -> Numbers:
        """One gradient; the steps differ in length only."""
        with self._as_trained():
            condition = attacked(self._trainer, self._module, self._settings.network, 1.0, perturb=single_step)
            inputs, ends = (self._inputs(each) for each in (self._batch, self._moved(condition)))
            numbers = {}
            for beta in self._settings.betas:
                moved = [x.lerp(end, beta) for x, end in zip(inputs, ends, strict=True)]
                name, value = self._effect(replace_items(self._batch, dict(zip(self._keys, moved, strict=True))))
                numbers[f"single_step{name}@{beta:g}"] = value
        return numbers

    def fgsm(self) -> Numbers:
        """At the radius; rows of numbers are no pictures."""
        pictures = all(part.ndim >= 3 for part in self._inputs(self._batch))
        space = self._settings.pixels if pictures else self._settings.network
        with self._as_trained():
            condition = attacked(self._trainer, self._module, space, self._settings.eps)
            name, value = self._effect(self._moved(condition))
        return {f"fgsm{name}": value}

    @functools.cached_property
    def _keys(self) -> list[Key]:
        return self._settings.pixels.in_batch(self._module, self._batch).keys

    def _as_trained(self) -> AbstractContextManager[None]:
        return self._trainer.precision_plugin.forward_context()

    def _moved(self, condition: Condition) -> Any:
        return self._batch if condition.transform is None else condition.transform(self._batch, 0, 0)

    def _inputs(self, batch: Any) -> tuple[Tensor, ...]:
        return get_args(batch, self._keys)

    def _effect(self, batch: Any) -> tuple[str, float]:
        """The end of the tag and the share of right predictions that changed, or the relative growth of the loss."""
        logits, targets = self._clean_logits, self._targets()
        if logits is not None and targets is not None:
            return "", changed_predictions(logits, self._outputs(batch), targets)
        before, after = self._clean_loss, self._loss(batch)
        return "_loss", (after - before) / abs(before) if before else math.nan

    @functools.cached_property
    def _clean_logits(self) -> Tensor | None:
        """``(N, classes)``, or None where there are no classes to count."""
        targets = self._targets()
        outputs = None if targets is None else self._outputs(self._batch)
        if targets is None or outputs is None or outputs.ndim != 2 or outputs.shape[1] < 2:
            return None
        return outputs if len(outputs) == len(targets) else None

    @functools.cached_property
    def _clean_loss(self) -> float:
        return self._loss(self._batch)

    @torch.no_grad()
    def _outputs(self, batch: Any) -> Tensor:
        return first_floating(call_forward(self._module, batch, self._settings.pixels.given))

    @torch.no_grad()
    def _loss(self, batch: Any) -> float:
        """From the same state each time, since a training step may fill a queue that its loss depends on."""
        step = own_step(self._module)
        loss = ModuleLoss(self._module, lambda part: call_step(step, part))
        with quietly(self._trainer, self._module, "validating"):
            return loss.mean(batch, len(self._inputs(batch)[0])).item()

    def _targets(self) -> Tensor | None:
        """Classes, one for each sample, if that is what the batch holds."""
        try:
            targets = targets_of(self._module, self._batch, self._settings.target_key, self._settings.pixels.given)
        except (KeyError, MisconfigurationException):
            return None
        # as many as logits, not as inputs: a graph has several nodes and one class
        if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.ndim != 1:
            return None
        return targets


def first_floating(outputs: Any) -> Tensor:
    """The first floating tensor of a structure, in fp32 at least.

    Raises:
        TypeError: If there is none.
    """
    for tensor in tensors_in(outputs):
        if tensor.is_floating_point():
            return _wide(tensor)
    raise TypeError(
        f"Expected `forward` to return a floating-point tensor or a structure with one, but got "
        f"{type(outputs).__name__} without any. Return logits or predictions from it."
    )


def _wide(tensor: Tensor) -> Tensor:
    """In fp32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)) if tensor.is_floating_point() else tensor
