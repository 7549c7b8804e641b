"""Where the files of a run go: a folder of its own, never over those of an earlier run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_robust.harness.closing import join_summary
from lightning_robust.harness.trainers import is_fast_dev_run


def run_folder(trainer: pl.Trainer) -> Path | None:
    """The folder of the run, in which ModelCheckpoint puts ``checkpoints`` too; None without a logger.

    TensorBoard and CSV have a ``log_dir``; others ``<save_dir>/<name>/<version>``, as W&B's project and run id, or
    MLflow's experiment and run id.
    """
    if not trainer.loggers:
        return None
    logger = trainer.loggers[0]
    if isinstance(logger, TensorBoardLogger | CSVLogger):
        return Path(logger.log_dir)
    version = logger.version
    if version is None or version == "":
        return None
    version = version if isinstance(version, str) else f"version_{version}"
    return Path(logger.save_dir or trainer.default_root_dir, str(logger.name), version)


def own_folder(trainer: pl.Trainer, name: str, dirpath: str | None = None, report: str = "") -> Path:
    """The folder of a technique's files in this run, the same at each call; on rank 0 alone it is made.

    It is ``<run folder>/<name>``, or ``-v1``, ``-v2`` ... behind it where an earlier fit has written there; without a
    logger ``<default_root_dir>/<name>-<n>``.

    Args:
        trainer: The Trainer.
        name: Of the technique.
        dirpath: The user's own choice, which may hold other files; None for a folder as above.
        report: A file that an earlier fit has left in `dirpath`, if one has; ``<name>.json`` if empty.
    """
    folders = join_summary(trainer).folders
    if name not in folders:
        run = run_folder(trainer)
        if dirpath is not None:
            report = report or f"{name}.json"
            chosen = next(path for path in _versions(Path(dirpath)) if not (path / report).exists())
        elif run is not None:
            chosen = _claim(trainer, _versions(run / name))
        else:
            chosen = _claim(trainer, (Path(trainer.default_root_dir) / f"{name}-{n}" for n in itertools.count()))
        folders[name] = chosen
    return folders[name]


def output_folder(trainer: pl.Trainer, dirpath: str | None, name: str, report: str = "") -> Path:
    """:func:`own_folder` for techniques that write on all ranks, as rank 0 finds it; call it on all of them."""
    folder = str(own_folder(trainer, name, dirpath, report)) if trainer.is_global_zero else ""
    return Path(str(trainer.strategy.broadcast(folder, 0)))


def _versions(folder: Path) -> Iterator[Path]:
    yield folder
    yield from (folder.with_name(f"{folder.name}-v{n}") for n in itertools.count(1))


def _claim(trainer: pl.Trainer, candidates: Iterator[Path]) -> Path:
    """Make the first folder that does not exist, so that no other process takes it.

    Where it cannot be made, whoever writes into it says so.
    """
    folder = next(candidates)
    while not is_fast_dev_run(trainer):  # which writes nothing
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            folder = next(candidates)
        except OSError:
            break
    return folder
