"""A model in mixed precision as a file: what must stay fp32 is found, the file is written, read back and measured.

Half precision is emulated (:mod:`~.numerics.emulate`); int8 is emulated, and executed in integers by ONNX Runtime.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import onnx

from lightning_robust.checks import check_budget
from lightning_robust.deployment.engines import Subject
from lightning_robust.deployment.engines.base import Runner, feed
from lightning_robust.deployment.engines.execution import run_in_batches
from lightning_robust.deployment.engines.onnxruntime import open_session
from lightning_robust.deployment.engines.tensorrt import int8_beside_fp16
from lightning_robust.deployment.graph.files import load_graph
from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.graph.types import static_size
from lightning_robust.deployment.numerics.convert import Conversion
from lightning_robust.deployment.numerics.emulate import emulate
from lightning_robust.deployment.numerics.integers import count_products, in_integers
from lightning_robust.deployment.numerics.keep_list import KeepList
from lightning_robust.deployment.numerics.quantise import is_quantised
from lightning_robust.deployment.numerics.sensitivity import Sensitivity
from lightning_robust.deployment.numerics.typed import emulate_typed
from lightning_robust.deployment.parity.baseline import Measured, measure_distance
from lightning_robust.deployment.parity.localise import examine
from lightning_robust.deployment.parity.scale import Scale, Task
from lightning_robust.json_values import jsonable

Mixed = Literal["fp16", "bf16", "int8"]
"""What a file holds beside fp32."""
_FIRST = slice(0, 16)  # the samples that tell which unit there is
_AGREES = 0.05  # between the search and the file: sums in another order turn a rounding here and there


@dataclass(frozen=True)
class WrittenFile:
    """A file, and the distance of what its types say to the fp32 graph.

    Args:
        path: The file.
        measured: Its distance, as it was read back.
    """

    path: Path
    measured: Measured

    def numbers(self) -> dict[str, object]:
        """The file, all distances and the number of samples, for JSON."""
        return {"path": str(self.path), "metrics": dict(self.measured.metrics), "samples": self.measured.samples}


@dataclass(frozen=True)
class MixedModel:
    """A strongly typed file, and what it costs.

    Args:
        path: The file.
        size: Its bytes.
        layers: What each node costs in its precision.
        keep: The nodes that stay fp32 for the budget, as they were found, beside those of `excluded`.
        excluded: The nodes that stay fp32 because the user says so.
        measured: The distance of the file, as it was read back, to the fp32 graph: on the samples that the list was
            checked on, or, where there are none, found on. Half precision is emulated; Q/DQ is computed as it is
            written, in fp32.
        executed: For int8: the same of the file executed in integers by ONNX Runtime, if it executes any product so.
        beside_fp16: For int8, where any of it is left: a second file, in which fp16 takes the place of fp32.
        tf32: Whether what stays fp32 multiplies in TF32.
        command: What builds an engine of it.
        notes: What a reader has to know.
    """

    path: Path
    size: int
    layers: Sensitivity
    keep: KeepList
    excluded: tuple[str, ...]
    measured: Measured
    executed: Measured | None
    beside_fp16: WrittenFile | None
    tf32: bool
    command: str
    notes: tuple[str, ...] = ()

    @property
    def distance(self) -> float:
        """The distance of the file, in the unit of the budget; infinite where outputs are lost."""
        return self._in_unit(self.measured)

    @property
    def executed_distance(self) -> float | None:
        """The same where it was executed in integers."""
        return None if self.executed is None else self._in_unit(self.executed)

    @property
    def met(self) -> bool:
        """Whether the file meets the budget, executed too if it was."""
        executed = self.executed_distance
        return max(self.distance, 0.0 if executed is None else executed) <= self.keep.tolerance

    @property
    def proven(self) -> bool:
        """Whether it was executed, and meets the budget with its whole interval."""
        interval = None if self.executed is None else self.executed.intervals.get(self.keep.unit)
        return self.met and interval is not None and interval.high <= self.keep.tolerance

    @property
    def agrees(self) -> bool:
        """Whether the file as read back is as far from fp32 as the search said of its list."""
        return math.isclose(self.distance, self.keep.error, rel_tol=_AGREES, abs_tol=1e-9)

    def _in_unit(self, measured: Measured) -> float:
        value = measured.metrics[self.keep.unit]
        return math.inf if math.isnan(value) else value

    def write_json(self, path: str | Path, **more: object) -> None:
        """Write all numbers.

        Args:
            path: The file.
            more: Further entries.
        """
        content = {
            **asdict(self),
            "path": str(self.path),
            "beside_fp16": None if self.beside_fp16 is None else self.beside_fp16.numbers(),
            "distance": self.distance,
            "executed_distance": self.executed_distance,
            "met": self.met,
            "agrees": self.agrees,
            **more,
        }
        Path(path).write_text(json.dumps(jsonable(content), indent=1) + "\n", encoding="utf-8")


def convert_mixed(
    subject: Subject,
    precision: Mixed,
    budget: float,
    path: str | Path,
    *,
    task: Task | None = None,
    time_limit: float = 120.0,
) -> MixedModel:
    """Write the strongly typed file of a model in which as few nodes as a budget takes stay fp32.

    The list is found as :func:`~.parity.localise.localise` finds it. The file is then loaded again, and what stands in
    it is emulated and compared with the fp32 graph. In int8 it has QuantizeLinear and DequantizeLinear, what is not
    quantised is fp32, and ONNX Runtime executes it too; a second file has fp16 in the place of fp32, but for what
    the settings or the module keep in fp32.

    Args:
        subject: The fp32 model and the samples; its settings say what stays fp32 anyway, what becomes of weights out of
            range, whether TF32 is allowed, and how int8 is calibrated.
        precision: ``"fp16"``, ``"bf16"`` or ``"int8"``.
        budget: Largest distance to the fp32 graph that is allowed, in the unit of the task, or as ``rel_l2``.
        path: The file to write.
        task: What the task says of the outputs.
        time_limit: Seconds for the sweep, again for the list, and again for its check.

    Raises:
        ExportError: If the module cannot be exported.
        ValueError: If the budget is no positive number, or the graph cannot be converted or measured.
    """
    check_budget(budget)
    task, path, exported = task or Task(), Path(path), subject.exported
    scale = Scale(subject.module, subject.rows(slice(2)), task.decode, task.known)
    unit = scale.read(run_in_batches(open_session(exported.model, exported), subject.rows(_FIRST)), _FIRST).unit
    layers, keep = examine(
        subject, precision, unit, decode=task.decode, known=task.known, tolerance=budget, time_limit=time_limit
    )
    excluded = subject.excluded_nodes() if precision == "int8" else subject.fp32_nodes()
    model, notes = _convert(subject, precision, [*keep.nodes, *excluded])
    onnx.save(model, path)
    read = load_graph(path)
    tf32 = subject.settings.tf32
    measured = _measure_file(subject, keep, scale, _open_as_written(read, subject, precision))
    executed, note = _run_in_integers(subject, keep, scale, read) if precision == "int8" else (None, "")
    quantised = precision == "int8" and is_quantised(read)
    beside = _write_beside_fp16(subject, keep, scale, path) if quantised else None
    shapes = {name: array.shape for name, array in feed(subject.rows(slice(1)), exported).items()}
    return MixedModel(
        path,
        path.stat().st_size,
        layers,
        keep,
        excluded,
        measured,
        executed,
        beside,
        tf32,
        build_command(path, exported.model, shapes, tf32=tf32),
        (*notes, note) if note else notes,
    )


def _convert(subject: Subject, precision: Mixed, names: list[str]) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The file in which these nodes stay fp32, and what to know of it."""
    if precision == "int8":
        quantised = subject.excluding_only(names).quantised
        return quantised.model, (*quantised.notes, subject.calibrated.note)
    conversion = Conversion(subject.exported.model, precision, names, subject.settings.out_of_range)
    return conversion.build(), conversion.notes


