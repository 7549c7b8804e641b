"""The golden file is written, or a dump of the deployed side and engines are compared with it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from lightning_robust.deployment.engines import BuildSettings, Runtime
from lightning_robust.deployment.golden import (
    Golden,
    GoldenReport,
    check_golden,
    check_targets,
    make_golden,
    read_golden,
    write_golden,
)
from lightning_robust.deployment.graph.export import frozen_copy
from lightning_robust.deployment.parity.scale import decoder_of
from lightning_robust.harness.digest import digest
from lightning_robust.harness.runs import InputCollector, load_data, load_module, validate_once
from lightning_robust.json_values import jsonable
from lightning_robust.tables import plain_table
from lightning_robust.version import package_version

_WEIGHTS = "weights"


class Exact(NamedTuple):
    """The golden values, and the module that they are of."""

    values: Golden
    module: nn.Module
    decode: Any


def read_exact(ckpt: str, config: str | None, output: str, decode: str | None) -> Exact:
    """Read the golden file and the module of its checkpoint.

    Raises:
        ValueError: If the file is of other weights, whose distance from these would be taken for that of an engine.
    """
    loaded, values = load_module(ckpt, config), read_golden(output)
    here, there = digest(loaded.state_dict()), values.metadata.get(_WEIGHTS)
    if there not in (None, here):
        raise ValueError(
            f"Expected {output} to be of the weights of {ckpt} ({here}), but it is of others ({there}, from "
            f"{values.metadata.get('checkpoint')}). Name another file with --output, which is written then."
        )
    module = frozen_copy(loaded)
    return Exact(values, module, decoder_of(module, decode))


def check_dump(exact: Exact, check: str) -> GoldenReport:
    """How a dump of the deployed side differs; it is printed, and all numbers are written beside the dump."""
    report = check_golden(exact.values, read_golden(check), exact.module, exact.decode)
    path = _write_json(Path(check).with_name("check.json"), dataclasses.asdict(report))
    print(f"{_golden_text(report)}\n\nAll numbers:  {path}")
    return report


def check_engines(
    exact: Exact, runtimes: list[Runtime], settings: BuildSettings, calibration: tuple[Any, ...] | None, output: Path
) -> dict[str, GoldenReport | str]:
    """How engines differ that run the golden inputs; it is printed, and all numbers are written."""
    found = check_targets(exact.values, exact.module, runtimes, settings, exact.decode, calibration)
    print(f"All numbers:  {_write_json(output, _print_targets(found))}")
    return found


def _print_targets(found: dict[str, GoldenReport | str]) -> dict[str, Any]:
    """Print what was found of each target, and give it as plain values."""
    content: dict[str, Any] = {}
    for name, report in found.items():
        print(f"{name}\n{report if isinstance(report, str) else _golden_text(report)}\n")
        content[name] = report if isinstance(report, str) else dataclasses.asdict(report)
    return content


def write_exact(
    ckpt: str, config: str | None, output: str, samples: int, input_key: int | str | list[int | str] | None
) -> None:
    """Write the golden file of a checkpoint."""
    collector = InputCollector(samples, input_key)
    validate_once(load_module(ckpt, config), load_data(ckpt, config), collector, samples)
    module = load_module(ckpt, config)
    metadata = {
        "checkpoint": str(ckpt),
        _WEIGHTS: digest(module.state_dict()),
        "mean": collector.pixels.mean,
        "std": collector.pixels.std,
        "torch": importlib.metadata.version("torch"),
        "lightning_robust": package_version(),
    }
    tensors = make_golden(frozen_copy(module), collector.inputs.args(), metadata)
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
