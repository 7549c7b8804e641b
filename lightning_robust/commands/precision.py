"""The command ``precision``: what must stay fp32 in a model, the strongly typed file, the list and a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from lightning_robust.checks import check_budget, check_file, check_output_folder, check_positive
from lightning_robust.deployment.engines.settings import BuildSettings, Calibration
from lightning_robust.deployment.numerics.precisions import OutOfRange
from lightning_robust.gate.check import Judgement
from lightning_robust.gate.options import Gate
from lightning_robust.harness.run_folder import RunFiles, locate_run

_CHECKPOINTS = (".ckpt", ".pt", ".pth", ".safetensors")


def precision(
    model: str | None = None,
    *,
    run: str | None = None,
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
    gate: Gate,
) -> Judgement:
    """Find what must stay fp32 for a budget, and write the strongly typed file, the list and a page.

    Needs no GPU. Writes <name>_<precision>.onnx, keep_fp32.json or exclude_int8.json (with nodes_to_exclude for
    ModelOpt), precision.html and precision.json; for int8 <name>_int8_fp16.onnx too, with fp16 beside int8. Distances
    are of the emulation to the same graph in fp32, in int8 also of what ONNX Runtime executes; the file is read back
    from disk and measured again. --budget is the largest distance that is allowed, in rel_l2 for an ONNX file, else in
    the unit of the module's decode; or it is a file that says so under precision/<precision>/<metric>. Exit status: 0
    the budget is met, 1 it is not, 2 it could not be measured.

    Args:
        model: fp32 ONNX file, external data beside it, or the checkpoint (.ckpt) of a run; with --run: best (the
            default), last, or a file in it.
        run: Folder of a run, or the one above its versions, of which the newest is taken.
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
        config: For a checkpoint: the run's config.yaml; by default that in its folder.
        time_limit: Seconds for the sweep, again for the list, and again for its check.
        gate: The budget.
    """
    check_positive(samples=samples)
    metric, budget = _budget_of(gate, precision)
    check_budget(budget)
    half = {"out_of_range": out_of_range, "tf32": tf32}
    ranges = {
        "calibration": calibration,
        "calibration_samples": calibration_samples,
        "calibration_data": calibration_data,
    }
    settings = _settings(precision, exclude, time_limit, half, ranges)
    files = _files_of_run(model, run, config, given=not (inputs is None and shapes is None))
    check_file("an .npz file", inputs)
    check_file("an .npz file", calibration_data)
    check_output_folder(output)

    from lightning_robust.commands.work.precision import describe, file_subject, run_subject
    from lightning_robust.deployment.mixed_judge import judge_mixed
    from lightning_robust.deployment.mixed_precision import convert_mixed
    from lightning_robust.deployment.report.precision import write_precision

    if files is not None:
        model = files.checkpoint
        subject, task, notes = run_subject(files, samples, precision, settings)
    else:
        subject, task, notes = file_subject(str(model), inputs, samples, shapes, settings)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{Path(str(model)).stem}_{precision}.onnx"
    found = convert_mixed(subject, precision, budget, path, task=task, time_limit=time_limit)
    page = write_precision(found, folder, notes=notes, provenance={"model": str(model), "inputs": inputs or "-"})
    print(describe(found, notes))
    print(f"The whole report:  {page}")
    return judge_mixed(found, metric, gate.source or "--budget")


def _budget_of(gate: Gate, precision: str) -> tuple[str, float]:
    """The metric that is limited, which a number alone does not say, and its limit."""
    if gate.number is not None:
        return "", gate.number
    limits = {key.partition("/")[2]: limit for key, limit in gate.limits.items() if key.startswith(f"{precision}/")}
    if len(limits) != 1:
        got = f"{len(limits)} of them in {gate.budget.source}" if gate.budget.source else "none"
        raise ValueError(
            f"Expected one budget for {precision}, but got {got}. Give --budget=1e-3, or a file with "
            f"precision/{precision}/rel_l2: 1e-3."
        )
    return next(iter(limits.items()))


def _files_of_run(model: str | None, run: str | None, config: str | None, *, given: bool) -> RunFiles | None:
    """The files of a run, which are told; None for an ONNX file."""
    if run is not None or Path(model or "").suffix in _CHECKPOINTS:
        if given:
            raise ValueError("Expected --inputs and --shapes with an ONNX file, but got them with a checkpoint.")
        files = locate_run(run, model, config)
        print(files)
        return files
    if model is None:
        raise ValueError("Expected an ONNX file, a checkpoint or --run, but got none. Give one.")
    check_file("an ONNX file", model)
    if config is not None:
        raise ValueError("Expected no --config with an ONNX file, which has no use for it. Leave it out.")
    return None


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
