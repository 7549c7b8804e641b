"""The training inputs that int8 finds its ranges on: the first of a fit, else those that training would begin with."""

from __future__ import annotations

import contextlib
from itertools import islice
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from typing_extensions import override

from lightning_robust.callbacks.diagnostics import InputDiagnostic
from lightning_robust.deployment.engines import TARGETS, BuildSettings
from lightning_robust.deployment.engines.targets import BY_NAME
from lightning_robust.deployment.graph.frozen import to_args
from lightning_robust.harness.batches import combined, training_loaders, transferred
from lightning_robust.harness.inputs import as_keys
from lightning_robust.harness.quiet import in_stage, isolated_rng
from lightning_robust.harness.runs import load_data, load_module, validate_once
from lightning_robust.harness.samples import FirstInputs
from lightning_robust.progress import track
from lightning_robust.structures import Key, flatten


class CalibrationInputs:
    """Copies the first training inputs to the CPU, where a target needs them; draws no random number.

    Args:
        targets: ``"auto"`` or names of targets.
        settings: How engines are built; with ``calibration_data`` nothing is gathered.
        input_key: Which part of a batch goes into ``forward``.

    Attributes:
        wanted: Whether a target needs them.
    """

    def __init__(
        self, targets: Literal["auto"] | list[str], settings: BuildSettings, input_key: Key | list[Key] | None
    ) -> None:
        as_keys(input_key)  # refuses an empty list
        self._count, self._key = settings.calibration_samples, input_key
        self.wanted = settings.calibration_data is None and needs_calibration(targets)
        self.reset()

    def reset(self) -> None:
        """Forget the inputs of an earlier fit."""
        self._inputs = FirstInputs(self._count, self._key)

    def add(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any) -> None:
        """Keep what a training batch has for the network, on rank 0, until there is enough."""
        if self.wanted and trainer.is_global_zero:
            self._inputs.add(pl_module, batch)

    def fill(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Outside of a fit, take what training would begin with; without a training loader that works, nothing."""
        if not self.wanted or self._inputs.count:
            return
        with contextlib.suppress(Exception), isolated_rng():
            loaders = training_loaders(trainer, pl_module)
            with isolated_rng(loaders), in_stage(trainer, "training"):
                torch.manual_seed(0)  # the same inputs at each call
                for batch, *_ in track(islice(combined(loaders), self._count), "Reading inputs to calibrate int8 on"):
                    self._inputs.add(pl_module, transferred(trainer, pl_module, batch, 0))
                    if self._inputs.complete:
                        break

    def args(self, example: tuple[Any, ...] | None = None) -> tuple[Any, ...] | None:
        """The inputs as arguments of ``forward``; None if there are none.

        Args:
            example: Arguments of the shape that is measured; inputs of another shape are none.
        """
        if not self._inputs.count:
            return None
        args = to_args(self._inputs.args(), torch.float32)
        return args if example is None or _shapes_of(args) == _shapes_of(example) else None


class CalibratedDiagnostic(InputDiagnostic):
    """A diagnostic that sees the first training inputs of a fit."""

    calibration: CalibrationInputs

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the training inputs of an earlier fit."""
        super().on_fit_start(trainer, pl_module)
        self.calibration.reset()

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Copy the first training inputs, on which int8 finds its ranges."""
        self.calibration.add(trainer, pl_module, batch)


class _Filled(pl.Callback):
    """Fills the inputs at the end of a validation."""

    def __init__(self, inputs: CalibrationInputs) -> None:
        self._inputs = inputs

    @override
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._inputs.fill(trainer, pl_module)


def calibration_of_run(
    ckpt: str,
    config: str | None,
    targets: Literal["auto"] | list[str],
    settings: BuildSettings,
    input_key: Key | list[Key] | None = None,
) -> tuple[Any, ...] | None:
    """The first training inputs of a checkpoint's run, where a target needs them and the run has data.

    Args:
        ckpt: The checkpoint.
        config: The run's config.yaml; by default that beside the checkpoint.
        targets: ``"auto"`` or names of targets.
        settings: How engines are built.
        input_key: Which part of a batch goes into ``forward``.
    """
    inputs = CalibrationInputs(targets, settings, input_key)
    if inputs.wanted:
        with contextlib.suppress(Exception):
            validate_once(load_module(ckpt, config), load_data(ckpt, config), _Filled(inputs), 1)
    return inputs.args()


def _shapes_of(args: tuple[Any, ...]) -> list[torch.Size]:
    return [tensor.shape[1:] for tensor in flatten(args).values()]


def needs_calibration(targets: Literal["auto"] | list[str]) -> bool:
    """Whether a target is quantised here.

    Example:
        >>> needs_calibration(["emulated-fp16", "deployed-int8"]), needs_calibration(["tensorrt-int8"])
        (False, True)
    """
    names = TARGETS.keys() - BY_NAME if targets == "auto" else targets
    return any(name.endswith("-int8") and not name.startswith("deployed-") for name in names)
