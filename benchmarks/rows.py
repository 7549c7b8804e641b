"""Tables whose rows are commands of ``lightning-robust``, kept in a file so that finished ones are not run again."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_robust.cli import RobustCLI

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


class Results:
    """Numbers by row and seed, in a file."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path = folder, folder / "results.json"
        self.content = json.loads(self.path.read_text()) if self.path.exists() else {}

    def get(self, row: str, seed: int, run: Callable[[], dict[str, float]]) -> dict[str, float]:
        """The numbers of a row, from the file or by running it."""
        key = f"{row} | {seed}"
        if key not in self.content:
            self.content[key] = run()
            self.path.write_text(json.dumps(self.content, indent=1))
            print(key, self.content[key], flush=True)
        return self.content[key]


def run(command: str, config: str, seed: int, folder: Path, *arguments: str) -> RobustCLI:
    """One command of ``lightning-robust``; what an interrupted one left behind goes first."""
    shutil.rmtree(folder, ignore_errors=True)
    args = [
        command,
        "-c",
        config,
        *QUIET,
        f"--seed_everything={seed}",
        f"--trainer.logger.save_dir={folder}",
        *arguments,
    ]
    return RobustCLI(args=args)


def quiet_trainer(callbacks: list[pl.Callback], **settings: Any) -> pl.Trainer:
    """A Trainer on the CPU that keeps and says nothing."""
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tempfile.mkdtemp(),
        callbacks=callbacks,
        **settings,
    )


def accuracies(cli: RobustCLI, ckpt_path: str | None = None) -> dict[str, float]:
    """Test accuracies of what the run returned, by loader."""
    found = cli.trainer.test(
        cli.model, datamodule=cli.datamodule, ckpt_path=ckpt_path, verbose=False, weights_only=True
    )
    return {key.replace("test/acc", "acc"): value for part in found for key, value in part.items() if "acc" in key}


def checkpoint(folder: Path) -> str:
    """The one checkpoint of a run."""
    (path,) = folder.rglob("last.ckpt")
    return str(path)


def summary(values: list[float]) -> str:
    """Median and spread in percent."""
    return f"{100 * statistics.median(values):.2f} ({100 * min(values):.2f} to {100 * max(values):.2f})"


def options(
    description: str | None, folder: str, rows: Iterable[str] = (), files: Sequence[str] = ()
) -> argparse.Namespace:
    """Seeds, folder, rows of these and files from the command line; warnings and greetings are silenced."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path(folder))
    if rows:
        parser.add_argument("--only", nargs="+", choices=rows, default=list(rows))
    for name in files:
        parser.add_argument(f"--{name}", type=Path, required=True)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return parser.parse_args()
