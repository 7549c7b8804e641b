"""What is converted is read, and what was found is said."""

from __future__ import annotations

import onnx
import torch

from lightning_robust.callbacks.deployment_parity.calibration import calibration_of_run
from lightning_robust.callbacks.deployment_parity.task import task_of
from lightning_robust.complaints import naming
from lightning_robust.deployment.engines import BuildSettings, Subject
from lightning_robust.deployment.graph.export import frozen_copy, to_args
from lightning_robust.deployment.graph.files import GraphSubject, load_graph, read_or_make_inputs, remarks
from lightning_robust.deployment.mixed_precision import MixedModel
from lightning_robust.deployment.numerics.typed import stated_halves
from lightning_robust.deployment.parity.result import Examination
from lightning_robust.deployment.parity.scale import Task
from lightning_robust.deployment.report.layers import keep_sentence
from lightning_robust.deployment.report.precision import budget_sentence, evidence_sentences
from lightning_robust.harness.run_folder import AUTO, RunFiles, with_run_arguments
from lightning_robust.harness.runs import InputCollector, load_data, load_module, validate_once

_SAMPLES, _NOISE = 256, 16


def describe(found: MixedModel, notes: list[str]) -> str:
    """What was found, and the command that builds it."""
    sentences = [
        budget_sentence(found),
        keep_sentence(Examination(found.layers, found.keep)),
        *evidence_sentences(found),
    ]
    return "\n".join([*sentences, *notes, *found.notes, f"\nBuild it:  {found.command}"])


def run_subject(
    files: RunFiles, samples: int | None, precision: str, settings: BuildSettings
) -> tuple[Subject, Task, list[str]]:
    """The module of a run on its validation data, and its task."""
    path, config = files.checkpoint, files.config
    of_run = with_run_arguments(config, input_key=None, decode=AUTO)
    key = of_run["input_key"]
    module = load_module(path, config)
    count = samples or _SAMPLES
    collector = InputCollector(count, key)
    validate_once(module, load_data(path, config), collector, count)
    frozen = frozen_copy(module)
    subject = Subject(frozen, to_args(collector.inputs.spread(count), torch.float32), settings)
    subject.calibration = calibration_of_run(path, config, [f"emulated-{precision}"], settings, key)
    return subject, task_of(frozen, of_run["decode"], collector.inputs), []


def file_subject(
    path: str, inputs: str | None, samples: int | None, shapes: dict[str, list[int]] | None, settings: BuildSettings
) -> tuple[Subject, Task, list[str]]:
    """An ONNX file, and what a reader has to know of it and its inputs."""
    graph = load_graph(path)
    _refuse_half(graph, path)
    arrays, notes = read_or_make_inputs(graph, inputs, samples or _NOISE, shapes)
    with naming(path):
        subject = GraphSubject(graph, arrays, settings)
    subject.example = subject.rows(slice(samples))
    return subject, Task(), [*remarks(graph), *_name_remarks(path, graph), *notes]


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
