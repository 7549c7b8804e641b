"""The file of a sweep: read and checked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import jsonargparse

from lightning_robust.harness.kept_checkpoints import is_checkpoint
from lightning_robust.reading import read_yaml
from lightning_robust.suggest import did_you_mean

# distribution of Ray Tune -> types of its bounds
_BOUNDS: dict[str, tuple[type, ...]] = {"uniform": (int, float), "loguniform": (int, float), "randint": (int,)}
_FORMS = "a list of values, {uniform: [low, high]}, {loguniform: [low, high]} or {randint: [low, high]}"


@dataclass(frozen=True)
class Resources:
    """What one trial takes from a machine.

    Args:
        cpus: Cores.
        gpus: GPUs: 0, 1, or a fraction where several trials share one.
    """

    cpus: float = 1
    gpus: float = 0

    def __post_init__(self) -> None:
        """Refuse amounts that no trial can take."""
        if self.cpus <= 0:
            raise ValueError(f"Expected `resources.cpus` to be positive, but got {self.cpus}. Give each trial a core.")
        if not 0 <= self.gpus <= 1:
            raise ValueError(
                f"Expected `resources.gpus` from 0 to 1, but got {self.gpus}. A trial is one process; a run over "
                "several GPUs is started by configs/cluster/torchrun.sh or slurm.sh instead."
            )


@dataclass(frozen=True)
class RunSettings:
    """What many runs share.

    Args:
        configs: Configuration files of ``lightning-robust fit``, later ones over earlier ones; relative to the file.
        resources: Cores and GPUs of one run.
        retries: How often a run that failed or was killed goes on from its last checkpoint before it is given up.
    """

    configs: list[str]
    resources: Resources = field(default_factory=Resources, kw_only=True)
    retries: int = field(default=2, kw_only=True)

    @property
    def shown(self) -> list[str]:
        """The values of a run that name it where it is told of."""
        raise NotImplementedError

    @property
    def told(self) -> str:
        """The metric that is told of when a run has ended."""
        raise NotImplementedError


Settings = TypeVar("Settings", bound=RunSettings)


@dataclass(frozen=True)
class Sweep(RunSettings):
    """The settings of a sweep.

    Args:
        configs: Configuration files of ``lightning-robust fit``, later ones over earlier ones; relative to the file.
        vary: Dotted key of the command line -> list of values (every combination is tried), or ``{uniform: [low,
            high]}``, ``{loguniform: [low, high]}``, ``{randint: [low, high]}`` (without ``high``), drawn anew for
            each trial.
        monitor: Metric that trials are compared by.
        mode: Whether larger or smaller is better.
        num_samples: How often each combination is tried, with fresh draws.
        seed: Seed of the draws.
        resources: Cores and GPUs of one trial.
        retries: How often a trial that failed or was killed goes on from its last checkpoint before it is given up.
        soup: Arguments of ``lightning-robust soup``, which averages the trials' checkpoints; ``monitor`` and ``mode``
            default to the sweep's.
    """

    vary: dict[str, Any]
    monitor: str
    mode: Literal["max", "min"]
    num_samples: int = 1
    seed: int = 0
    soup: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuse a sweep that would run nothing, or the same trial twice."""
        if not self.configs or not self.vary:
            raise ValueError("Expected at least one file in `configs` and one key in `vary`, but got none. Add one.")
        for key, values in self.vary.items():
            _check_values(key, values)
        if self.num_samples < 1 or self.retries < 0:
            raise ValueError(
                f"Expected `num_samples` of at least 1 and `retries` of at least 0, but got {self.num_samples} and "
                f"{self.retries}."
            )
        if self.num_samples > 1 and all(isinstance(values, list) for values in self.vary.values()):
            raise ValueError(
                f"Expected a key that is drawn at random with `num_samples` {self.num_samples}, but `vary` only holds "
                "lists: every sample would be the same. Take `num_samples` out, or vary `seed_everything`."
            )

    @property
    def shown(self) -> list[str]:
        """The keys that take more than one value."""
        return [key for key, values in self.vary.items() if isinstance(values, dict) or len(values) > 1]

    @property
    def told(self) -> str:
        """What the runs are compared by."""
        return self.monitor


