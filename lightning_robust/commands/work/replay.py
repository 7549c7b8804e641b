"""What the command ``replay`` reads off a run, and what it writes; ``deployment/replay`` does the rest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from lightning_robust.callbacks.deployment_parity.calibration import calibration_of_run
from lightning_robust.deployment.engines import available
from lightning_robust.deployment.engines.settings import BuildSettings
from lightning_robust.deployment.engines.targets import runtime
from lightning_robust.deployment.pixels.catalogue import perturbations
from lightning_robust.deployment.pixels.names import Names
from lightning_robust.deployment.replay.measure import replay as replay_frames
from lightning_robust.deployment.replay.recording import Recording
from lightning_robust.deployment.replay.report import replay_json, replay_markdown, replay_summary
from lightning_robust.deployment.replay.results import ReplayReport, worst
from lightning_robust.deployment.replay.scenes import animate, draw_worst_frames
from lightning_robust.functional.pixels import PixelSpace
from lightning_robust.harness.normalisation import pixel_space
from lightning_robust.harness.run_folder import AUTO, read_config, with_run_arguments
from lightning_robust.harness.runs import load_data, load_module

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def any_device() -> str:
    """The device of a machine, for targets of torch."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Replayer:
    """One checkpoint, and how recorded frames go through it.

    Args:
        ckpt: The checkpoint.
        config: The configuration of its run.
        targets: ``"auto"`` or names.
        settings: How engines are built and run.
        value: Which decoded value holds the lines.
        mean: What preprocessing subtracts; by default what the run says to the parity callback, else its data module.
        std: What preprocessing divides by, likewise.
    """

    ckpt: str
    config: str
    targets: Literal["auto"] | list[str]
    settings: BuildSettings
    value: str | None = None
    mean: float | list[float] | None = None
    std: float | list[float] | None = None

    def replay(self, recording: Recording, perturbed: Names, more: Sequence[str] = ()) -> ReplayReport:
        """The lines of one recording.

        Args:
            recording: The frames.
            perturbed: ``"typical"``, ``"all"``, ``"none"``, or names of perturbations and their families.
            more: Targets that are run beside those of ``"auto"``.
        """
        runtimes = available(self.targets, self.settings)
        known = {made.name for made in runtimes}
        wanted = [runtime(name) for name in more if name not in known] if self.targets == "auto" else []
        return replay_frames(
            self._module,
            recording,
            [*runtimes, *wanted],
            perturbations=perturbations(perturbed),
            pixels=self._pixels,
            value=self.value,
            decode=self._said["decode"] or "decode",
            settings=self.settings,
            calibration=calibration_of_run(
                self.ckpt, self.config, [*known, *more], self.settings, self._said["input_key"]
            ),
        )

    @cached_property
    def _module(self) -> nn.Module:
        return load_module(self.ckpt, self.config)

    @cached_property
    def _pixels(self) -> PixelSpace:
        """How ``preprocess`` normalises: as said, else as the run's data module says, else not at all."""
        mean, std = self._said["mean"], self._said["std"]
        if mean is None or std is None:
            data = load_data(self.ckpt, self.config) if read_config(self.config).get("data") else None
            mean = getattr(data, "mean", None) if mean is None else mean
            std = getattr(data, "std", None) if std is None else std
        return pixel_space(None, mean, std)

    @cached_property
    def _said(self) -> dict[str, Any]:
        """What the user says, else what the run says to the parity callback."""
        return with_run_arguments(self.config, input_key=None, decode=AUTO, mean=self.mean, std=self.std)


def write_folder(report: ReplayReport, recording: Recording, folder: Path) -> None:
    """Write the results of a replay into a folder, and print them in short."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "replay.json").write_text(json.dumps(replay_json(report), indent=2, allow_nan=False), encoding="utf-8")
    (folder / "replay.md").write_text(replay_markdown(report), encoding="utf-8")
    written = ["replay.json", "replay.md"]
    for earlier in ("worst_frames.png", "replay.gif"):  # of another replay into the same folder
        (folder / earlier).unlink(missing_ok=True)
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
