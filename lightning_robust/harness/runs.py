"""From a checkpoint back to its module and its data, by way of the ``config.yaml`` that the run saved."""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jsonargparse
import lightning.pytorch as pl
from typing_extensions import override

from lightning_robust.functional.pixels import PixelSpace
from lightning_robust.harness.checkpoints import load_weights
from lightning_robust.harness.normalisation import pixel_space
from lightning_robust.harness.run_folder import locate_run, read_config
from lightning_robust.harness.samples import FirstInputs


def load_module(checkpoint: str | Path, config: str | Path | None = None) -> pl.LightningModule:
    """The module of a run with the weights of a checkpoint, on the CPU, in evaluation mode.

    A run folder is code, not data: the classes that its configuration names are imported and built, which runs what
    their modules hold. Take configurations only from where you would take code. The file of weights is data: a
    checkpoint, a plain state dict or safetensors, of which nothing is run and from which nothing is imported.

    Args:
        checkpoint: The weights; read with ``weights_only=True``.
        config: The run's saved configuration; by default :func:`~.run_folder.find_config`'s.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If no configuration names the module's class, or the weights do not fit.
    """
    files = locate_run(None, str(checkpoint), None if config is None else str(config))
    module: pl.LightningModule = _instantiate("model", pl.LightningModule, files.config)
    load_weights(module, checkpoint, of=files.config)
    return module.eval()


def load_data(checkpoint: str | Path, config: str | Path | None = None) -> pl.LightningDataModule:
    """The data module of a checkpoint's run.

    Raises:
        ValueError: If no configuration names it.
    """
    files = locate_run(None, str(checkpoint), None if config is None else str(config))
    data: pl.LightningDataModule = _instantiate("data", pl.LightningDataModule, files.config)
    return data


def validate_once(
    module: pl.LightningModule, data: pl.LightningDataModule, callback: pl.Callback, batches: int
) -> None:
    """Run a few validation batches through the Trainer on the CPU, for what a callback sees; writes and says nothing.

    Args:
        module: The module.
        data: Its data, hooks included.
        callback: Looks on.
        batches: How many at most.
    """
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            for message in (".*does not have many workers.*", ".*LeafSpec.*"):
                warnings.filterwarnings("ignore", message)
            trainer = pl.Trainer(
                accelerator="cpu",
                devices=1,
                logger=False,
                default_root_dir=folder,
                callbacks=[callback],
                limit_val_batches=batches,
                enable_progress_bar=False,
                enable_model_summary=False,
                enable_checkpointing=False,
            )
            trainer.validate(module, datamodule=data, verbose=False)
    finally:
        logger.setLevel(level)


class InputCollector(pl.Callback):
    """Keeps the first validation inputs and how their pixels were normalised.

    Args:
        count: How many samples.
        input_key: Which part of a batch goes into ``forward``.
    """

    def __init__(self, count: int, input_key: int | str | list[int | str] | None = None) -> None:
        self.inputs = FirstInputs(count, input_key)
        self.pixels = PixelSpace()

    @override
    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep what comes."""
        self.pixels = pixel_space(trainer, None, None)
        if dataloader_idx == 0:
            self.inputs.add(pl_module, batch, whole=callable(getattr(pl_module, "known", None)))


def _instantiate(key: str, base: type, config: str) -> Any:
    """Build what a configuration says under a key; whatever is wrong with it is a sentence that names the file."""
    wanted = read_config(config).get(key)
    if isinstance(wanted, str):
        wanted = {"class_path": wanted}
    if not isinstance(wanted, dict) or not isinstance(wanted.get("class_path"), str):
        raise ValueError(
            f"Expected `{key}: {{class_path: ...}}` in {config}, but got {str(wanted)[:80]}. Write the class there."
        )
    section = jsonargparse.ArgumentParser(exit_on_error=False)
    section.add_argument(f"--{key}", type=base)
    try:
        return getattr(section.instantiate_classes(section.parse_object({key: wanted})), key)
    except Exception as error:  # of the parser, of the module that is imported, of the class that is built
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"Expected {config} to build `{key}` of {wanted['class_path']}, but got {type(error).__name__}: {reason}"
        ) from error
