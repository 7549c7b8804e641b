"""What can execute the model: one small class per engine, which says what it can do here, builds, and runs.

How far the results are from the reference is ``parity/measure.py``'s business.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from lightning_robust.deployment.engines import builder
from lightning_robust.deployment.engines.builder import Ability
from lightning_robust.deployment.graph.export import Exported, export, to_args
from lightning_robust.deployment.graph.lint import Finding, lint
from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.numerics.convert import Half, to_half
from lightning_robust.deployment.numerics.emulate import Precision, emulate
from lightning_robust.structures import flatten
from lightning_robust.suggest import did_you_mean

Runner = Callable[[tuple[Any, ...]], list[Tensor]]
_DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
HALF = ("fp16", "bf16")
_YES = Ability(True, "")


@dataclass
class Subject:
    """The model under examination.

    Args:
        module: An fp32 copy on the CPU in evaluation mode, from :func:`~.export.frozen_copy`.
        example: Positional arguments of its ``forward``, a batch of at least 2.
        max_batch: The largest batch that engines are built for.
        device: Where ``torch-fp16`` and ``torch-bf16`` run, e.g. ``"cuda"``.
        time_limit: Seconds that one engine build may take.
        weakly_typed: Build ``tensorrt-fp16`` with TensorRT 10's fp16 flag, which lets TensorRT choose a precision for
            each layer, instead of from an fp16-typed graph.
        refit: Set new weights in an engine that was built for the same graph, where engines can be run at all.
        cache: Folder of built engines; the user's cache folder if None.
        keep_fp32: Names of nodes, or paths of modules with all in them, that stay fp32 in fp16 and bf16 graphs.
    """

    module: nn.Module
    example: tuple[Any, ...]
    max_batch: int = 16
    device: str = "cpu"
    time_limit: float = 300.0
    weakly_typed: bool = False
    refit: bool = False
    cache: Path | None = None
    keep_fp32: tuple[str, ...] = ()
    reference: ClassVar[str | None] = None
    """What its own outputs are called where they are the only reference; None compares with PyTorch in fp64."""
    _exported: Exported | None = field(default=None, init=False, repr=False, compare=False)
    _error: Exception | None = field(default=None, init=False, repr=False)

    @property
    def exported(self) -> Exported:
        """The ONNX graph, made at the first use; an export that failed is not tried again.

        Raises:
            ExportError: If it cannot be exported.
        """
        if self._error is not None:
            raise self._error
        if self._exported is None:
            try:
                self._exported = export(self.module, self.example, max_batch=self.max_batch)
            except Exception as error:
                self._error = error
                raise
        return self._exported

    def kept_nodes(self) -> tuple[str, ...]:
        """The nodes that :attr:`keep_fp32` names.

        Raises:
            ValueError: If a name is neither a node's nor a module's; the message names the nearest.
        """
        exported = self.exported
        names = [node.name for node in exported.model.graph.node]
        paths = {name: exported.origins[name].module for name in names if name in exported.origins}
        kept: set[str] = set()
        for wanted in self.keep_fp32:
            found = {n for n in names if n == wanted} or {
                n for n, path in paths.items() if path == wanted or path.startswith(f"{wanted}.")
            }
            if not found:
                hint = did_you_mean(wanted, [*names, *paths.values()])
                raise ValueError(f"Expected nodes or modules in `keep_fp32`, but got {wanted!r}.{hint}")
            kept |= found
        return tuple(name for name in names if name in kept)

    def findings(self) -> tuple[Finding, ...]:
        """What :func:`~.lint.lint` reads off the graph; nothing as long as no runtime has asked for the graph."""
        exported = self._exported
        return () if exported is None else tuple(lint(exported.model, exported.origins))


@dataclass(frozen=True)
class Built:
    """What a build leaves behind.

    Args:
        run: Takes the positional arguments of ``forward`` and returns the flattened outputs on the CPU; None for an
            engine that cannot be executed here.
        size: Bytes of the engine, where there is one.
        note: One line for the report.
        warning: What the user should know although it went well.
    """

    run: Runner | None
    size: int | None = None
    note: str = ""
    warning: str = ""


class Runtime(abc.ABC):
    """One engine at one precision.

    Args:
        runtime: Name of the engine, e.g. ``"onnxruntime"``.
        precision: ``"fp64"``, ``"fp32"``, ``"tf32"``, ``"fp16"`` or ``"bf16"``.

    Attributes:
        slow: Whether it works in a process of its own for long, so that it may do so beside the training.
    """

    slow = False

    def __init__(self, runtime: str, precision: str) -> None:
        self.runtime = runtime
        self.precision = precision

    @property
    def name(self) -> str:
        """``"<runtime>-<precision>"``, as in the tags."""
        return f"{self.runtime}-{self.precision}"

    def can_build(self) -> Ability:
        """Whether an engine can be built here, and why not."""
        return _YES

    def can_run(self) -> Ability:
        """Whether a built engine can be executed here, and why not."""
        return _YES

    @abc.abstractmethod
    def build(self, subject: Subject) -> Built:
        """Make the engine.

        Raises:
            ExportError: If the model cannot be turned into ONNX.
            EngineError: If the builder refuses, crashes, or takes too long.
        """


class TorchRuntime(Runtime):
    """PyTorch itself, in another precision. Half precision runs on the subject's device, the rest on the CPU."""

    def build(self, subject: Subject) -> Built:
        """Copy the module into the precision."""
        dtype = _DTYPES[self.precision]
        device = subject.device if self.precision in HALF else "cpu"
        module = copy.deepcopy(subject.module).to(device, dtype)
        return Built(lambda args: run_module(module, to_args(args, dtype, device)))


