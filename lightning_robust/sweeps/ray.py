"""Runs the trials of a sweep with Ray Tune, each one ``lightning-robust fit`` in a process of its own."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import tempfile
import textwrap
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl

from lightning_robust.cli.hidden_warnings import others_warnings_hidden
from lightning_robust.cli.robust_cli import RobustCLI
from lightning_robust.harness.checkpoints import read_checkpoint
from lightning_robust.json_values import jsonable
from lightning_robust.progress import words_left
from lightning_robust.sweeps.file import Resources, RunSettings
from lightning_robust.sweeps.trials import SweepTrial

if TYPE_CHECKING:
    from ray.tune import ResultGrid, Tuner
    from ray.tune.integration.pytorch_lightning import TuneReportCheckpointCallback

_CHECKPOINT = "last.ckpt"
CONFIG = "config.yaml"
"""The configuration of a trial, in its folder from its start on."""
RESULT = "ended.json"
"""What a trial that has ended leaves in its folder: its metrics, and its seconds. Ray writes a result.json there."""
_METRICS = "metrics"
_INSTALL = "pip install 'lightning_robust[sweep]'"


@contextmanager
def cluster(address: str | None, cpus: int | None) -> Iterator[None]:
    """A Ray cluster that ends with the block, unless this process was connected to one before.

    Args:
        address: Address of a running Ray cluster, or None for this machine.
        cpus: How many cores of this machine to use; None is all.

    Raises:
        ImportError: If Ray is not installed.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Tune keeps one checkpoint, therefore saves its state at every epoch, and warns of that
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    # selects the reporter that `verbose=0` silences
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # trials exchange nothing, so that little memory is enough
    local = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": 100_000_000}
    settings: dict[str, Any] = local if address is None else {}
    ray.init(address=address or "local", log_to_driver=False, logging_level=logging.WARNING, **settings)
    try:
        yield
    finally:
        ray.shutdown()


def run_trials(trials: Sequence[SweepTrial], settings: RunSettings, folder: Path) -> None:
    """Run all trials and fill in their results, in a block of :func:`cluster`; one that fails leaves the others alone.

    Args:
        trials: From :func:`~lightning_robust.sweeps.trials.plan`.
        settings: Resources, retries, and what is told of a trial.
        folder: Gets one folder for each trial; on a cluster, one that all machines share. A trial whose folder has
            checkpoints goes on from the last.

    Raises:
        ValueError: If a trial takes more than there is.
    """
    _require_room(settings.resources)
    _fill_in(trials, _tuner(trials, settings, folder).fit(), folder)


def require_ray() -> None:
    """Say how to install Ray where it is missing.

    Raises:
        ImportError: If Ray Tune cannot be imported.
    """
    try:
        import ray.tune  # noqa: F401
    except ImportError as error:
        raise ImportError(f"Expected Ray Tune for a sweep, but got: {error}. Install it with {_INSTALL}.") from error


