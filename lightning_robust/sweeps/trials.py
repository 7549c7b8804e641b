"""The trials of a sweep before they run: complete configurations, checked by the parser of the command line."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from lightning_robust.cli.hidden_warnings import others_warnings_hidden
from lightning_robust.cli.robust_cli import RobustCLI
from lightning_robust.cli.training_parser import RobustParser
from lightning_robust.harness.kept_checkpoints import is_checkpoint
from lightning_robust.sweeps.file import Sweep, as_argument

if TYPE_CHECKING:
    from ray.tune.search.sample import Domain


@dataclass
class SweepTrial:
    """One run of a sweep: its settings and its results.

    Args:
        number: Position in the sweep.
        values: The varied keys and their values.
        config: The complete configuration, as YAML.
        status: ``"finished"``, ``"failed"``, or ``"unfinished"`` where the sweep was interrupted.
        retries: How often it went on after a failure.
        metrics: The metrics of its last report.
        checkpoint: Its last checkpoint, None before the first epoch ended.
        error: Why it failed, in one line.
        seconds: What it took, pauses between attempts not counted.
    """

    number: int
    values: dict[str, Any]
    config: str
    status: str = "unfinished"
    retries: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    checkpoint: Path | None = None
    error: str = ""
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.number:03d}"

    def score(self, monitor: str) -> float:
        """The monitored metric of a finished trial, NaN where there is none."""
        return self.metrics.get(monitor, math.nan) if self.status == "finished" else math.nan

    def as_dict(self) -> dict[str, Any]:
        """Everything but the configuration, for JSON, which has no NaN and no infinity."""
        metrics = {name: value if math.isfinite(value) else None for name, value in self.metrics.items()}
        entry = {"trial": self.name, "values": self.values, "status": self.status, "retries": self.retries}
        return entry | {"metrics": metrics, "checkpoint": self.checkpoint and str(self.checkpoint), "error": self.error}


def plan(sweep: Sweep) -> list[SweepTrial]:
    """The trials with their complete configurations, each checked by the parser of the command line.

    Raises:
        FileNotFoundError: For a value that ends like a file of weights where there is none.
        ValueError: For a key or value that ``lightning-robust fit`` would refuse.
        ImportError: If a class of the configurations cannot be imported, or values are drawn and Ray is missing.
    """
    return [
        SweepTrial(number, values, complete(sweep.configs, values, f"Trial {number:03d}"))
        for number, values in enumerate(draw_values(sweep))
    ]


def complete(configs: Sequence[str], values: Mapping[str, Any], name: str) -> str:
    """The whole configuration of a run, as one file.

    Args:
        configs: The files.
        values: Key -> value over them.
        name: Of the run, in messages.

    Raises:
        FileNotFoundError: For a value that ends like a file of weights where there is none.
        ValueError: For a key or value that ``lightning-robust fit`` would refuse.
        ImportError: If a class of the configurations cannot be imported.
    """
    _require_weights(values)
    arguments = [f"--config={path}" for path in configs]
    arguments += [as_argument(key, value) for key, value in values.items()]
    try:
        return _complete(arguments)
    except _Refusal as error:
        settings = ", ".join(f"{key}={value}" for key, value in values.items())
        raise ValueError(f"{name} ({settings}) over {', '.join(configs)}: {error}") from error


def draw_values(sweep: Sweep) -> list[dict[str, Any]]:
    """The varied keys and their values, for each trial.

    Numbers are drawn from the distributions of Ray Tune, before Tune starts, so that a value which the command line
    refuses stops the sweep before its first trial. Lists are combined in the order of the file, since Tune's own grid
    orders keys by name.

    Example:
        >>> for values in draw_values(Sweep(["a.yaml"], {"lr": [0.1, 0.2], "swa": [True]}, "val/acc", "max")):
        ...     print(values)
        {'lr': 0.1, 'swa': True}
        {'lr': 0.2, 'swa': True}
    """
    generator = np.random.default_rng(sweep.seed)
    lists = {key: values for key, values in sweep.vary.items() if isinstance(values, list)}
    domains = {key: _domain(values) for key, values in sweep.vary.items() if isinstance(values, dict)}
    drawn = []
    for _, combination in itertools.product(range(sweep.num_samples), itertools.product(*lists.values())):
        values = dict(zip(lists, combination, strict=True))
        values |= {key: domain.sample(random_state=generator) for key, domain in domains.items()}
        drawn.append({key: values[key] for key in sweep.vary})
    return drawn


def _domain(distribution: dict[str, list[float]]) -> Domain:
    """``{loguniform: [low, high]}`` as Ray Tune's search space."""
    from ray import tune

    ((name, bounds),) = distribution.items()
    domain: Domain = getattr(tune, name)(*bounds)
    return domain


class _Refusal(SystemExit):
    """The complaint of a parser. No Exception, which jsonargparse would take for one failed guess among several."""


class _RefusingParser(RobustParser):
    """Raises its complaint instead of printing it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise _Refusal(self.complaint(message))


class _ParsingCLI(RobustCLI):
    """Parses, and builds nothing."""

    def instantiate_classes(self) -> None:
        """Leave the classes alone."""


def _complete(arguments: list[str]) -> str:
    """All keys with their values, as one file."""
    seeding = logging.getLogger("lightning.fabric.utilities.seed")
    level = seeding.level
    seeding.setLevel(logging.WARNING)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    try:
        with others_warnings_hidden():
            cli = _ParsingCLI(args=arguments, run=False, parser_class=_RefusingParser, trainer_defaults=quiet)
    finally:
        seeding.setLevel(level)
    _require_one_process(cli.config.trainer)
    return cli.parser.dump(cli.config, skip_none=False)


def _require_weights(values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        is_file = isinstance(value, str) and value.endswith((".ckpt", ".pt", ".safetensors"))
        if is_file and not is_checkpoint(Path(value)):
            raise FileNotFoundError(
                f"Expected a file for `vary.{key}` at {Path(value).resolve()}, but there is none. Train it first, or "
                "start the sweep from the folder that the path is relative to."
            )


def _require_one_process(trainer: Any) -> None:
    devices = len(trainer.devices) if isinstance(trainer.devices, list) else trainer.devices
    if trainer.num_nodes != 1 or str(devices) not in ("auto", "1", "-1"):
        raise ValueError(
            f"Expected one device for each trial, but got `trainer.devices: {trainer.devices}` on `trainer.num_nodes: "
            f"{trainer.num_nodes}`. A run over several is started by configs/cluster/torchrun.sh or slurm.sh instead."
        )