class OnnxRuntime(Runtime):
    """ONNX Runtime on the CPU, in fp32."""

    def build(self, subject: Subject) -> Built:
        """Open a session on the exported graph."""
        exported = subject.exported
        return Built(_executed(exported.model, exported))


class EmulatedRuntime(Runtime):
    """Another precision's arithmetic on ONNX Runtime's CPU provider, see :mod:`~.emulation`."""

    def build(self, subject: Subject) -> Built:
        """Open a session on the graph with roundings."""
        exported = subject.exported
        kept = subject.kept_nodes() if self.precision in HALF else ()
        model = emulate(exported.model, cast(Precision, self.precision), kept)
        if len(model.graph.node) == len(exported.model.graph.node) and not kept:
            raise ValueError("Expected nodes to round, but none computes in fp32. Measure the fp32 graph.")
        note = f"emulated, every node rounded but the {len(kept)} kept" if kept else "emulated, every node rounded"
        return Built(_executed(model, exported), note=note)


class TensorRTRuntime(Runtime):
    """TensorRT or TensorRT-RTX through Polygraphy, strongly typed, built and run in a child process."""

    slow = True

    @property
    def _backend(self) -> builder.Backend:
        return cast(builder.Backend, self.runtime)

    def can_build(self) -> Ability:
        """Whether the package (and, for full TensorRT, a GPU) is here."""
        return builder.can_build(self._backend)

    def can_run(self) -> Ability:
        """Whether there is a CUDA device to execute the engine on."""
        return builder.can_run(self._backend)

    def build(self, subject: Subject) -> Built:
        """Build the engine, or take it from the cache."""
        exported = subject.exported
        weakly = subject.weakly_typed and self.runtime == "tensorrt" and self.precision == "fp16"
        model = exported.model
        if self.precision in HALF and not weakly:
            model = to_half(model, cast(Half, self.precision), subject.kept_nodes())
        able = self.can_run()
        settings: dict[str, Any] = {
            "backend": self._backend,
            "profile": profile(exported, subject),
            "directory": subject.cache,
            "time_limit": subject.time_limit,
            "weakly_typed": "fp16" if weakly else None,
        }
        engine, warning = _build(model.SerializeToString(), settings, refit=subject.refit and bool(able))
        if not able:
            return Built(None, engine.size, f"not run: {able.reason}")

        def run(args: tuple[Any, ...]) -> list[Tensor]:
            results = builder.run_engine(engine, feed(args, exported), time_limit=subject.time_limit)
            return [torch.from_numpy(results[name]) for name in exported.outputs]

        notes = {"weakly typed": weakly, "refittable": "REFIT" in engine.flags.split()}
        return Built(run, engine.size, ", ".join(note for note, true in notes.items() if true), warning)


