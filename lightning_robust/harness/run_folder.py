"""Finds the files of a finished run in its folder: the checkpoint that is meant, and the configuration.

A run folder is code, not data: the classes that its config.yaml names are imported and built. Imports nothing heavy;
torch is only needed to tell which of several checkpoints is best.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_robust.harness.kept_checkpoints import (
    CHECKPOINTS,
    checkpoints_of,
    choose_checkpoint,
    first_names,
    is_checkpoint,
)
from lightning_robust.reading import read_yaml

AUTO = "auto"
"""The value of an option that the run's own configuration fills."""
_CONFIG = "config.yaml"
_LEVELS = 3


class RunFiles(NamedTuple):
    """The files that a command works on.

    Args:
        checkpoint: The weights.
        config: The configuration that names their module.
        reason: Why this checkpoint, where the user named a folder.

    Example:
        >>> print(RunFiles("runs/a/checkpoints/2.ckpt", "runs/a/config.yaml", "best val/acc 0.9"))
        Checkpoint: runs/a/checkpoints/2.ckpt (best val/acc 0.9), configuration: runs/a/config.yaml
    """

    checkpoint: str
    config: str
    reason: str = ""

    def __str__(self) -> str:
        """One line that says which files were taken."""
        reason = f" ({self.reason})" if self.reason else ""
        return f"Checkpoint: {self.checkpoint}{reason}, configuration: {self.config}"


def locate_run(run: str | None, ckpt: str | None, config: str | None = None) -> RunFiles:
    """Find the checkpoint and the configuration of a run.

    Args:
        run: Folder of a run, or one above several versions of a run, of which the newest with checkpoints is taken.
        ckpt: A checkpoint. With ``run``: ``"best"`` (the default; the best by the run's ModelCheckpoint), ``"last"``,
            or a file in the folder.
        config: The configuration; by default that of :func:`find_config`.

    Raises:
        FileNotFoundError: If something is not there.
        ValueError: If the folder does not say which checkpoint is meant, or has no configuration.
    """
    if run is not None:
        path, reason = choose_checkpoint(_run_folder(Path(run)), ckpt or "best")
    elif ckpt is not None:
        path, reason = _existing(Path(ckpt)), ""
    else:
        raise ValueError("Expected --run or --ckpt, but got neither. Give the folder of a run, or a checkpoint.")
    if config is not None and not Path(config).is_file():
        raise FileNotFoundError(f"Expected a configuration at {config}, but there is no such file.")
    found = config or find_config(path)
    if found is None:
        raise ValueError(
            f"Expected the config.yaml of the run beside {path} or in one of the three folders above it, but found "
            "none. Name it with --config."
        )
    return RunFiles(str(path), str(found), reason)


def find_config(checkpoint: str | Path) -> Path | None:
    """The ``config.yaml`` that ``lightning-robust fit`` left in a checkpoint's run.

    The run's own folder, which holds the folder ``checkpoints``, comes first; then the checkpoint's own folder and the
    two above it.

    Example:
        >>> find_config("/nowhere/last.ckpt") is None
        True
    """
    folders = list(Path(checkpoint).absolute().parents)[:_LEVELS]
    if folders[0].name == CHECKPOINTS:
        folders[:2] = folders[1::-1]
    return next((folder / _CONFIG for folder in folders if (folder / _CONFIG).is_file()), None)


def parity_arguments(config: str | Path) -> dict[str, Any]:
    """What a run's configuration says to the parity callback: ``input_key``, ``decode``, ``mean``, ``std``.

    The callback stands under ``deployment_parity`` (true, a mapping, or a class with arguments) or in the list
    ``trainer.callbacks``.

    Raises:
        ValueError: If the file is no configuration.
    """
    content = read_config(config)
    sections = [content.get("deployment_parity"), *_parity_callbacks(content)]
    section: Mapping[str, Any] = next((each for each in sections if isinstance(each, Mapping)), {})
    arguments = section.get("init_args") if "class_path" in section else section
    if not isinstance(arguments, Mapping | None):
        raise ValueError(f"Expected arguments as keys and values in {config}, but got {arguments!r}.")
    return {key: value for key, value in (arguments or {}).items() if key in ("input_key", "decode", "mean", "std")}


