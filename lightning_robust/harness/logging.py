"""Scalars, figures, pictures and tables for whatever loggers the Trainer has, and the one TensorBoard layout.

Every function does nothing on ranks other than 0.
"""

from __future__ import annotations

import csv
import errno
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch import Tensor

from lightning_robust.harness.closing import warn
from lightning_robust.harness.compat import logged_step
from lightning_robust.harness.folders import own_folder
from lightning_robust.harness.ranks import describe_error
from lightning_robust.harness.trainers import is_fast_dev_run
from lightning_robust.tables import markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Layout = dict[str, dict[str, list[Any]]]
ROOM = 1 << 25
"""Bytes that pictures, tables and pages leave to the training's own numbers and checkpoints."""
_layouts: WeakKeyDictionary[pl.Trainer, Layout] = WeakKeyDictionary()


def log_step(trainer: pl.Trainer) -> int:
    """The step under which Lightning itself writes validation scalars, so that pictures and curves line up."""
    return logged_step(trainer)


def log_scalars(trainer: pl.Trainer, scalars: Mapping[str, float]) -> None:
    """Send scalars to every logger and to ``trainer.callback_metrics``, where ``pl_module.log`` is not allowed."""
    trainer.callback_metrics.update({tag: torch.tensor(value) for tag, value in scalars.items()})
    _to_all(trainer, "numbers", lambda logger, step: logger.log_metrics(dict(scalars), step), small=True)


def log_figure(trainer: pl.Trainer, tag: str, figure: Figure) -> None:
    """Send a matplotlib figure to every logger; where a logger takes no pictures, to files in ``figures``."""

    def send(logger: Logger, step: int) -> None:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(tag, figure, step, close=False)
        elif isinstance(logger, WandbLogger):
            logger.log_image(tag, [figure], step=step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_figure(logger.run_id, figure, f"{tag}/{step}.png")
        else:
            figure.savefig(_file(trainer, tag, step, "png"), dpi=120)

    _to_all(trainer, tag, send)


def log_images(trainer: pl.Trainer, tag: str, images: Tensor) -> None:
    """Send pictures side by side to every logger.

    Args:
        trainer: The Trainer.
        tag: Name, with slashes.
        images: ``(N, C, H, W)``, uint8 or floating in [0, 1], C being 1 or 3.

    Raises:
        ValueError: If the shape is another.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"Expected `images` of shape (N, 1 or 3, H, W), but got {tuple(images.shape)}.")
    pixels = images if images.is_floating_point() else images.float() / 255
    pixels = pixels.detach().float().cpu().clamp(0, 1)

    def send(logger: Logger, step: int) -> None:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_images(tag, pixels, step)
        elif isinstance(logger, WandbLogger):
            logger.log_image(tag, [_to_array(image) for image in pixels], step=step)
        elif isinstance(logger, MLFlowLogger):
            for index, image in enumerate(pixels):
                logger.experiment.log_image(logger.run_id, _to_array(image), f"{tag}/{step}-{index}.png")
        else:
            _save_images(pixels, _file(trainer, tag, step, "png"))

    _to_all(trainer, tag, send)


def log_table(trainer: pl.Trainer, tag: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Send a table to every logger: Markdown for TensorBoard, a CSV file where a logger has no tables."""

    def send(logger: Logger, step: int) -> None:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(tag, markdown(columns, rows), step)
        elif isinstance(logger, WandbLogger):
            logger.log_table(tag, columns=list(columns), data=[list(row) for row in rows], step=step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_text(logger.run_id, markdown(columns, rows), f"{tag}/{step}.md")
        else:
            with _file(trainer, tag, step, "csv").open("w", newline="") as stream:
                csv.writer(stream).writerows([columns, *rows])

    _to_all(trainer, tag, send)


def log_files(trainer: pl.Trainer, folder: Path | None) -> None:
    """Send pages and JSON files of a folder to loggers that keep files: MLflow's artifacts, W&B's files and panels."""
    if folder is None:
        return
    files = sorted(path for path in folder.iterdir() if path.suffix in (".html", ".json"))

    def send(logger: Logger, step: int) -> None:
        for file in files:
            if isinstance(logger, MLFlowLogger):
                logger.experiment.log_artifact(logger.run_id, str(file), folder.name)
            elif isinstance(logger, WandbLogger):
                logger.experiment.save(str(file), base_path=str(folder.parent), policy="now")
                if file.suffix == ".html":
                    import wandb

                    logger.experiment.log({f"{folder.name}/{file.stem}": wandb.Html(str(file), inject=False)})

    _to_all(trainer, f"the files of {folder.name}", send)


def add_layout(trainer: pl.Trainer, category: str, charts: Mapping[str, Sequence[str]]) -> None:
    """Contribute charts to the custom-scalars page of TensorBoard; call it in ``setup``.

    TensorBoard reads one layout a run, so all contributions are written together by :func:`write_layout`.

    Args:
        trainer: The Trainer.
        category: Heading on the page.
        charts: Title of a chart -> tags (regular expressions) drawn in it.
    """
    layout = _layouts.setdefault(trainer, {})
    layout[category] = {title: ["Multiline", list(tags)] for title, tags in charts.items()}


def write_layout(trainer: pl.Trainer) -> None:
    """Write the gathered layout once; call it in ``on_fit_start``. Later calls in the same fit do nothing."""
    layout = _layouts.pop(trainer, None)
    if layout and trainer.is_global_zero:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_custom_scalars(layout)


def require_room(folder: str | Path) -> None:
    """Refuse a disk on which pictures and pages would take what the training needs, before anything is written.

    TensorBoard writes in a thread of its own: once that has failed, for our picture or another reason, the next number
    that Lightning logs raises the error and ends the training.

    Args:
        folder: Where the files go; it need not exist. Places that are no paths, as ``s3://...``, are not looked at.

    Raises:
        OSError: If the disk is read-only or has less than 32 MB left.

    Example:
        >>> require_room("lightning_logs")
    """
    if "://" in str(folder):
        return
    path = next(each for each in (Path(folder).absolute(), *Path(folder).absolute().parents) if each.exists())
    if not os.access(path, os.W_OK):
        raise OSError(errno.EROFS, "Nothing can be written", str(path))
    free = shutil.disk_usage(path).free
    if free < ROOM:
        raise OSError(errno.ENOSPC, f"{free >> 10} kB are left, which is kept for the training", str(path))


def _folder_of(logger: Logger) -> str | None:
    return getattr(logger, "log_dir", None) or getattr(logger, "save_dir", None)


def _to_all(trainer: pl.Trainer, what: str, send: Callable[[Logger, int], None], *, small: bool = False) -> None:
    """Send something to every logger; what one of them cannot store is one warning, and the others get it."""
    if not trainer.is_global_zero or is_fast_dev_run(trainer):
        return
    step = log_step(trainer)
    for logger in trainer.loggers:
        try:
            if not small:
                require_room(_folder_of(logger) or trainer.default_root_dir)
            send(logger, step)
        except Exception as error:
            warn(f"{type(logger).__name__} could not store {what}. {describe_error(error)}")


def _file(trainer: pl.Trainer, tag: str, step: int, suffix: str) -> Path:
    path = own_folder(trainer, "figures") / f"{tag}-{step}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _to_array(image: Tensor) -> Any:
    return (image.permute(1, 2, 0) * 255).round().byte().numpy()


def _save_images(images: Tensor, path: Path) -> None:
    from PIL import Image

    strip = _to_array(images.permute(1, 2, 0, 3).flatten(2))
    Image.fromarray(strip if strip.shape[2] == 3 else strip[..., 0]).save(path)
