"""The interface of an engine: whether it can be built and executed on this machine, and how to build it."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_robust.deployment.engines.abilities import Ability
from lightning_robust.deployment.engines.latency import time_runs
from lightning_robust.deployment.engines.settings import DEFAULTS, BuildSettings
from lightning_robust.deployment.engines.subject import Subject
from lightning_robust.deployment.graph.export import Exported
from lightning_robust.deployment.graph.frozen import named_inputs
from lightning_robust.structures import flatten, map_tensors

Runner = Callable[[tuple[Any, ...]], list[Tensor]]
Clock = Callable[[tuple[Any, ...]], list[float]]
"""Takes one batch as positional arguments of ``forward`` and gives the seconds of each of several inferences on it."""
HALF = ("fp16", "bf16")


@dataclass(frozen=True)
class Built:
    """The result of a build.

    Args:
        run: Takes the positional arguments of ``forward`` and returns the flattened outputs on the CPU; None for an
            engine that cannot be executed here.
        size: Bytes of the engine, where there is one.
        note: One line for the report.
        warning: What the user should know although the build succeeded.
        layers: Precision -> how many of the executed layers compute in it, as the engine itself says, e.g.
            ``{"bf16": 12, "fp32": 1}``; empty where it does not say.
        clock: Times the engine; None where the time would say nothing of a deployed engine, as that of an emulation.
        batch: The samples in one inference, where the file fixes them; else as it is deployed.
    """

    run: Runner | None
    size: int | None = None
    note: str = ""
    warning: str = ""
    layers: Mapping[str, int] = field(default_factory=dict)
    clock: Clock | None = None
    batch: int | None = None


class BulkRunner:
    """A runner that takes any number of samples, and several sets of them, at once: its start costs more than they do.

    Args:
        run_sets: For each tuple of arguments the outputs.

    Example:
        >>> double = BulkRunner(lambda sets: [[2 * args[0]] for args in sets])
        >>> double((torch.tensor([1, 2]),))
        [tensor([2, 4])]
    """

    def __init__(self, run_sets: Callable[[Sequence[tuple[Any, ...]]], list[list[Tensor]]]) -> None:
        self.run_sets = run_sets

    def __call__(self, args: tuple[Any, ...]) -> list[Tensor]:
        """The outputs on one tuple of arguments."""
        return self.run_sets([args])[0]


class Runtime(abc.ABC):
    """One engine at one precision.

    Args:
        runtime: Name of the engine, e.g. ``"onnxruntime"``.
        precision: ``"fp64"``, ``"fp32"``, ``"tf32"``, ``"fp16"`` or ``"bf16"``.

    Attributes:
        slow: Whether a build takes minutes in a process of its own, so that it may run beside the training.
    """

    slow = False

    def __init__(self, runtime: str, precision: str) -> None:
        self.runtime = runtime
        self.precision = precision

    @property
    def name(self) -> str:
        """``"<runtime>-<precision>"``, as in the tags."""
        return f"{self.runtime}-{self.precision}"

    def can_build(self, settings: BuildSettings = DEFAULTS) -> Ability:
        """Whether an engine can be built where the settings say, and why not."""
        return Ability(True)

    def can_run(self, settings: BuildSettings = DEFAULTS) -> Ability:
        """Whether a built engine can be executed where the settings say, and why not."""
        return Ability(True)

    @abc.abstractmethod
    def build(self, subject: Subject) -> Built:
        """Build the engine.

        Raises:
            ExportError: If the model cannot be exported to ONNX.
            EngineError: If the builder refuses, crashes, or takes too long.
        """


def run_module(module: nn.Module, args: tuple[Any, ...]) -> list[Tensor]:
    """Call a module without gradients; the flattened outputs, on the CPU, complex ones as pairs of numbers.

    The module gets copies, which it may change in place.
    """
    with torch.no_grad():
        outputs = flatten(module(*map_tensors(Tensor.clone, args))).values()
        return [_in_pairs(tensor).cpu() if tensor.is_complex() else tensor.cpu() for tensor in outputs]


def _in_pairs(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj())


def host_clock(run: Runner) -> Clock:
    """Times a runner whose outputs are on the CPU when it returns, by the clock of this process.

    Example:
        >>> clock = host_clock(lambda args: [2 * args[0]])
        >>> 0 < min(clock((torch.ones(1, 3),))) < 1
        True
    """
    return lambda args: time_runs(lambda: run(args))


def input_tensors(args: tuple[Any, ...]) -> list[Tensor]:
    """The tensors in the positional arguments of ``forward``, in the order of the graph's inputs."""
    return list(named_inputs(args).values())


def feed(args: tuple[Any, ...], exported: Exported) -> dict[str, np.ndarray[Any, Any]]:
    """Input name -> array, of the positional arguments of ``forward``."""
    return {name: t.detach().numpy() for name, t in zip(exported.inputs, input_tensors(args), strict=True)}