def with_run_arguments(config: str | Path, **given: Any) -> dict[str, Any]:
    """Options of a command, with what the run's configuration says where the user said nothing.

    Nothing is None; of ``decode``, where None means no task units, it is ``"auto"``.

    Args:
        config: The run's configuration.
        given: Options out of ``input_key``, ``decode``, ``mean`` and ``std``.
    """
    said = {"decode": "decode"} | parity_arguments(config)
    unsaid = {"decode": AUTO}
    return {key: said.get(key) if value == unsaid.get(key) else value for key, value in given.items()}


def read_config(path: str | Path) -> dict[str, Any]:
    """The configuration of a run.

    Raises:
        ValueError: If the file is none; the message names it.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(
            f"Expected keys and values in {path}, but got {str(content)[:60]!r}. Give a run's config.yaml."
        )
    return content


def _parity_callbacks(content: Mapping[str, Any]) -> Iterator[Any]:
    trainer = content.get("trainer")
    callbacks = trainer.get("callbacks") if isinstance(trainer, Mapping) else None
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        if isinstance(callback, Mapping) and str(callback.get("class_path")).endswith("DeploymentParityCallback"):
            yield callback


def _existing(path: Path) -> Path:
    if is_checkpoint(path):
        return path
    if path.is_dir():
        raise ValueError(f"Expected a checkpoint at {path}, but it is a folder. For the folder of a run give --run.")
    raise FileNotFoundError(f"Expected a checkpoint at {path}, but there is no such file.")


def _run_folder(path: Path) -> Path:
    """The folder of one run: the one that was named, or the newest version in it."""
    path = _existing_folder(path)
    if checkpoints_of(path):
        return path
    below = [folder for folder in _folders_below(path, _LEVELS) if checkpoints_of(folder)]
    if not below:
        raise ValueError(_no_checkpoints(path))
    if len(below) > 1 and not _are_versions(below):
        raise ValueError(f"Expected the folder of one run, but {path} has {first_names(below, path)}. Name one.")
    return max(below, key=lambda folder: int(folder.name.rpartition("_")[2]) if len(below) > 1 else 0)


def _existing_folder(path: Path) -> Path:
    if path.is_file():
        raise ValueError(f"Expected the folder of a run at {path}, but it is a file. Give a checkpoint with --ckpt.")
    if not path.is_dir():
        raise FileNotFoundError(f"Expected the folder of a run at {path}, but there is no such folder.")
    return path.absolute().parent if path.name == CHECKPOINTS else path


def _are_versions(folders: Sequence[Path]) -> bool:
    """Whether these are the versions of one run, as Lightning's loggers number them."""
    numbered = all(re.fullmatch(r"version_\d+", folder.name) for folder in folders)
    return numbered and len({folder.parent for folder in folders}) == 1


def _no_checkpoints(path: Path) -> str:
    if (path / _CONFIG).is_file() or (path / "hparams.yaml").is_file():
        return (
            f"Expected checkpoints in {path / CHECKPOINTS}, but there are none: the run ended before the first one, or "
            "it keeps them elsewhere. Give a file with --ckpt."
        )
    files = sorted(path.iterdir())
    held = f"holds {first_names(files, path)}" if files else "is empty"
    advice = "Give another folder, or a file with --ckpt."
    return f"Expected the folder of a run, with checkpoints, but {path} {held}. {advice}"


def _folders_below(folder: Path, levels: int) -> Iterator[Path]:
    """The folders in a folder and in those, without links, which may be loops."""
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.is_symlink() and child.name != CHECKPOINTS:
            yield child
            if levels > 1:
                yield from _folders_below(child, levels - 1)
