"""``lightning-robust golden``: tensors for the car to replay, and what its dump says."""

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
    input_key: int | str | list[int | str] = 0,
    decode: str = "decode",
    config: str | None = None,
) -> None:
    """Write what the network is fed and gives at validation, or compare with it what the car dumped.

    Without --check writes inputs and outputs (input/<name>, output/<name>) of the first validation samples. The car
    feeds its own pictures of the same frames, or these inputs, and dumps inputs, outputs or both under the same names.
    With --check the dump is compared: what its preprocessing does differently, and how much of the distance comes from
    the input and how much from the engine. Writes check.json beside the dump.

    Args:
        ckpt: Checkpoint of the run.
        output: The golden file, written or, with --check, read.
        check: The car's dump (.npz).
        samples: Inputs to write.
        input_key: Which part of a batch goes into forward.
        decode: Method of the module that turns outputs into named values in the task's units.
        config: The run's config.yaml; by default that beside the checkpoint.
    """
    module = frozen_copy(load_module(ckpt, config))
    if check is None:
        if samples < 1:
            raise ValueError(f"Expected `samples` to be positive, but got {samples}.")
        seen = InputCollector(samples, input_key)
        validate_once(load_module(ckpt, config), load_data(ckpt, config), seen, samples)
        metadata = {
            "checkpoint": str(ckpt),
            "mean": seen.pixels.mean,
            "std": seen.pixels.std,
            "torch": importlib.metadata.version("torch"),
            "lightning_robust": importlib.metadata.version("lightning-robust"),
        }
        made = make_golden(module, seen.inputs.args(), metadata)
        write_golden(made, output)
        shapes = [f"{name} {array.shape}" for name, array in {**made.inputs, **made.outputs}.items()]
        print(f"Wrote {output}: {', '.join(shapes)}")
        return
    report = check_golden(read_golden(output), read_golden(check), module, getattr(module, decode, None))
    path = Path(check).with_name("check.json")
    path.write_text(json.dumps(jsonable(dataclasses.asdict(report)), indent=1) + "\n", encoding="utf-8")
    print(f"{_text(report)}\n\nAll numbers:  {path}")


def _text(report: GoldenReport) -> str:
    rows = [
        [name, f"{m[report.unit]:.3g}", f"{m['max_abs']:.3g}" if "max_abs" in m else "-"]
        for name, m in (("whole", report.whole), ("input", report.preprocessing), ("engine", report.engine))
        if m
    ]
    lines = [f"{name}: {found}" for name, found in report.pictures.items()]
    lines += [plain_table(["part", report.unit, "max_abs"], rows), report.sentence()] if rows else []
    return "\n".join([*lines, *report.notes])
