"""The command ``golden``: the network's inputs and outputs as a file, or a dump of the deployed side against it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_robust.checks import check_file, check_positive
from lightning_robust.deployment.engines.names import check_target_names
from lightning_robust.deployment.engines.settings import BuildSettings
from lightning_robust.gate.check import Judgement
from lightning_robust.gate.options import Gate
from lightning_robust.harness.run_folder import locate_run, with_run_arguments


def golden(
    *,
    ckpt: str | None = None,
    run: str | None = None,
    output: str = "golden.npz",
    check: str | None = None,
    targets: list[str] | None = None,
    samples: int = 16,
    input_key: int | str | list[int | str] | None = None,
    decode: str | None = "auto",
    config: str | None = None,
    gate: Gate,
    **build: Any,
) -> Judgement | None:
    """Write the network's inputs and outputs at validation, or compare a dump of the deployed side with them.

    This writes the inputs and outputs (input/<name>, output/<name>) of the first validation samples. The deployed side
    feeds its own pictures of the same frames, or these inputs, and dumps inputs, outputs or both under the same names.
    With --check this compares the dump: how its preprocessing differs, and how much of the distance comes from the
    input and how much from the engine; check.json beside the dump holds all numbers. With --deployed or --targets it
    runs the golden inputs through the deployed file and these engines itself, and compares their outputs likewise;
    targets.json beside the golden file holds all numbers. Exit status of a comparison: 0 within the budget
    (golden/whole/..., golden/input/..., golden/engine/..., golden/<target>/...), 1 beyond, 2 it could not be measured.

    Args:
        ckpt: Checkpoint of the run; with --run: best (the default), last, or a file in it.
        run: Folder of the run, or the one above its versions, of which the newest is taken.
        output: The golden file; read with --check, --deployed and --targets where it is there, else written.
        check: The dump of the deployed side (.npz).
        targets: Names such as emulated-fp16, tensorrt-fp16, to run the golden inputs through.
        samples: How many inputs to write.
        input_key: Which part of a batch goes into forward; by default what the run's deployment_parity says, else the
            signature of forward.
        decode: Method of the module that turns outputs into named values in the task's units; by default the run's,
            else decode; null for none.
        config: The run's config.yaml; by default that in its folder.
        gate: The budget.
        build: How engines are built and run.
    """
    settings, names = BuildSettings(**build), targets or []
    check_positive(samples=samples)
    check_target_names(names)
    files = locate_run(run, ckpt, config)
    print(files)
    options = with_run_arguments(files.config, input_key=input_key, decode=decode)
    if check is not None:
        check_file("golden tensors", output)
        check_file("a dump of the deployed side", check)

    from lightning_robust.callbacks.deployment_parity.calibration import calibration_of_run
    from lightning_robust.commands.work.golden import check_dump, check_engines, read_exact, write_exact
    from lightning_robust.deployment.engines import available
    from lightning_robust.deployment.golden_judge import judge_golden

    runtimes = available(names, settings)
    if check is None and not (runtimes and Path(output).is_file()):
        write_exact(*files[:2], output, samples, options["input_key"])
    if check is None and not runtimes:
        return None
    exact = read_exact(*files[:2], output, options["decode"])
    dump = None if check is None else check_dump(exact, check)
    found = {}
    if runtimes:
        calibration = calibration_of_run(*files[:2], names, settings, options["input_key"])
        found = check_engines(exact, runtimes, settings, calibration, Path(output).with_name("targets.json"))
    return judge_golden(dump, found, gate.limits, gate.source)
