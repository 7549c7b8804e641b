"""The trials of a sweep as Ray Tune runs them, each one ``lightning-robust fit`` in a process of its own.

What a trial is stands in ``trials.py``, what is printed and written in ``sweep.py``.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import tempfile
import textwrap
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from lightning_robust.cli import RobustCLI, others_warnings_hidden
from lightning_robust.sweeps.file import Resources, Sweep
from lightning_robust.sweeps.trials import Trial

if TYPE_CHECKING:
    from ray.tune import ResultGrid, Tuner

CHECKPOINT = "last.ckpt"
_INSTALL = "pip install 'lightning_robust[sweep]'"


def run_trials(trials: Sequence[Trial], sweep: Sweep, folder: Path, address: str | None, cpus: int | None) -> None:
    """Run them all and fill in what came of each; one that fails leaves the others alone.

    Args:
        trials: Of :func:`plan`.
        sweep: Resources and retries.
        folder: For one folder a trial; on a cluster one that all machines share.
        address: Of a running Ray cluster, or None for this machine.
        cpus: How many cores of this machine to use; None is all.

    Raises:
        ImportError: If Ray is not installed.
        ValueError: If a trial wants more than there is.
    """
    with _cluster(address, cpus):
        _require_room(sweep.resources)
        _fill_in(trials, _tuner(trials, sweep, folder).fit())


def require_ray() -> None:
    """Say how to install Ray where it is missing.

    Raises:
        ImportError: If Ray Tune cannot be imported.
    """
    try:
        import ray.tune  # noqa: F401
    except ImportError as error:
        raise ImportError(f"Expected Ray Tune for a sweep, but got: {error}. Install it with {_INSTALL}.") from error


class Report(Callback):
    """Tells Tune the metrics after each epoch, with a checkpoint that the trial goes on from if its process dies."""

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report what validation and training logged."""
        report(trainer)


def report(trainer: pl.Trainer) -> None:
    """Hand the metrics and a full checkpoint to Tune, which keeps the newest one."""
    from ray import tune

    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    with tempfile.TemporaryDirectory() as folder:
        trainer.save_checkpoint(Path(folder) / CHECKPOINT)
        progress = {"epoch": float(trainer.current_epoch), "step": float(trainer.global_step)}
        tune.report(progress | metrics, checkpoint=tune.Checkpoint.from_directory(folder))


def train(given: dict[str, Any], *, configs: Sequence[str], folder: str) -> None:
    """One trial, in Ray's worker: train from its last checkpoint on, in its own folder; what Tune calls.

    Args:
        given: Tune's configuration: the trial's number.
        configs: The configurations of all trials.
        folder: The sweep's folder.
    """
    from ray import tune

    place = Path(folder) / f"{given['trial']:03d}"
    place.mkdir(parents=True, exist_ok=True)
    os.chdir(place)
    Path("config.yaml").write_text(configs[given["trial"]], encoding="utf-8")
    arguments = ["fit", "--config=config.yaml"]
    with _logged(Path("log.txt")), others_warnings_hidden(), tempfile.TemporaryDirectory() as copy:
        checkpoint = tune.get_checkpoint()
        if checkpoint is not None:
            arguments.append(f"--ckpt_path={Path(checkpoint.to_directory(copy)) / CHECKPOINT}")
        # the configuration stays as planned, without the path of a checkpoint that is gone tomorrow
        cli = RobustCLI(args=arguments, trainer_defaults={"callbacks": [Report()]}, save_config_callback=None)
        # once more, for what callbacks did to weights and metrics when the fit had ended
        report(cli.trainer)


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """What is printed goes into a file, and so does the traceback of an exception."""
    with path.open("a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            yield
        except BaseException:
            traceback.print_exc(file=log)
            raise


@contextmanager
def _cluster(address: str | None, cpus: int | None) -> Iterator[None]:
    """Ray, ours to end or, where one runs in this process already, not."""
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # one checkpoint is kept, so that Tune notes its state at every epoch, and warns of that
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    # the reporter that `verbose=0` silences
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # trials exchange nothing, so that little memory is enough
    own = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": 100_000_000}
    here: dict[str, Any] = own if address is None else {}
    ray.init(address=address or "local", log_to_driver=False, logging_level=logging.WARNING, **here)
    try:
        yield
    finally:
        ray.shutdown()


def _require_room(wanted: Resources) -> None:
    import ray

    there: dict[str, float] = ray.cluster_resources()
    for name, amount in (("CPU", wanted.cpus), ("GPU", wanted.gpus)):
        if amount > there.get(name, 0):
            raise ValueError(
                f"Expected room for a trial that takes {amount:g} {name}, but Ray has {there.get(name, 0):g}. "
                "Take less in `resources`, or name a cluster with --address."
            )


def _tuner(trials: Sequence[Trial], sweep: Sweep, folder: Path) -> Tuner:
    from ray import tune

    function = functools.partial(train, configs=[trial.config for trial in trials], folder=str(folder))
    taken = {"cpu": sweep.resources.cpus, "gpu": sweep.resources.gpus}
    return tune.Tuner(
        tune.with_resources(function, taken),
        param_space={"trial": tune.grid_search([trial.number for trial in trials])},
        tune_config=tune.TuneConfig(trial_name_creator=_name, trial_dirname_creator=_name),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            failure_config=tune.FailureConfig(max_failures=sweep.retries),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            callbacks=[_progress(trials, sweep)],
            verbose=0,
        ),
    )


def _name(trial: Any) -> str:
    return f"{trial.config['trial']:03d}"


def _progress(planned: Sequence[Trial], sweep: Sweep) -> Any:
    """Notes and prints what becomes of each trial."""
    from ray import tune

    class Progress(tune.Callback):
        def _say(self, trial: Trial, what: str) -> None:
            values = ", ".join(f"{key}={trial.values[key]}" for key in sweep.varied)
            print(f"trial {trial.name} ({values}): {what}", flush=True)

        def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            ours = planned[trial.config["trial"]]
            ours.retries += 1
            self._say(ours, "failed or was killed, goes on from its last checkpoint")

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            ours = planned[trial.config["trial"]]
            ours.status = "failed"
            self._say(ours, "failed, given up")

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            ours = planned[trial.config["trial"]]
            ours.status = "finished"
            self._say(ours, f"finished, {sweep.monitor} {(trial.last_result or {}).get(sweep.monitor, math.nan):.5g}")

    return Progress()


def _fill_in(trials: Sequence[Trial], results: ResultGrid) -> None:
    for result in map(results.__getitem__, range(len(results))):
        trial = trials[(result.config or {})["trial"]]
        reported = {str(name): value for name, value in (result.metrics or {}).items()}
        own = set(reported) - _TUNES_OWN
        trial.metrics = {name: float(reported[name]) for name in sorted(own) if isinstance(reported[name], int | float)}
        trial.checkpoint = Path(result.checkpoint.path) / CHECKPOINT if result.checkpoint is not None else None
        if result.error is not None:
            trial.error = textwrap.shorten(str(result.error).strip().splitlines()[-1], 160, placeholder=" ...")


# what Tune adds to the metrics of a trial
_TUNES_OWN = {
    *("timestamp", "checkpoint_dir_name", "done", "training_iteration", "trial_id", "date", "time_this_iter_s"),
    *("time_total_s", "pid", "hostname", "node_ip", "config", "time_since_restore", "iterations_since_restore"),
    *("should_checkpoint", "experiment_tag", "config/trial"),
}
