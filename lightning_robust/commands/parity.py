"""``lightning-robust parity``: the parity report of any checkpoint, or of any ONNX file."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Literal

from lightning_robust.checks import check_file, check_output_folder, check_positive
from lightning_robust.deployment.budget_keys import parity_limits
from lightning_robust.deployment.engines.names import check_target_names
from lightning_robust.deployment.engines.settings import BuildSettings
from lightning_robust.deployment.pixels.names import Names, check_perturbation_names
from lightning_robust.gate.check import Judgement
from lightning_robust.gate.options import Gate
from lightning_robust.harness.run_folder import locate_run, with_run_arguments

OTHER = ("torch-", "onnxruntime-fp32")  # what an ONNX file cannot be compared by: no module, and the reference itself


def parity(
    ckpt: str | None = None,
    onnx: str | None = None,
    *,
    run: str | None = None,
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
    decode: str | None = "auto",
    tolerance: dict[str, float] | None = None,
    keep_tolerance: float | None = None,
    perturb_targets: bool = False,
    time_limit: float = 120.0,
    gate: Gate,
    **build: Any,
) -> Judgement:
    """Measure how far a deployed model is from the trained one, and write parity.html, parity.json, keep_fp32.json.

    With --run or --ckpt the module and the data are those of the run's config.yaml, and the reference is PyTorch in
    fp64. With --onnx there is no PyTorch side: the reference is ONNX Runtime in fp32, distances are relative.
    Exit status: 0 within the budget (<target>/<metric>), 1 beyond, 2 what it or --targets names could not be measured.

    Args:
        ckpt: Checkpoint of a run; with --run: best (the default), last, or a file in it.
        onnx: ONNX file, external data beside it.
        run: Folder of a run, or the one above its versions, of which the newest is taken.
        output: Folder for the report.
        config: The run's config.yaml; by default that in its folder.
        inputs: For --onnx: .npz file with one array for each input. Without it, noise.
        shapes: For --onnx without inputs: name -> shape where more than the first dimension is dynamic.
        targets: "auto" or names such as emulated-fp16, tensorrt-fp16.
        samples: Inputs to measure on, at most; fewer do where the interval is below a tenth of the number. None means
            256 of a run's validation data, and 16 of noise.
        perturbations: "typical", "all", "none", or names of preprocessing perturbations; for --onnx of the first
            input, if that is a batch of pictures.
        mean: Mean that the pixels were normalised with, for pixels in [0, 1]; by default what the run's
            deployment_parity says, else its data module.
        std: Standard deviation that they were normalised with, likewise.
        input_key: For a run: which part of a batch goes into forward; by default what its deployment_parity says, else
            the signature of forward.
        decode: For a run: method of the module that turns outputs into named values in the task's units; by default
            the run's, else decode; null for none.
        tolerance: "<target>" or "<target>/<metric>" -> largest allowed value, beside and before those of the budget.
        keep_tolerance: Distance that the proposed list is to meet.
        perturb_targets: Run every target that is measured on the perturbed inputs too.
        time_limit: Seconds for the pass, and again for the layers and for the list; also for one engine build.
        gate: The budget.
        build: How engines are built and run.
    """
    settings = BuildSettings(**build, time_limit=time_limit)
    check_positive(samples=samples)
    check_target_names(targets)
    check_perturbation_names(perturbations)
    check_output_folder(output)
    _check_source(run or ckpt, onnx, targets)
    limits, source = parity_limits(gate, tolerance, decoded=onnx is None)
    if onnx is not None:
        _refuse("--onnx", config=config, input_key=input_key)
        check_file("an ONNX file", onnx)
        check_file("an .npz file", inputs)
        files = None
    else:
        _refuse("--run and --ckpt", inputs=inputs, shapes=shapes)
        files = locate_run(run, ckpt, config)
        print(files)

    from lightning_robust.callbacks import DeploymentParityCallback
    from lightning_robust.commands.work.parity import of_checkpoint, of_graph, read_subject, with_limited
    from lightning_robust.deployment.parity.judge import judge_report
    from lightning_robust.deployment.report.page import write_report
    from lightning_robust.deployment.report.tables import summary
    from lightning_robust.harness.normalisation import pixel_space

    names, allowed = with_limited(targets, limits, settings), limits or None
    if files is not None:
        said = {"mean": mean, "std": std, "input_key": input_key, "decode": decode}
        callback = DeploymentParityCallback(
            names,
            num_samples=samples or 256,
            perturbations=perturbations,
            **with_run_arguments(files.config, **said),
            tolerance=allowed,
            keep_tolerance=keep_tolerance,
            perturb_targets=perturb_targets,
            **{field.name: getattr(settings, field.name) for field in fields(settings)},
        )
        report = of_checkpoint(files.checkpoint, files.config, callback)
        provenance = {"checkpoint": files.checkpoint, "configuration": files.config}
    else:
        subject, notes = read_subject(str(onnx), inputs, samples or 16, shapes, settings)
        pixels, bounds = pixel_space(None, mean, std), (allowed, keep_tolerance)
        report = of_graph(subject, names, perturbations, pixels, bounds, perturb_targets=perturb_targets)
        report = replace(report, notes=(*notes, *report.notes))
        provenance = {"onnx": str(onnx), "inputs": inputs or "noise"}
    page = write_report(report, output, tolerance=allowed, provenance=provenance)
    print(f"{summary(report)}\n\nThe whole report:  {page}")
    origin = str(report.weights) or ", ".join(provenance.values())
    return replace(judge_report(report, limits, source, targets), origin=origin)


def _check_source(run: str | None, onnx: str | None, targets: Literal["auto"] | list[str]) -> None:
    """Refuse two sources or none, and targets that an ONNX file has not."""
    if (run is None) == (onnx is None):
        raise ValueError("Expected one of --run, --ckpt and --onnx, but got " + ("two." if run else "none."))
    if onnx is not None and targets != "auto" and any(target.startswith(OTHER) for target in targets):
        raise ValueError(
            f"Expected targets beside ONNX Runtime in fp32, the reference of an ONNX file, but got {targets}. Leave "
            " out onnxruntime-fp32, and PyTorch's, which need a run."
        )


def _refuse(source: str, **options: Any) -> None:
    """Refuse options that mean nothing for what is measured."""
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"Expected no {' and '.join(given)} with {source}, which has no use for it. Leave it out.")
