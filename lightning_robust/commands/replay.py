"""The command ``replay``: recorded frames through PyTorch, every runtime and every perturbation, into a folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lightning_robust.checks import check_file, check_output_folder, check_positive
from lightning_robust.deployment.engines.names import check_target_names
from lightning_robust.deployment.engines.settings import BuildSettings
from lightning_robust.deployment.pixels.names import Names, check_perturbation_names
from lightning_robust.deployment.replay.cases import Case, read_cases
from lightning_robust.gate.check import Judgement
from lightning_robust.gate.options import Gate
from lightning_robust.harness.run_folder import locate_run


def replay(
    *,
    ckpt: str | None = None,
    run: str | None = None,
    frames: str | None = None,
    cases: str | None = None,
    before: str | None = None,
    output: str = "replay",
    config: str | None = None,
    targets: Literal["auto"] | list[str] = "auto",
    perturbations: Names | None = None,
    value: str | None = None,
    mean: float | list[float] | None = None,
    std: float | list[float] | None = None,
    stride: int = 1,
    limit: int | None = None,
    batch_size: int = 16,
    gate: Gate,
    **build: Any,
) -> Judgement:
    """Send recorded frames through PyTorch, every runtime and every perturbation: do the lines swing or bend?

    Writes replay.json, replay.md, worst_frames.png, replay.gif and TensorBoard events into the output folder, and
    prints the table. The module needs `preprocess(frames)` (uint8 RGB, N x H x W x 3, to what forward takes) and
    `decode(outputs)` (lines as columns in pixels, N x lines x rows, NaN where there is none), under the name that the
    run's deployment_parity gives it.

    With --cases it replays a case book: a folder of YAML files, each with a recording, a window, bounds, and why it is
    there. It writes one page, cases.html, with what is beyond its bounds first, and cases.json. Exit status: 0 within
    all bounds and the budget (replay/<target>/<metric>, and in blocks for classes of cases), 1 beyond, 2 what a bound,
    the budget or --targets names could not be measured.

    Args:
        ckpt: Checkpoint of the module; with --run: best (the default), last, or a file in it.
        run: Folder of the run, or the one above its versions, of which the newest is taken.
        frames: A video (needs the extra `video`), a folder of pictures, or one picture.
        cases: A folder of cases, in place of frames.
        before: What the cases are set beside: an earlier checkpoint, or the cases.json of an earlier run.
        output: Folder for the results.
        config: The run's config.yaml; by default that in its folder.
        targets: "auto" for all that this machine can build, or names like emulated-fp16.
        perturbations: "typical", "all", "none", or names of preprocessing perturbations and their families; by default
            the typical ones, and of a case those that its bounds name.
        value: Which value of `decode` holds the lines; by default the first floating one of three dimensions.
        mean: What preprocessing subtracts; by default what the run's deployment_parity says, else its data module.
        std: What preprocessing divides by, likewise.
        stride: Take every n-th frame; a case says its own.
        limit: The most frames to take; a case has a window instead.
        batch_size: Frames at a time.
        gate: The budget.
        build: How engines are built and run.
    """
    settings = BuildSettings(**build)
    check_positive(stride=stride, limit=limit, batch_size=batch_size)
    check_target_names(targets)
    check_perturbation_names(perturbations or "none")
    _refuse_nothing(targets or settings.deployed, perturbations)
    files = locate_run(run, ckpt, config)
    book = _read_book(frames, cases, before, whole=stride == 1 and limit is None)
    check_output_folder(output)

    from lightning_robust.commands.work.cases import limit_case, limited_targets, replay_book
    from lightning_robust.commands.work.replay import Replayer, any_device, write_folder
    from lightning_robust.deployment.replay.frames import open_recording
    from lightning_robust.deployment.replay.judge import judge_replay

    settings = replace(settings, device=settings.device or any_device())
    print(files)
    replayer = Replayer(files.checkpoint, files.config, targets, settings, value, mean, std)
    if frames is None:
        limited = [limit_case(case, gate.budget) for case in book]
        judgement = replay_book(limited, replayer, before, perturbations, batch_size, Path(output))
        return replace(judgement, budget=" and ".join(filter(None, [judgement.budget, gate.budget.source])))
    recording = open_recording(frames, stride=stride, limit=limit, batch_size=batch_size)
    chosen: Names = "typical" if perturbations is None else perturbations
    report = replayer.replay(recording, chosen, limited_targets(gate.limits))
    write_folder(report, recording, Path(output))
    return judge_replay(report, gate.limits, gate.source, demanded=[] if targets == "auto" else targets)


def _refuse_nothing(targets: object, perturbations: Names | None) -> None:
    if not targets and perturbations in ("none", []):
        raise ValueError("Expected a target or a perturbation to measure, but got neither.")


def _read_book(frames: str | None, cases: str | None, before: str | None, *, whole: bool) -> list[Case]:
    """The cases, where there are any; refuses what goes with frames alone, or with cases alone."""
    if (frames is None) == (cases is None):
        got = "neither" if frames is None else "both"
        raise ValueError(f"Expected a recording (--frames) or a folder of cases (--cases), but got {got}.")
    if cases is None:
        if before is not None:
            raise ValueError("Expected `before` together with --cases, but got it with --frames.")
        if frames is not None and not Path(frames).exists():
            raise FileNotFoundError(
                f"Expected a video, a picture or a folder of pictures at {frames}, but nothing is there."
            )
        return []
    if not whole:
        raise ValueError("Expected `stride` and `limit` with --frames alone: a case says its window and its stride.")
    check_file("an earlier checkpoint or cases.json", before)
    return read_cases(cases)