def _open_as_written(model: onnx.ModelProto, subject: Subject, precision: Mixed) -> Runner:
    """What stands in a file, executed in fp32 with the roundings that it states."""
    if precision == "int8":
        return open_session(model, subject.exported, optimise=False)
    emulated = emulate_typed(model)
    if subject.settings.tf32:
        emulated = emulate(emulated, "tf32")  # which leaves operands that are half as they are
    return open_session(emulated, subject.exported)


def _run_in_integers(
    subject: Subject, keep: KeepList, scale: Scale, model: onnx.ModelProto
) -> tuple[Measured | None, str]:
    """The distance of a Q/DQ graph that ONNX Runtime executes in integers, and how many products it does so."""
    session = Session(in_integers(model), record=True)
    layers = count_products(session.executed)
    note = ", ".join(f"{count} in {precision}" for precision, count in sorted(layers.items()))
    if not layers.get("int8"):
        return None, "ONNX Runtime executes no product of it in integers here."
    run = _measure_file(subject, keep, scale, lambda args: session.run(feed(args, subject.exported)))
    return run, f"products that ONNX Runtime executed: {note}"


def _write_beside_fp16(subject: Subject, keep: KeepList, scale: Scale, first: Path) -> WrittenFile:
    """Write the Q/DQ graph of a list with the rest in fp16 beside the first file, and measure what its types say."""
    path = first.with_stem(f"{first.stem}_fp16")
    model, _ = int8_beside_fp16(subject.excluding_only([*keep.nodes, *subject.excluded_nodes()]))
    onnx.save(model, path)
    run = open_session(emulate_typed(load_graph(path)), subject.exported)
    return WrittenFile(path, _measure_file(subject, keep, scale, run))


def _measure_file(subject: Subject, keep: KeepList, scale: Scale, run: Runner) -> Measured:
    """A distance to the fp32 graph, on the samples that the list's own is of."""
    window = slice(keep.samples, keep.samples + keep.checked) if keep.checked else slice(keep.samples)
    rows, exact = subject.rows(window), open_session(subject.exported.model, subject.exported)
    reference = scale.read(run_in_batches(exact, rows), window)
    return measure_distance(reference, scale.read(run_in_batches(run, rows)), window.stop - (window.start or 0))


def build_command(path: Path, model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], *, tf32: bool) -> str:
    """The command of TensorRT that builds an engine of a strongly typed file.

    Args:
        path: The file.
        model: The graph.
        shapes: Input name -> shape of one sample.
        tf32: Whether what is fp32 may multiply in TF32.

    Example:
        >>> from onnx import parser
        >>> model = parser.parse_model('<ir_version: 10, opset_import: ["" : 20]> g (float[n, 3] x) => (float y) {}')
        >>> build_command(Path("net_fp16.onnx"), model, {"x": (1, 3)}, tf32=False)
        'trtexec --onnx=net_fp16.onnx --stronglyTyped --noTF32 --shapes=x:1x3 --saveEngine=net_fp16.engine'
    """
    dynamic = [
        f"{value.name}:{'x'.join(map(str, shapes[value.name]))}"
        for value in model.graph.input
        if any(static_size(dim) is None for dim in value.type.tensor_type.shape.dim)
    ]
    options = ["--stronglyTyped"]
    options += [] if tf32 else ["--noTF32"]
    options += [f"--shapes={','.join(dynamic)}"] if dynamic else []
    return " ".join(["trtexec", f"--onnx={path.name}", *options, f"--saveEngine={path.with_suffix('.engine').name}"])