def report_callback() -> TuneReportCheckpointCallback:
    """Ray's callback, which after each epoch hands the metrics and a full checkpoint to Tune.

    A trial whose process dies goes on from that checkpoint.
    """
    from ray.tune.integration.pytorch_lightning import TuneReportCheckpointCallback

    class Report(TuneReportCheckpointCallback):
        def _get_report_dict(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
            # under one key, apart from what Tune adds; with the progress, since Ray's callback saves no checkpoint
            # where it has nothing to report
            progress = {"epoch": float(trainer.current_epoch), "step": float(trainer.global_step)}
            return {_METRICS: progress | (super()._get_report_dict(trainer, pl_module) or {})}

    return Report(filename=_CHECKPOINT, on="train_epoch_end")


def train(config: dict[str, Any], *, configs: Mapping[int, str], folder: str) -> None:
    """Train one trial from its last checkpoint on, in its own folder; Tune calls this in a worker.

    Args:
        config: Tune's configuration: the number of the trial.
        configs: The configurations of all trials by number.
        folder: The folder of the sweep.
    """
    from ray import tune

    place = Path(folder) / f"{config['trial']:03d}"
    place.mkdir(parents=True, exist_ok=True)
    os.chdir(place)
    Path(CONFIG).write_text(configs[config["trial"]], encoding="utf-8")
    with _logged(Path("log.txt")), others_warnings_hidden(), tempfile.TemporaryDirectory() as copy:
        checkpoint = tune.get_checkpoint()
        last = Path(checkpoint.to_directory(copy)) / _CHECKPOINT if checkpoint is not None else _last_whole(Path.cwd())
        report, start = report_callback(), time.monotonic()
        cli = _fit_here(report, last)
        if last is not None and not cli.trainer.callback_metrics:
            # it died behind its last epoch: what callbacks do at the end needs the whole training
            report = report_callback()
            cli = _fit_here(report, None)
        # once more, with the weights and metrics that callbacks left after the fit
        report.on_train_epoch_end(cli.trainer, pl_module=cli.model)
        metrics = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
        result = {"metrics": jsonable(metrics), "seconds": time.monotonic() - start}
        unfinished = Path(f"{RESULT}.unfinished")
        unfinished.write_text(json.dumps(result, allow_nan=False), encoding="utf-8")
        unfinished.rename(RESULT)


def _fit_here(report: pl.Callback, last: Path | None) -> RobustCLI:
    """The command ``fit`` in the working folder, from a checkpoint or from the start."""
    arguments = ["fit", f"--config={CONFIG}", *([] if last is None else [f"--ckpt_path={last}"])]
    # the configuration stays as planned, without the path of a temporary checkpoint
    return RobustCLI(args=arguments, trainer_defaults={"callbacks": [report]}, save_config_callback=None)


def _last_whole(folder: Path) -> Path | None:
    """The newest checkpoint that a trial left when everything was killed; one that was being written is none."""
    for path in sorted(folder.glob(f"checkpoint_*/{_CHECKPOINT}"), reverse=True):
        with suppress(ValueError):
            read_checkpoint(path)
            return path
    return None


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Redirect the output and the traceback of an exception into a file."""
    with path.open("a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            yield
        except BaseException:
            traceback.print_exc(file=log)
            raise


def _require_room(resources: Resources) -> None:
    import ray

    room: dict[str, float] = ray.cluster_resources()
    for name, amount in (("CPU", resources.cpus), ("GPU", resources.gpus)):
        if amount > room.get(name, 0):
            raise ValueError(
                f"Expected room for a trial that takes {amount:g} {name}, but Ray has {room.get(name, 0):g}. "
                "Take less in `resources`, or name a cluster with --address."
            )


def _tuner(trials: Sequence[SweepTrial], settings: RunSettings, folder: Path) -> Tuner:
    from ray import tune

    function = functools.partial(train, configs={trial.number: trial.config for trial in trials}, folder=str(folder))
    resources = {"cpu": settings.resources.cpus, "gpu": settings.resources.gpus}
    return tune.Tuner(
        tune.with_resources(function, resources),
        param_space={"trial": tune.grid_search([trial.number for trial in trials])},
        tune_config=tune.TuneConfig(trial_name_creator=_name, trial_dirname_creator=_name),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            failure_config=tune.FailureConfig(max_failures=settings.retries),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            callbacks=[_progress(trials, settings)],
            verbose=0,
        ),
    )


def _name(trial: Any) -> str:
    return f"{trial.config['trial']:03d}"


def _progress(trials: Sequence[SweepTrial], settings: RunSettings) -> Any:
    """A callback of Tune that notes the status of each trial and prints a line whenever it changes."""
    from ray import tune

    start, by_number = time.monotonic(), {trial.number: trial for trial in trials}

    class Progress(tune.Callback):
        def _note(self, trial: SweepTrial, event: str) -> None:
            values = ", ".join(f"{key}={trial.values[key]}" for key in settings.shown)
            ended = sum(each.status in ("failed", "finished") for each in trials)
            left = words_left(ended, len(trials), time.monotonic() - start)
            print(f"trial {trial.name} ({values}): {event} [{left}]", flush=True)

        def on_trial_recover(self, *, trial: Any, **info: Any) -> None:
            ours = by_number[trial.config["trial"]]
            ours.retries += 1
            self._note(ours, "failed or was killed, goes on from its last checkpoint")

        def on_trial_error(self, *, trial: Any, **info: Any) -> None:
            ours = by_number[trial.config["trial"]]
            ours.status = "failed"
            self._note(ours, "failed, given up")

        def on_trial_complete(self, *, trial: Any, **info: Any) -> None:
            ours = by_number[trial.config["trial"]]
            ours.status = "finished"
            score = (trial.last_result or {}).get(_METRICS, {}).get(settings.told, math.nan)
            self._note(ours, f"finished, {settings.told} {score:.5g}")

    return Progress()


def _fill_in(trials: Sequence[SweepTrial], results: ResultGrid, folder: Path) -> None:
    by_number = {trial.number: trial for trial in trials}
    for result in results:
        if result.config is None:  # of a trial that was interrupted before its first epoch
            continue
        trial = by_number[result.config["trial"]]
        if (told := folder / trial.name / RESULT).is_file():
            trial.seconds = json.loads(told.read_text(encoding="utf-8"))["seconds"]
        trial.metrics = dict(sorted((result.metrics or {}).get(_METRICS, {}).items()))
        if result.checkpoint is not None:
            trial.checkpoint = Path(result.checkpoint.path) / _CHECKPOINT
        if result.error is not None:
            trial.error = textwrap.shorten(str(result.error).strip().splitlines()[-1], 160, placeholder=" ...")
