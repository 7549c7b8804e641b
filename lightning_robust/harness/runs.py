"""From a checkpoint back to its module and its data, by way of the ``config.yaml`` that the run saved."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import jsonargparse
import lightning.pytorch as pl
import torch
import yaml
from typing_extensions import override

from lightning_robust.functional.pixels import PixelSpace
from lightning_robust.harness.normalisation import pixel_space
from lightning_robust.harness.samples import FirstInputs


def find_config(checkpoint: str | Path) -> Path | None:
    """The ``config.yaml`` that ``lightning-robust fit`` left beside a checkpoint or in a folder above it.

    Example:
        >>> find_config("/nowhere/last.ckpt") is None
        True
    """
    folders = list(Path(checkpoint).resolve().parents)[:3]
    return next((folder / "config.yaml" for folder in folders if (folder / "config.yaml").is_file()), None)


def load_module(checkpoint: str | Path, config: str | Path | None = None) -> pl.LightningModule:
    """The module of a run with the weights of a checkpoint, on the CPU, in evaluation mode.

    Args:
        checkpoint: A Lightning checkpoint; read with ``weights_only=True``.
        config: The run's saved configuration; by default :func:`find_config`'s.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If no configuration names the module's class, or the weights do not fit.
    """
    path = Path(checkpoint)
    if not path.is_file():
        raise FileNotFoundError(f"Expected a checkpoint at {path}, but there is no such file.")
    module = _instantiate("model", pl.LightningModule, path, config)
    content = torch.load(path, map_location="cpu", weights_only=True)
    if "state_dict" not in content:
        raise ValueError(f"Expected a Lightning checkpoint at {path}, but it holds {sorted(content)[:8]}.")
    try:
        module.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        raise ValueError(f"The weights of {path} do not fit the model of its configuration: {error}") from error
    return module.eval()


def load_data(checkpoint: str | Path, config: str | Path | None = None) -> pl.LightningDataModule:
    """The data module of a checkpoint's run.

    Raises:
        ValueError: If no configuration names it.
    """
    data: pl.LightningDataModule = _instantiate("data", pl.LightningDataModule, Path(checkpoint), config)
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
        with warnings.catch_warnings():
            for message in (".*does not have many workers.*", ".*LeafSpec.*"):
                warnings.filterwarnings("ignore", message)
            trainer = pl.Trainer(
                accelerator="cpu",
                devices=1,
                logger=False,
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


def _instantiate(key: str, base: type, checkpoint: Path, config: str | Path | None) -> Any:
    path = Path(config) if config is not None else find_config(checkpoint)
    if path is None or not path.is_file():
        raise ValueError(
            f"Expected the config.yaml of the run beside {checkpoint} or in one of the three folders above it, but "
            f"found {'none' if path is None else f'no file at {path}'}. Name it with --config."
        )
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    wanted = (content or {}).get(key)
    if not isinstance(wanted, dict) or "class_path" not in wanted:
        raise ValueError(f"Expected `{key}: {{class_path: ...}}` in {path}, but got {wanted!r}. Write the class there.")
    section = jsonargparse.ArgumentParser()
    section.add_argument(f"--{key}", type=base)
    parsed = section.parse_object({key: wanted})
    return getattr(section.instantiate_classes(parsed), key)