def run_module(module: nn.Module, args: tuple[Any, ...]) -> list[Tensor]:
    """Call a module without gradients; the flattened outputs, on the CPU."""
    with torch.no_grad():
        return [tensor.cpu() for tensor in flatten(module(*args)).values()]


def profile(exported: Exported, subject: Subject) -> builder.Profile:
    """Smallest, usual and largest shape of every input, for the engine's optimisation profile."""
    shapes = {}
    tensors = zip(exported.model.graph.input, _flat(subject.example), strict=True)
    for value, tensor in tensors:
        dynamic = bool(value.type.tensor_type.shape.dim) and value.type.tensor_type.shape.dim[0].dim_param
        sizes = (1, min(tensor.shape[0], subject.max_batch), subject.max_batch) if dynamic else ()
        low, usual, high = ((size, *tensor.shape[1:]) for size in sizes) if sizes else (tuple(tensor.shape),) * 3
        shapes[value.name] = (low, usual, high)
    return shapes


def runtime(target: str) -> Runtime:
    """The runtime of a target's name.

    Args:
        target: ``"<runtime>-<precision>"``, one of :data:`TARGETS`.

    Raises:
        ValueError: For an unknown name; the message names the nearest.

    Example:
        >>> runtime("emulated-fp16").precision
        'fp16'
    """
    if target not in TARGETS:
        hint = did_you_mean(target, TARGETS)
        raise ValueError(f"Expected a target out of {sorted(TARGETS)}, but got {target!r}.{hint}")
    name, precision = target.rsplit("-", 1)
    return TARGETS[target](name, precision)


def available(targets: Literal["auto"] | list[str]) -> list[Runtime]:
    """The runtimes that were asked for, or with ``"auto"`` all that this machine can build.

    ``"auto"`` leaves out torch in half precision on a CPU, which the emulation covers at a lower cost.

    Example:
        >>> [r.name for r in available(["torch-fp32", "emulated-fp16"])]
        ['torch-fp32', 'emulated-fp16']
    """
    if targets != "auto":
        return [runtime(target) for target in targets]
    skip = {"torch-fp32"} if torch.cuda.is_available() else {"torch-fp32", "torch-fp16", "torch-bf16"}
    return [made for made in map(runtime, TARGETS) if made.name not in skip and made.can_build()]


TARGETS: dict[str, type[Runtime]] = {
    "torch-fp32": TorchRuntime,
    "torch-fp16": TorchRuntime,
    "torch-bf16": TorchRuntime,
    "onnxruntime-fp32": OnnxRuntime,
    "emulated-tf32": EmulatedRuntime,
    "emulated-fp16": EmulatedRuntime,
    "emulated-bf16": EmulatedRuntime,
    "tensorrt-fp32": TensorRTRuntime,
    "tensorrt-fp16": TensorRTRuntime,
    "tensorrt-bf16": TensorRTRuntime,
    "tensorrt_rtx-fp32": TensorRTRuntime,
    "tensorrt_rtx-fp16": TensorRTRuntime,
}


def _build(model: bytes, settings: dict[str, Any], *, refit: bool) -> tuple[builder.Engine, str]:
    """An engine, refitted if possible; and a warning where it was asked for and is not."""
    if not refit:
        return builder.build_engine(model, **settings), ""
    try:
        return builder.build_engine(model, refit=True, **settings), ""
    except builder.EngineError as error:
        if error.kind == "cancelled":
            raise
        reason = str(error).splitlines()[0]
    return builder.build_engine(model, **settings), f"the engine was built anew, for it could not be refitted. {reason}"


def _executed(model: onnx.ModelProto, exported: Exported) -> Runner:
    session = Session(model)
    return lambda args: session.run(feed(args, exported))


def feed(args: tuple[Any, ...], exported: Exported) -> dict[str, np.ndarray[Any, Any]]:
    """Input name -> array, of the positional arguments of ``forward``."""
    return {name: t.detach().numpy() for name, t in zip(exported.inputs, _flat(args), strict=True)}


def _flat(args: tuple[Any, ...]) -> list[Tensor]:
    return list(flatten(args[0] if len(args) == 1 else args, "input").values())
