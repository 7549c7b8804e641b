"""Tables whose rows are commands of ``lightning-robust``, kept in a file so that finished ones are not run again."""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import shutil
import statistics
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_robust import NoEffectWarning
from lightning_robust.callbacks.attack_precision import computes_in_bf16
from lightning_robust.cli import RobustCLI
from lightning_robust.tables import markdown

MIXED = "bf16-mixed" if computes_in_bf16(torch.device("cpu")) else "32-true"
"""Precision of trainings that need no more: a processor without bf16 instructions is many times slower in it."""
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
Columns = Mapping[str, tuple[str, float, str]]
"""Heading -> tag of the number, what it is multiplied by, how it is written."""
COST: Columns = {"CPU s": ("cpu_seconds", 1, ".0f"), "MiB": ("memory/peak_mib", 1, ".0f")}
"""What :func:`measured_run` adds to every row."""


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
            self.put(row, seed, run())
        return self.content[key]

    def put(self, row: str, seed: int, numbers: dict[str, float]) -> None:
        """Keep the numbers of a row, at once."""
        self.content[f"{row} | {seed}"] = numbers
        self.path.write_text(json.dumps(self.content, indent=1))
        print(f"{row} | {seed}", numbers, flush=True)

    def of(self, row: str, seeds: Sequence[int]) -> list[dict[str, float]]:
        """The numbers of a row, for the seeds that are there."""
        return [self.content[f"{row} | {seed}"] for seed in seeds if f"{row} | {seed}" in self.content]

    def median(self, row: str, seeds: Sequence[int], tag: str) -> float | None:
        """The median of a number over the seeds that are there; None without one."""
        found = [numbers[tag] for numbers in self.of(row, seeds)]
        return statistics.median(found) if found else None

    def table(self, rows: Iterable[str], seeds: Sequence[int], columns: Columns) -> str:
        """Medians over the seeds that are there, with smallest and largest where there are several."""

        def cell(row: str, tag: str, factor: float, form: str) -> str:
            values = [factor * numbers[tag] for numbers in self.of(row, seeds)]
            spread = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
            return f"{statistics.median(values):{form}}{spread}"

        lines = [
            [row, len(runs), *(cell(row, *how) for how in columns.values())]
            for row in rows
            if (runs := self.of(row, seeds))
        ]
        return markdown(["training", "seeds", *columns], lines)


def run_rows(given: argparse.Namespace, work: Callable[..., dict[str, float]], *arguments: Any) -> Results:
    """Run what is missing, ``given.jobs`` rows at a time, each in a process of its own with one thread.

    Args:
        given: Of :func:`options`.
        work: ``work(row, seed, folder, *arguments)`` gives the numbers of a row; a function of a module.
        *arguments: Of ``work``.

    Raises:
        SystemExit: After all the others, if rows failed; says which.
    """
    results, failed = Results(given.out), []
    missing = [(name, seed) for seed in given.seeds for name in given.only if f"{name} | {seed}" not in results.content]
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(given.jobs, get_context("spawn"), quiet, max_tasks_per_child=1) as pool:
        futures = {
            pool.submit(work, name, seed, results.folder / slug(name) / str(seed), *arguments): (name, seed)
            for name, seed in missing
        }
        for future in as_completed(futures):
            if error := future.exception():
                failed.append(futures[future])
                traceback.print_exception(error)
            else:
                results.put(*futures[future], future.result())
    if failed:
        raise SystemExit(f"These rows failed, the others are kept: {failed}.")
    return results


def measured_run(
    config: str,
    seed: int,
    folder: Path,
    arguments: Sequence[str],
    measure: Callable[[RobustCLI], dict[str, float]],
    *,
    idle: bool = False,
) -> dict[str, float]:
    """Train by one command, measure, and leave the numbers in the run's folder, where ``compare`` finds them.

    Args:
        config: The configuration.
        seed: Of everything.
        folder: Of the run.
        arguments: Further ones of the command.
        measure: Gives the numbers.
        idle: Whether a technique may turn out to change nothing, such as a soup that no ingredient improves.

    Returns:
        What ``measure`` gives, and :data:`COST`: processor seconds and peak memory of the training.

    Raises:
        RuntimeError: If a technique warns that it had no effect: the table would say that it did nothing.
    """
    began = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", NoEffectWarning)
        cli = run("fit", config, seed, folder, *arguments)
    if caught and not idle:
        raise RuntimeError(f"Expected techniques that have an effect, but: {caught[0].message}")
    seconds = time.process_time() - began
    memory = {"memory/peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    numbers = memory | measure(cli)
    logger = cli.trainer.logger
    logger.log_metrics(numbers, cli.trainer.global_step)
    logger.finalize("success")
    return numbers | {"cpu_seconds": seconds}


def slug(name: str) -> str:
    """The folder of a row."""
    return name.replace(" ", "_").replace(",", "")


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


def quiet_trainer(callbacks: list[pl.Callback], accelerator: str = "cpu", **settings: Any) -> pl.Trainer:
    """A Trainer that keeps and says nothing."""
    return pl.Trainer(
        accelerator=accelerator,
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


def spread(values: Sequence[float]) -> str:
    """The mean, and the smallest and largest where there are several."""
    ends = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{ends}"


def options(
    description: str | None,
    folder: str,
    rows: Iterable[str] = (),
    files: Sequence[str] = (),
    *,
    parallel: bool = True,
) -> argparse.Namespace:
    """Seeds, folder, rows of these, how many at once, and files from the command line; see :func:`quiet`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path(folder))
    if rows:
        parser.add_argument("--only", nargs="+", choices=rows, default=list(rows))
    if rows and parallel:
        parser.add_argument("--jobs", type=int, default=2)
    for name in files:
        parser.add_argument(f"--{name}", type=Path, required=True)
    quiet()
    return parser.parse_args()


def quiet() -> None:
    """Silence warnings and greetings."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
