"""The command ``precision``: what must stay fp32 in a model, the strongly typed file, the list and a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import onnx
import torch

from lightning_robust.callbacks.deployment_parity.calibration import calibration_of_run
from lightning_robust.callbacks.deployment_parity.task import task_of
from lightning_robust.deployment.engines import BuildSettings, Subject
from lightning_robust.deployment.engines.settings import Calibration, check_positive
from lightning_robust.deployment.graph.export import frozen_copy, to_args
from lightning_robust.deployment.graph.files import GraphSubject, load_graph, make_inputs, remarks
from lightning_robust.deployment.graph.inputs import read_inputs
from lightning_robust.deployment.mixed_precision import check_budget, convert_mixed
from lightning_robust.deployment.numerics.rounding import OutOfRange
from lightning_robust.deployment.numerics.typed import stated_halves
from lightning_robust.deployment.parity.result import Examination
from lightning_robust.deployment.parity.scale import Task
from lightning_robust.deployment.report.layers import keep_sentence
from lightning_robust.deployment.report.precision import budget_sentence, evidence_sentences, write_precision
from lightning_robust.harness.runs import InputCollector, load_data, load_module, validate_once

_SAMPLES, _NOISE = 256, 16
_CHECKPOINTS = (".ckpt", ".pt")


def precision(
    model: str,
    *,
    budget: float,
    precision: Literal["fp16", "bf16", "int8"] = "fp16",
    inputs: str | None = None,
    shapes: dict[str, list[int]] | None = None,
    samples: int | None = None,
    exclude: list[str] | str | None = None,
    out_of_range: OutOfRange | None = None,
    tf32: bool | None = None,
    calibration: Calibration | None = None,
    calibration_samples: int | None = None,
    calibration_data: str | None = None,
    output: str = "precision",
    config: str | None = None,
    time_limit: float = 120.0,
) -> int:
    """Find what must stay fp32 for a budget, and write the strongly typed file, the list and a page.

    Needs no GPU. Writes <name>_<precision>.onnx, keep_fp32.json or exclude_int8.json (with nodes_to_exclude for
    ModelOpt), precision.html and precision.json; for int8 <name>_int8_fp16.onnx too, with fp16 beside int8. Distances
    are of the emulation to the same graph in fp32, in int8 also of what ONNX Runtime executes; the file is read back
    from disk and measured again. Exit status: 0 the budget is met, 1 it is not, 2 it could not be measured.

    Args:
        model: fp32 ONNX file, external data beside it, or the checkpoint (.ckpt) of a run.
        budget: Largest distance that is allowed; rel_l2 for an ONNX file, else the unit of the module's decode.
        precision: What the rest computes in; for int8 a file with Q/DQ is written, and the list is of its products.
        inputs: For an ONNX file: .npz file with one array for each input. Without it, noise.
        shapes: For an ONNX file without inputs: name -> shape where more than the first dimension is dynamic.
        samples: Inputs, at most; None means all of an .npz, 256 of a run's validation data, 16 of noise.
        exclude: Nodes or modules that stay fp32 anyway, or a JSON file of them, as the list of an earlier run.
        out_of_range: For fp16 and bf16: what becomes of weights beyond their range: clamp (the default), keep (in fp32)
            or inf.
        tf32: For fp16 and bf16: let what stays fp32 multiply in TF32, as trtexec does without --noTF32.
        calibration: For int8: how ranges are found: minmax (the default), entropy or percentile.
        calibration_samples: For int8: inputs to find them on, at most; 128 by default.
        calibration_data: For int8: .npz file to find them on; by default a run's first training inputs, or the inputs.
        output: Folder for the results.
        config: For a checkpoint: the run's config.yaml; by default that beside it.
        time_limit: Seconds for the sweep, again for the list, and again for its check.
    """
    check_positive(samples=1 if samples is None else samples)
    check_budget(budget)
    half = {"out_of_range": out_of_range, "tf32": tf32}
    ranges = {
        "calibration": calibration,
        "calibration_samples": calibration_samples,
        "calibration_data": calibration_data,
    }
    settings = _settings(precision, exclude, time_limit, half, ranges)
    if Path(model).suffix in _CHECKPOINTS:
        if inputs is not None or shapes is not None:
            raise ValueError("Expected --inputs and --shapes with an ONNX file, but got them with a checkpoint.")
        subject, task, notes = _run_subject(model, config, samples or _SAMPLES, settings)
        subject.calibration = calibration_of_run(model, config, [f"emulated-{precision}"], settings)
    else:
        subject, task, notes = _file_subject(model, inputs, samples, shapes, settings)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{Path(model).stem}_{precision}.onnx"
    found = convert_mixed(subject, precision, budget, path, task=task, time_limit=time_limit)
    page = write_precision(found, folder, notes=notes, provenance={"model": model, "inputs": inputs or "-"})
    sentences = [
        budget_sentence(found),
        keep_sentence(Examination(found.layers, found.keep)),
        *evidence_sentences(found),
    ]
    print("\n".join([*sentences, *notes, *found.notes, f"\nBuild it:  {found.command}", f"The whole report:  {page}"]))
    return 0 if found.met else 1


def _settings(
    precision: str, exclude: list[str] | str | None, time_limit: float, half: dict[str, Any], int8: dict[str, Any]
) -> BuildSettings:
    """The settings of a precision; those of another one are refused."""
    other, ours = (half, int8) if precision == "int8" else (int8, half)
    if wrong := [f"--{name}" for name, value in other.items() if value is not None]:
        raise ValueError(f"Expected no {' and '.join(wrong)} with --precision={precision}, which has no use for it.")
    given = {name: value for name, value in ours.items() if value is not None}
    given["exclude_int8" if precision == "int8" else "keep_fp32"] = exclude
    return BuildSettings(**given, time_limit=time_limit)


def _run_subject(
    path: str, config: str | None, samples: int, settings: BuildSettings
) -> tuple[Subject, Task, list[str]]:
    """The module of a run on its validation data, and its task."""
    module = load_module(path, config)
    collector = InputCollector(samples)
    validate_once(module, load_data(path, config), collector, samples)
    frozen = frozen_copy(module)
    example = to_args(collector.inputs.spread(samples), torch.float32)
    return Subject(frozen, example, settings), task_of(frozen, "decode", collector.inputs), []


def _file_subject(
    path: str, inputs: str | None, samples: int | None, shapes: dict[str, list[int]] | None, settings: BuildSettings
) -> tuple[Subject, Task, list[str]]:
    """An ONNX file, and what a reader has to know of it and its inputs."""
    graph = load_graph(path)
    _refuse_half(graph, path)
    notes = [*remarks(graph), *_name_remarks(path, graph)]
    if inputs is None:
        arrays = make_inputs(graph, samples or _NOISE, shapes)
        notes.append("The inputs are noise: distances on real inputs may be quite different. Give --inputs.")
    else:
        arrays = read_inputs(inputs)
    subject = GraphSubject(graph, arrays, settings)
    subject.example = subject.rows(slice(samples))
    return subject, Task(), notes


def _refuse_half(graph: onnx.ModelProto, path: str) -> None:
    """Refuse a graph that is in half precision already, or in part."""
    half = stated_halves(graph)
    if half:
        raise ValueError(
            f"Expected an fp32 graph in {path}, but it is in half precision already: it has tensors in "
            f"{' and '.join(half)}. Give the fp32 file that it was made from."
        )


def _name_remarks(path: str, graph: onnx.ModelProto) -> list[str]:
    """A line for a list of names that the user's own file does not have."""
    names = {node.name for node in onnx.load(path, load_external_data=False).graph.node}
    nodes = [node.name for node in graph.graph.node]
    made = [name for name in nodes if name not in names]
    line = (
        f"{len(made)} of {len(nodes)} nodes have no name of their own in {path}. They are named here by operator and "
        f"position, as {made[:1]}, and so they are in the file that is written; AutoCast needs a file with such names."
    )
    return [line] if made else []
