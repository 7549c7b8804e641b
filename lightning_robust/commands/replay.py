"""The command ``replay``: recorded frames through PyTorch, every runtime and every perturbation, into a folder.

``deployment/replay`` does the work.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from lightning_robust.callbacks.deployment_parity.calibration import calibration_of_run
from lightning_robust.deployment.engines import BuildSettings, available
from lightning_robust.deployment.pixels.catalogue import Names
from lightning_robust.deployment.pixels.catalogue import perturbations as named_perturbations
from lightning_robust.deployment.replay.frames import open_recording
from lightning_robust.deployment.replay.measure import replay as replay_frames
from lightning_robust.deployment.replay.report import replay_json, replay_markdown, replay_summary
from lightning_robust.deployment.replay.results import ReplayReport, worst
from lightning_robust.deployment.replay.scenes import animate, draw_worst_frames
from lightning_robust.functional.pixels import PixelSpace
from lightning_robust.harness.normalisation import pixel_space
from lightning_robust.harness.runs import load_data, load_module

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    if settings.device is None:
        settings = replace(settings, device="cuda" if torch.cuda.is_available() else "cpu")
    recording = open_recording(frames, stride=stride, limit=limit, batch_size=batch_size)
    report = replay_frames(
        load_module(ckpt, config),
        recording,
        available(targets, settings),
        perturbations=named_perturbations(perturbations),
        pixels=_pixels(ckpt, config, mean, std),
        value=value,
        settings=settings,
        calibration=calibration_of_run(ckpt, config, targets, settings),
    )
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "replay.json").write_text(json.dumps(replay_json(report), indent=2, allow_nan=False), encoding="utf-8")
    (folder / "replay.md").write_text(replay_markdown(report), encoding="utf-8")
    written = ["replay.json", "replay.md"]
    figure = draw_worst_frames(report, recording)
    if figure is not None:
        figure.savefig(folder / "worst_frames.png", dpi=110)
        animate(report, recording, folder / "replay.gif")
        written += ["worst_frames.png", "replay.gif"]
    _to_tensorboard(report, figure, folder)
    print(replay_summary(report))
    for kind, results in (("runtime", report.runtimes), ("perturbation", report.perturbations)):
        name = worst(results)
        if name is not None:
            print(f"Worst {kind}: {name}, up to {results[name].p99:.3g} px from PyTorch (99th percentile).")
    print(f"Written to {folder}: {', '.join(written)}, TensorBoard events")


def _pixels(
    ckpt: str, config: str | None, mean: float | list[float] | None, std: float | list[float] | None
) -> PixelSpace:
    """How the module's ``preprocess`` normalises: as given, else as the run's data module says, else not at all."""
    if mean is None or std is None:
        try:
            data = load_data(ckpt, config)
        except ValueError:
            data = None  # a run without a data module in its configuration
        mean = getattr(data, "mean", None) if mean is None else mean
        std = getattr(data, "std", None) if std is None else std
    return pixel_space(None, mean, std)


def _to_tensorboard(report: ReplayReport, figure: Figure | None, folder: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        writer.add_text("replay", replay_markdown(report))
        if figure is not None:
            writer.add_figure("replay/worst_frames", figure, close=False)
        for name, result in (report.runtimes | report.perturbations).items():
            for number, line in enumerate(result.lines):
                for metric, amount in line.items():
                    writer.add_scalar(f"replay/{name}/line_{number}/{metric}", amount)
