"""From a checkpoint back to its module and its data, by way of the ``config.yaml`` that the run saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonargparse
import lightning.pytorch as pl
import torch
import yaml


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