def read_settings(path: str | Path, kind: type[Settings]) -> Settings:
    """Read and check the file of a sweep or of a choice.

    Args:
        path: YAML with the arguments of the class.
        kind: :class:`Sweep` or :class:`~lightning_robust.sweeps.choice.Choice`.

    Returns:
        The settings, their ``configs`` as absolute paths.

    Raises:
        FileNotFoundError: If the file or one of its ``configs`` does not exist.
        ValueError: For a key that is not known, with the nearest one, and for values out of range.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"Expected the file of a {kind.__name__.lower()} at {file}, but there is no such file.")
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise ValueError(f"Expected keys with values in {file}, but got {content!r}. Begin with `configs:`.")
    refuse_unknown(content, [entry.name for entry in dataclasses.fields(kind)], str(file))
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "settings")
    try:
        settings: Settings = parser.instantiate_classes(parser.parse_object({"settings": content})).settings
    except (jsonargparse.ArgumentError, TypeError) as error:
        raise ValueError(f"{file}: {error}") from error
    configs = [(file.parent / config).resolve() for config in settings.configs]
    for config in configs:
        if not config.is_file():
            raise FileNotFoundError(
                f"Expected a configuration at {config}, but there is no such file. Paths in `configs` are relative to "
                f"{file}."
            )
    return dataclasses.replace(settings, configs=[*map(str, configs)])


def refuse_unknown(keys: Iterable[str], known: list[str], where: str) -> None:
    """Refuse a key that is not known, and suggest the nearest one.

    Raises:
        ValueError: If there is such a key.

    Example:
        >>> refuse_unknown(["vari"], ["configs", "vary"], "soup.yaml")
        Traceback (most recent call last):
        ValueError: Expected keys out of configs, vary in soup.yaml, but got 'vari'. Did you mean 'vary'?
    """
    for key in keys:
        if key not in known:
            hint = did_you_mean(str(key), known, 1)
            raise ValueError(f"Expected keys out of {', '.join(known)} in {where}, but got {key!r}.{hint}")


def as_argument(key: str, value: Any) -> str:
    """One varied value as an argument of the command line.

    A string that names an existing file is made absolute, since trials run in folders of their own.

    Example:
        >>> as_argument("swa", True), as_argument("optimizer", "torch.optim.SGD")
        ('--swa=true', '--optimizer=torch.optim.SGD')
    """
    if isinstance(value, str):
        return f"--{key}={Path(value).resolve() if is_checkpoint(Path(value)) else value}"
    return f"--{key}={json.dumps(value)}"


def _check_values(key: str, values: Any) -> None:
    if isinstance(values, list) and values:
        return
    if not isinstance(values, dict) or len(values) != 1:
        raise ValueError(f"Expected {_FORMS} for `vary.{key}`, but got {values!r}.")
    refuse_unknown(values, list(_BOUNDS), f"`vary.{key}`")
    ((distribution, bounds),) = values.items()
    _check_bounds(f"`vary.{key}.{distribution}`", distribution, bounds)


def _check_bounds(where: str, distribution: str, bounds: Any) -> None:
    types = _BOUNDS[distribution]
    if not isinstance(bounds, list) or len(bounds) != 2 or not {type(bound) for bound in bounds} <= {*types}:
        numbers = "two numbers" if float in types else "two integers"
        raise ValueError(f"Expected {numbers} [low, high] for {where}, but got {bounds!r}. Write 1.0e-3.")
    low, high = bounds
    positive = distribution == "loguniform"
    if not low < high or (positive and low <= 0):
        raise ValueError(
            f"Expected {'positive bounds, ' if positive else ''}low < high for {where}, but got {bounds!r}."
        )
