"""The trials of a sweep before they run: complete configurations, checked by the parser of the command line.

How Ray runs them stands in ``tune.py``.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from lightning_robust.cli import RobustCLI, RobustParser, others_warnings_hidden
from lightning_robust.sweeps.file import Sweep, Values, as_argument


@dataclass
class Trial:
    """One run of a sweep: what it was told and what came of it.

    Args:
        number: Position in the sweep.
        values: What was varied.
        config: The complete configuration, as YAML.
        status: ``"finished"``, ``"failed"``, or ``"unfinished"`` where the sweep was interrupted.
        retries: How often it went on after a failure.
        metrics: The last ones that it reported.
        checkpoint: Its last one, if it came to any.
        error: Why it failed, in one line.
    """

    number: int
    values: Values
    config: str
    status: str = "unfinished"
    retries: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    checkpoint: Path | None = None
    error: str = ""

    @property
    def name(self) -> str:
        """Its folder."""
        return f"{self.number:03d}"

    def score(self, monitor: str) -> float:
        """The monitored metric of a finished trial, NaN where there is none."""
        return self.metrics.get(monitor, math.nan) if self.status == "finished" else math.nan


def plan(sweep: Sweep) -> list[Trial]:
    """The trials with their complete configurations, each checked by the parser of the command line.

    Raises:
        FileNotFoundError: For a value that ends like a file of weights where there is none.
        ValueError: For a key or value that ``lightning-robust fit`` would refuse, naming it.
        ImportError: If a class of the configurations cannot be imported.
    """
    trials = []
    for number, values in enumerate(sweep.variants()):
        _require_weights(values)
        arguments = [f"--config={path}" for path in sweep.configs]
        arguments += [as_argument(key, value) for key, value in values.items()]
        try:
            trials.append(Trial(number, values, _complete(arguments)))
        except _Refusal as error:
            told = ", ".join(f"{key}={value}" for key, value in values.items())
            raise ValueError(f"Trial {number:03d} ({told}) over {', '.join(sweep.configs)}: {error}") from error
    return trials


class _Refusal(SystemExit):
    """The complaint of a parser, as the exit that it is: an Exception would be one failed guess among several."""


class _Parser(RobustParser):
    """Raises its complaint, for the command to tell."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise _Refusal(self.complaint(message))


class _Reader(RobustCLI):
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
            cli = _Reader(args=arguments, run=False, parser_class=_Parser, trainer_defaults=quiet)
    finally:
        seeding.setLevel(level)
    _require_one_process(cli.config.trainer)
    return cli.parser.dump(cli.config, skip_none=False)


def _require_weights(values: Values) -> None:
    for key, value in values.items():
        if isinstance(value, str) and value.endswith((".ckpt", ".pt", ".safetensors")) and not Path(value).is_file():
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
