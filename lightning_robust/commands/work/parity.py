"""A checkpoint or an ONNX file is measured; the command writes the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from lightning_robust.callbacks import DeploymentParityCallback
from lightning_robust.commands.parity import OTHER
from lightning_robust.complaints import naming
from lightning_robust.deployment.engines import BuildSettings, available
from lightning_robust.deployment.graph.files import GraphSubject, load_graph, read_or_make_inputs, remarks
from lightning_robust.deployment.parity.localise import localise
from lightning_robust.deployment.parity.measure import measure_parity
from lightning_robust.deployment.parity.result import MeasuredWeights, ParityReport
from lightning_robust.deployment.parity.scale import Task
from lightning_robust.deployment.parity.storage import examine_head
from lightning_robust.deployment.pixels.catalogue import perturbations as named_perturbations
from lightning_robust.deployment.pixels.names import Names
from lightning_robust.functional.pixels import PixelSpace
from lightning_robust.harness.checkpoints import read_checkpoint, read_state
from lightning_robust.harness.digest import digest
from lightning_robust.harness.runs import load_data, load_module, validate_once


def of_checkpoint(ckpt: str, config: str | None, callback: DeploymentParityCallback) -> ParityReport:
    """Measure the module of a checkpoint on the data of its run."""
    validate_once(load_module(ckpt, config), load_data(ckpt, config), callback, callback.num_samples)
    if callback.report is None:
        raise ValueError(
            "Expected numbers, but nothing was measured: the warning above says why, or the validation loader has no "
            "batch."
        )
    return replace(callback.report, weights=_weights_of(ckpt))


def _weights_of(ckpt: str) -> MeasuredWeights:
    content = read_checkpoint(ckpt)
    return MeasuredWeights(content.get("epoch"), content.get("global_step"), ckpt, digest(read_state(ckpt)))


def read_subject(
    path: str, inputs: str | None, samples: int, shapes: dict[str, list[int]] | None, settings: BuildSettings
) -> tuple[GraphSubject, list[str]]:
    """An ONNX file with what goes into it, and what a reader has to know of both."""
    graph = load_graph(path)
    arrays, notes = read_or_make_inputs(graph, inputs, samples, shapes)
    with naming(path):
        return GraphSubject(graph, arrays, settings), [*remarks(graph), *notes]


def with_limited(
    targets: Literal["auto"] | list[str], limits: Mapping[str, float], settings: BuildSettings
) -> Literal["auto"] | list[str]:
    """The targets that are measured: to those of "auto" belong the ones that a budget limits."""
    if targets != "auto" or not limits:
        return targets
    here = [made.name for made in available("auto", settings)]
    return list(dict.fromkeys([*here, *(key.partition("/")[0] for key in limits)]))


def of_graph(
    subject: GraphSubject,
    targets: Literal["auto"] | list[str],
    names: Names,
    pixels: PixelSpace,
    limits: tuple[dict[str, float] | None, float | None],
    *,
    perturb_targets: bool,
) -> ParityReport:
    """Measure an ONNX file against ONNX Runtime in fp32."""
    tolerance, keep_tolerance = limits
    runtimes = [made for made in available(targets, subject.settings) if not made.name.startswith(OTHER)]
    limit = subject.settings.time_limit
    report = measure_parity(
        subject,
        runtimes,
        perturbations=named_perturbations(names),
        pixels=pixels,
        time_limit=limit,
        tolerance=tolerance,
        perturb_targets=perturb_targets,
        timed=True,
    )
    try:
        examined = examine_head(subject, report, Task())
        return localise(subject, examined, tolerance=keep_tolerance, limits=tolerance, time_limit=limit)
    except ValueError as error:
        return replace(report, notes=(*report.notes, f"Layers were not measured: {error}"))
