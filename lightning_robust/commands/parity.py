"""``lightning-robust parity``: the parity report of any checkpoint, or of any ONNX file."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Literal

import onnx as onnx_package
import torch

from lightning_robust.callbacks import DeploymentParityCallback
from lightning_robust.callbacks.deployment_parity.measure import digest
from lightning_robust.deployment.engines import BuildSettings, available
from lightning_robust.deployment.graph.batches import Arrays
from lightning_robust.deployment.graph.files import GraphSubject, load_graph, make_inputs, remarks
from lightning_robust.deployment.graph.inputs import read_inputs
from lightning_robust.deployment.parity.localise import localise
from lightning_robust.deployment.parity.measure import measure_parity
from lightning_robust.deployment.parity.result import MeasuredWeights, ParityReport
from lightning_robust.deployment.parity.scale import Task
from lightning_robust.deployment.parity.storage import examine_head
from lightning_robust.deployment.pixels.catalogue import Names
from lightning_robust.deployment.pixels.catalogue import perturbations as named_perturbations
from lightning_robust.deployment.report.page import write_report
from lightning_robust.deployment.report.tables import summary
from lightning_robust.functional.pixels import PixelSpace
from lightning_robust.harness.runs import load_data, load_module, validate_once

_OTHER = ("torch-", "onnxruntime-fp32")  # what an ONNX file cannot be compared by: no module, and the reference itself


def parity(
    ckpt: str | None = None,
    onnx: str | None = None,
    *,
    output: str = "parity",
    config: str | None = None,
    inputs: str | None = None,
    shapes: dict[str, list[int]] | None = None,
    targets: Literal["auto"] | list[str] = "auto",
    samples: int | None = None,
    perturbations: Names = "typical",
    mean: float | list[float] | None = None,
    std: float | list[float] | None = None,
    input_key: int | str | list[int | str] | None = None,
    decode: str | None = "decode",
    tolerance: dict[str, float] | None = None,
    keep_tolerance: float | None = None,
    perturb_targets: bool = False,
    time_limit: float = 120.0,
    **build: Any,
) -> None:
    """Measure how far a deployed model is from the trained one, and write parity.html, parity.json, keep_fp32.json.

    With --ckpt the module and the data are those of the run's config.yaml, and the reference is PyTorch in fp64. With
    --onnx there is no PyTorch side: the reference is ONNX Runtime in fp32, distances are relative.

    Args:
        ckpt: Checkpoint of a run.
        onnx: ONNX file, external data beside it.
        output: Folder for the report.
        config: The run's config.yaml; by default that beside the checkpoint.
        inputs: For --onnx: .npz file with one array for each input. Without it, noise.
        shapes: For --onnx without inputs: name -> shape where more than the first dimension is dynamic.
        targets: "auto" or names such as emulated-fp16, tensorrt-fp16.
        samples: Inputs to measure on, at most; fewer do where the interval is below a tenth of the number. None means
            256 of a run's validation data, and 16 of noise.
        perturbations: "typical", "all", "none", or names of preprocessing perturbations; for --onnx of the first
            input, if that is a batch of pictures.
        mean: Mean that the pixels were normalised with, for pixels in [0, 1].
        std: Standard deviation that they were normalised with.
        input_key: For --ckpt: which part of a batch goes into forward; by default what its signature says.
        decode: For --ckpt: method of the module that turns outputs into named values in the task's units.
        tolerance: "<target>" or "<target>/<metric>" -> largest allowed value.
        keep_tolerance: Distance that the proposed list is to meet.
        perturb_targets: Run every target that is measured on the perturbed inputs too.
        time_limit: Seconds for the pass, and again for the layers and for the list; also for one engine build.
        build: How engines are built and run.
    """
    if (ckpt is None) == (onnx is None):
        raise ValueError("Expected one of --ckpt and --onnx, but got " + ("both." if ckpt else "none."))
    settings = BuildSettings(**build, time_limit=time_limit)
    if ckpt is not None:
        _refuse("--ckpt", inputs=inputs, shapes=shapes)
        callback = DeploymentParityCallback(
            targets,
            num_samples=samples or 256,
            perturbations=perturbations,
            mean=mean,
            std=std,
            input_key=input_key,
            decode=decode,
            tolerance=tolerance,
            keep_tolerance=keep_tolerance,
            perturb_targets=perturb_targets,
            **{field.name: getattr(settings, field.name) for field in fields(settings)},
        )
        report = replace(_of_checkpoint(ckpt, config, callback), weights=_weights_of(ckpt))
        provenance = {"checkpoint": str(ckpt)}
    else:
        _refuse("--onnx", config=config, input_key=input_key)
        graph = load_graph(str(onnx))
        arrays, notes = _inputs_of(graph, inputs, samples or 16, shapes)
        subject = GraphSubject(graph, arrays, settings)
        pixels = PixelSpace(0.0 if mean is None else mean, 1.0 if std is None else std)
        limits = tolerance, keep_tolerance
        report = _of_graph(subject, targets, perturbations, pixels, limits, perturb_targets=perturb_targets)
        report = replace(report, notes=(*notes, *report.notes))
        provenance = {"onnx": str(onnx), "inputs": inputs or "noise"}
    page = write_report(report, output, tolerance=tolerance, provenance=provenance)
    print(f"{summary(report)}\n\nThe whole report:  {page}")


def _refuse(source: str, **options: Any) -> None:
    """Refuse options that mean nothing for what is measured."""
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"Expected no {' and '.join(given)} with {source}, which has no use for it. Leave it out.")


def _of_checkpoint(ckpt: str, config: str | None, callback: DeploymentParityCallback) -> ParityReport:
    validate_once(load_module(ckpt, config), load_data(ckpt, config), callback, callback.num_samples)
    if callback.report is None:
        raise ValueError(
            "Expected numbers, but nothing was measured: the warning above says why, or the validation loader has no "
            "batch."
        )
    return callback.report


def _weights_of(ckpt: str) -> MeasuredWeights:
    content = torch.load(ckpt, map_location="cpu", weights_only=True)
    return MeasuredWeights(content.get("epoch"), content.get("global_step"), ckpt, digest(content["state_dict"]))


def _inputs_of(
    graph: onnx_package.ModelProto, inputs: str | None, samples: int, shapes: dict[str, list[int]] | None
) -> tuple[Arrays, list[str]]:
    """What goes into a graph, and what a reader has to know of it."""
    if inputs is not None:
        return read_inputs(inputs), remarks(graph)
    noise = "The inputs are noise: distances on real inputs may be quite different. Give --inputs."
    return make_inputs(graph, samples, shapes), [*remarks(graph), noise]


def _of_graph(
    subject: GraphSubject,
    targets: Literal["auto"] | list[str],
    names: Names,
    pixels: PixelSpace,
    limits: tuple[dict[str, float] | None, float | None],
    *,
    perturb_targets: bool,
) -> ParityReport:
    tolerance, keep_tolerance = limits
    if targets != "auto" and any(target.startswith(_OTHER) for target in targets):
        raise ValueError(
            f"Expected targets beside ONNX Runtime in fp32, the reference of an ONNX file, but got {targets}. Leave "
            " out onnxruntime-fp32, and PyTorch's, which need --ckpt."
        )
    runtimes = [made for made in available(targets, subject.settings) if not made.name.startswith(_OTHER)]
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
