"""The command ``replay``: recorded frames through PyTorch, every runtime and every perturbation, into a folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lightning_robust.checks import check_file, check_positive
from lightning_robust.deployment.engines.names import check_target_names
from lightning_robust.deployment.engines.settings import BuildSettings
from lightning_robust.deployment.pixels.names import Names, check_perturbation_names


def replay(
    *,
    ckpt: str,
    frames: str,
    output: str = "replay",
    config: str | None = None,
    targets: Literal["auto"] | list[str] = "auto",
    perturbations: Names = "typical",
    value: str | None = None,
    mean: float | list[float] | None = None,
    std: float | list[float] | None = None,
    stride: int = 1,
    limit: int | None = None,
    batch_size: int = 16,
    **build: Any,
) -> None:
    """Send recorded frames through PyTorch, every runtime and every perturbation: do the lines swing or bend?

    Writes replay.json, replay.md, worst_frames.png, replay.gif and TensorBoard events into the output folder, and
    prints the table. The module needs `preprocess(frames)` (uint8 RGB, N x H x W x 3, to what forward takes) and
    `decode(outputs)` (lines as columns in pixels, N x lines x rows, NaN where there is none).

    Args:
        ckpt: Checkpoint of the module.
        frames: A video (needs the extra `video`), a folder of pictures, or one picture.
        output: Folder for the results.
        config: The run's config.yaml; by default the one near the checkpoint.
        targets: "auto" for all that this machine can build, or names like emulated-fp16.
        perturbations: "typical", "all", "none", or names of preprocessing perturbations and their families.
        value: Which value of `decode` holds the lines; by default the first floating one of three dimensions.
        mean: What preprocessing subtracts; by default the data module's.
        std: What preprocessing divides by; by default the data module's.
        stride: Take every n-th frame.
        limit: The most frames to take.
        batch_size: Frames at a time.
        build: How engines are built and run.
    """
    settings = BuildSettings(**build)
    check_positive(stride=stride, limit=limit, batch_size=batch_size)
    check_target_names(targets)
    check_perturbation_names(perturbations)
    check_file("a checkpoint", ckpt)
    check_file("a configuration", config)
    if not Path(frames).exists():
        raise FileNotFoundError(
            f"Expected a video, a picture or a folder of pictures at {frames}, but nothing is there."
        )

    from lightning_robust.callbacks.deployment_parity.calibration import calibration_of_run
    from lightning_robust.commands.work.replay import any_device, pixels_of_run, write_folder
    from lightning_robust.deployment.engines import available
    from lightning_robust.deployment.pixels.catalogue import perturbations as named_perturbations
    from lightning_robust.deployment.replay.frames import open_recording
    from lightning_robust.deployment.replay.measure import replay as replay_frames
    from lightning_robust.harness.runs import load_module

    settings = replace(settings, device=settings.device or any_device())
    recording = open_recording(frames, stride=stride, limit=limit, batch_size=batch_size)
    report = replay_frames(
        load_module(ckpt, config),
        recording,
        available(targets, settings),
        perturbations=named_perturbations(perturbations),
        pixels=pixels_of_run(ckpt, config, mean, std),
        value=value,
        settings=settings,
        calibration=calibration_of_run(ckpt, config, targets, settings),
    )
    write_folder(report, recording, Path(output))
