"""A model in mixed precision as a file: what must stay fp32 is found, the file is written, read back and measured.

Nothing here runs an engine: distances are those of the emulation (:mod:`~.numerics.emulate`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx

from lightning_robust.deployment.engines import Subject
from lightning_robust.deployment.engines.base import feed
from lightning_robust.deployment.engines.execution import run_in_batches
from lightning_robust.deployment.engines.onnxruntime import open_session
from lightning_robust.deployment.graph.files import load_graph
from lightning_robust.deployment.graph.types import static_size
from lightning_robust.deployment.numerics.convert import Conversion
from lightning_robust.deployment.numerics.emulate import emulate
from lightning_robust.deployment.numerics.keep_list import KeepList
from lightning_robust.deployment.numerics.rounding import Half
from lightning_robust.deployment.numerics.sensitivity import Sensitivity
from lightning_robust.deployment.numerics.typed import emulate_typed
from lightning_robust.deployment.parity.baseline import Measured, measure_distance
from lightning_robust.deployment.parity.localise import examine
from lightning_robust.deployment.parity.scale import Scale, Task
from lightning_robust.structures import jsonable

_FIRST = slice(0, 16)  # the samples that tell which unit there is
_AGREES = 0.05  # between the search and the file: sums in another order turn a rounding here and there


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
            checked on, or, where there are none, found on.
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
    tf32: bool
    command: str
    notes: tuple[str, ...] = ()

    @property
    def distance(self) -> float:
        """The distance of the file, in the unit of the budget; infinite where outputs are lost."""
        value = self.measured.metrics[self.keep.unit]
        return math.inf if math.isnan(value) else value

    @property
    def met(self) -> bool:
        """Whether the file meets the budget."""
        return self.distance <= self.keep.tolerance

    @property
    def agrees(self) -> bool:
        """Whether the file as read back is as far from fp32 as the search said of its list."""
        return math.isclose(self.distance, self.keep.error, rel_tol=_AGREES, abs_tol=1e-9)

    def write_json(self, path: str | Path, **more: object) -> None:
        """Write all numbers.

        Args:
            path: The file.
            more: Further entries.
        """
        content = {
            **asdict(self),
            "path": str(self.path),
            "distance": self.distance,
            "met": self.met,
            "agrees": self.agrees,
            **more,
        }
        Path(path).write_text(json.dumps(jsonable(content), indent=1) + "\n", encoding="utf-8")


def convert_mixed(
    subject: Subject,
    precision: Half,
    budget: float,
    path: str | Path,
    *,
    task: Task | None = None,
    time_limit: float = 120.0,
) -> MixedModel:
    """Write the strongly typed file of a model in which as few nodes as a budget takes stay fp32.

    The list is found as :func:`~.parity.localise.localise` finds it. The file is then loaded again, its types are read
    back, and what it says is emulated and compared with the fp32 graph.

    Args:
        subject: The fp32 model and the samples; its settings say what stays fp32 anyway, what becomes of weights out of
            range, and whether TF32 is allowed.
        precision: ``"fp16"`` or ``"bf16"``.
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
    excluded, tf32 = subject.fp32_nodes(), subject.settings.tf32
    conversion = Conversion(exported.model, precision, {*keep.nodes, *excluded}, subject.settings.out_of_range)
    onnx.save(conversion.build(), path)
    measured = _measure_file(path, subject, keep, scale)
    shapes = {name: array.shape for name, array in feed(subject.rows(slice(1)), exported).items()}
    command = build_command(path, exported.model, shapes, tf32=tf32)
    size = path.stat().st_size
    return MixedModel(path, size, layers, keep, excluded, measured, tf32, command, conversion.notes)


def check_budget(budget: float) -> None:
    """Refuse a budget that is no positive number.

    Raises:
        ValueError: Saying so.
    """
    if not 0 < budget < math.inf:
        raise ValueError(f"Expected `budget` to be a positive number, but got {budget}.")


def _measure_file(path: Path, subject: Subject, keep: KeepList, scale: Scale) -> Measured:
    """The distance of what stands in the file to the fp32 graph, on the samples that the list's own is of."""
    window = slice(keep.samples, keep.samples + keep.checked) if keep.checked else slice(keep.samples)
    emulated = emulate_typed(load_graph(path))
    if subject.settings.tf32:
        emulated = emulate(emulated, "tf32")  # which leaves operands that are half as they are
    exact, deployed = (
        run_in_batches(open_session(model, subject.exported), subject.rows(window))
        for model in (subject.exported.model, emulated)
    )
    return measure_distance(scale.read(exact, window), scale.read(deployed), window.stop - (window.start or 0))


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
