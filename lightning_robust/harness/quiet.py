"""Running a user's step quietly: what it logs, draws and counts leaves no trace in the module or the Trainer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_robust.functional.batchnorm import evaluating
from lightning_robust.harness.compat import is_attached, silent_logger
from lightning_robust.harness.data_memory import each_loader, unread
from lightning_robust.harness.memory import ModuleMemory, untouched
from lightning_robust.harness.recorder import Recorder
from lightning_robust.harness.replacement import replaced

Runs = Literal["step", "validation", "forward"]


@contextmanager
def quietly(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    stage: str,
    recorder: Recorder | None = None,
    loaders: Any = None,
    since: ModuleMemory | None = None,
    runs: Runs = "step",
) -> Iterator[None]:
    """Inside the block the module is in evaluation mode and nothing that it runs leaves a trace.

    What it logs goes to the recorder, or nowhere; loggers do nothing. Metrics are empty at the start. They, buffers,
    lists, dicts, numbers and other data of the module, modes, random numbers and the Trainer's stage are restored, also
    after an error.

    Args:
        trainer: The Trainer.
        module: The module.
        stage: What the Trainer says it is doing: ``"training"``, ``"validating"``, ``"testing"``.
        recorder: Takes what the module logs.
        loaders: Structure of loaders whose own random generators are restored as well.
        since: What the module remembers at the start; None is what it remembers now.
        runs: What of the module is run; see :func:`~lightning_robust.harness.memory.untouched`.

    Raises:
        MisconfigurationException: If the module keeps what cannot be put back, such as an open file.
    """
    loggers = trainer.loggers
    with ExitStack() as stack:
        stack.enter_context(isolated_rng(loaders))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(in_stage(trainer, stage))
        stack.enter_context(muted(module, recorder, since, runs))
        stack.enter_context(evaluating(module))
        trainer.loggers = [silent_logger() for _ in loggers]
        try:
            yield
        finally:
            trainer.loggers = loggers


@contextmanager
def muted(
    module: pl.LightningModule,
    recorder: Recorder | None = None,
    since: ModuleMemory | None = None,
    runs: Runs = "step",
) -> Iterator[None]:
    """Inside the block, what the module logs goes to the recorder or nowhere; afterwards it remembers what it did.

    The statistics of BatchNorm move where the module is in training mode.
    """
    log, log_dict = (_ignore, _ignore) if recorder is None else (recorder.log, recorder.log_dict)
    period = (module.current_epoch, module.trainer.state.stage, runs) if is_attached(module) else None
    with untouched(module, period, since), replaced(module, log=log, log_dict=log_dict):
        yield


@contextmanager
def in_stage(trainer: pl.Trainer, stage: str) -> Iterator[None]:
    """The Trainer says that it is ``"training"`` or ``"validating"``; data modules choose augmentations by it."""
    before = trainer.state.stage
    setattr(trainer, stage, True)
    try:
        yield
    finally:
        trainer.state.stage = before


@contextmanager
def isolated_rng(loaders: Any = None) -> Iterator[None]:
    """All random generators continue after the block as if it had drawn nothing, also after an error in it.

    Args:
        loaders: Structure of loaders whose own generators, data sets and samplers are restored as well.

    Raises:
        MisconfigurationException: For a stream that cannot be read again.
    """
    states = [(generator, generator.get_state()) for generator in _generators(loaders)]
    isolation = isolate_rng()
    isolation.__enter__()
    try:
        with unread(loaders):
            yield
    finally:
        # Lightning's context restores nothing when an error passes through it
        isolation.__exit__(None, None, None)
        for generator, state in states:
            generator.set_state(state)


def _generators(loaders: Any) -> Iterator[torch.Generator]:
    """The generators of loaders and of their samplers, other than torch's global one."""
    for loader in each_loader(loaders):
        for owner in (loader, getattr(loader, "sampler", None)):
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator):
                yield generator


def _ignore(*_: Any, **__: Any) -> None:
    pass
