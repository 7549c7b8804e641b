"""The command ``golden``: the network's inputs and outputs as a file, or a dump of the deployed side against it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from pathlib import Path

from lightning_robust.deployment.golden import (
    GoldenReport,
    check_golden,
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
    samples: int = 16,
    input_key: int | str | list[int | str] | None = None,
    decode: str = "decode",
    config: str | None = None,
) -> None:
    """Write the network's inputs and outputs at validation, or compare a dump of the deployed side with them.

    Without --check this writes the inputs and outputs (input/<name>, output/<name>) of the first validation samples.
    The deployed side feeds its own pictures of the same frames, or these inputs, and dumps inputs, outputs or both
    under the same names. With --check this compares the dump: how its preprocessing differs, and how much of the
    distance comes from the input and how much from the engine; check.json beside the dump holds all numbers.

    Args:
        ckpt: Checkpoint of the run.
        output: The golden file, written or, with --check, read.
        check: The dump of the deployed side (.npz).
        samples: How many inputs to write.
        input_key: Which part of a batch goes into forward; by default what its signature says.
        decode: Method of the module that turns outputs into named values in the task's units.
        config: The run's config.yaml; by default that beside the checkpoint.
    """
    module = frozen_copy(load_module(ckpt, config))
    if check is not None:
        report = check_golden(read_golden(output), read_golden(check), module, getattr(module, decode, None))
        path = Path(check).with_name("check.json")
        path.write_text(json.dumps(jsonable(dataclasses.asdict(report)), indent=1) + "\n", encoding="utf-8")
        print(f"{_golden_text(report)}\n\nAll numbers:  {path}")
        return
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
    tensors = make_golden(module, collector.inputs.args(), metadata)
    write_golden(tensors, output)
    shapes = [f"{name} {array.shape}" for name, array in {**tensors.inputs, **tensors.outputs}.items()]
    print(f"Wrote {output}: {', '.join(shapes)}")


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
