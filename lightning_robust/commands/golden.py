"""The command ``golden``: the network's inputs and outputs as a file, or a dump of the deployed side against it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from lightning_robust.callbacks.deployment_parity.calibration import calibration_of_run
from lightning_robust.deployment.engines import BuildSettings, available
from lightning_robust.deployment.golden import (
    GoldenReport,
    check_golden,
    check_targets,
    make_golden,
    read_golden,
    write_golden,
)
from lightning_robust.deployment.graph.export import frozen_copy
from lightning_robust.harness.runs import InputCollector, load_data, load_module, validate_once
from lightning_robust.structures import jsonable
from lightning_robust.tables import plain_table


def golden(
    *,
    ckpt: str,
    output: str = "golden.npz",
    check: str | None = None,
    targets: list[str] | None = None,
    samples: int = 16,
    input_key: int | str | list[int | str] | None = None,
    decode: str = "decode",
    config: str | None = None,
    **build: Any,
) -> None:
    """Write the network's inputs and outputs at validation, or compare a dump of the deployed side with them.

    This writes the inputs and outputs (input/<name>, output/<name>) of the first validation samples. The deployed side
    feeds its own pictures of the same frames, or these inputs, and dumps inputs, outputs or both under the same names.
    With --check this compares the dump: how its preprocessing differs, and how much of the distance comes from the
    input and how much from the engine; check.json beside the dump holds all numbers. With --deployed or --targets it
    runs the golden inputs through the deployed file and these engines itself, and compares their outputs likewise;
    targets.json beside the golden file holds all numbers.

    Args:
        ckpt: Checkpoint of the run.
        output: The golden file; read with --check, --deployed and --targets where it is there, else written.
        check: The dump of the deployed side (.npz).
        targets: Names such as emulated-fp16, tensorrt-fp16, to run the golden inputs through.
        samples: How many inputs to write.
        input_key: Which part of a batch goes into forward; by default what its signature says.
        decode: Method of the module that turns outputs into named values in the task's units.
        config: The run's config.yaml; by default that beside the checkpoint.
        build: How engines are built and run.
    """
    settings = BuildSettings(**build)
    runtimes = available(targets or [], settings)
    if check is None and not (runtimes and Path(output).is_file()):
        _write(ckpt, config, output, samples, input_key)
    if check is None and not runtimes:
        return
    module = frozen_copy(load_module(ckpt, config))
    exact, reads = read_golden(output), getattr(module, decode, None)
    if check is not None:
        report = check_golden(exact, read_golden(check), module, reads)
        path = _write_json(Path(check).with_name("check.json"), dataclasses.asdict(report))
        print(f"{_golden_text(report)}\n\nAll numbers:  {path}")
    if runtimes:
        calibration = calibration_of_run(ckpt, config, targets or [], settings, input_key)
        content = _print_targets(check_targets(exact, module, runtimes, settings, reads, calibration))
        print(f"All numbers:  {_write_json(Path(output).with_name('targets.json'), content)}")


def _print_targets(found: dict[str, GoldenReport | str]) -> dict[str, Any]:
    """Print what was found of each target, and give it as plain values."""
    content: dict[str, Any] = {}
    for name, report in found.items():
        print(f"{name}\n{report if isinstance(report, str) else _golden_text(report)}\n")
        content[name] = report if isinstance(report, str) else dataclasses.asdict(report)
    return content


def _write(
    ckpt: str, config: str | None, output: str, samples: int, input_key: int | str | list[int | str] | None
) -> None:
    """Write the golden file of a checkpoint."""
    if samples < 1:
        raise ValueError(f"Expected `samples` to be positive, but got {samples}.")
    collector = InputCollector(samples, input_key)
    validate_once(load_module(ckpt, config), load_data(ckpt, config), collector, samples)
    metadata = {
        "checkpoint": str(ckpt),
        "mean": collector.pixels.mean,
        "std": collector.pixels.std,
        "torch": importlib.metadata.version("torch"),
        "lightning_robust": importlib.metadata.version("lightning-robust"),
    }
    tensors = make_golden(frozen_copy(load_module(ckpt, config)), collector.inputs.args(), metadata)
    write_golden(tensors, output)
    shapes = [f"{name} {array.shape}" for name, array in {**tensors.inputs, **tensors.outputs}.items()]
    print(f"Wrote {output}: {', '.join(shapes)}")


def _write_json(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(jsonable(content), indent=1) + "\n", encoding="utf-8")
    return path


def _golden_text(report: GoldenReport) -> str:
    parts = {"whole": report.whole, "input": report.preprocessing, "engine": report.engine}
    rows = [
        [name, f"{metrics[report.unit]:.3g}", f"{metrics['max_abs']:.3g}" if "max_abs" in metrics else "-"]
        for name, metrics in parts.items()
        if metrics
    ]
    lines = [f"{name}: {differences}" for name, differences in report.pictures.items()]
    lines += [plain_table(["part", report.unit, "max_abs"], rows), report.sentence()] if rows else []
    return "\n".join([*lines, *report.notes])
