"""The techniques and three combinations on lanes: trained on rendered roads, tested on a real recording.

    python benchmarks/suite_lanes.py --recording solidWhiteRight.mp4 [--seeds 0 1 2] [--out runs/suite_lanes]

Every row is a command of ``lightning-robust`` over 3,000 rendered pictures and four epochs, the last of which is
measured; finished ones are kept in ``results.json`` and not run again. In pixels of 960: mean error on rendered
pictures, clean and under PGD with 10 steps at eps 2/255 (256 of them); the 99th percentile of what the median
preprocessing difference, JPEG 90 and emulated fp16 and tf32 move on 16 of them; and against the reference of
``lanes_recording.py`` the median, swing and bend on the recording. Seconds are of the training, with one parity pass.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from pathlib import Path
from typing import Any

from lanes_recording import at_rows, measure, read_frames, reference_lines
from rows import Results, options, quiet_trainer, run

from lightning_robust import AdversarialCallback
from lightning_robust.cli import RobustCLI
from lightning_robust.demo.lanes import predict
from lightning_robust.utilities.tables import markdown

CONFIG = "configs/lanes.yaml"
PARITY = ["targets=[emulated-fp16,emulated-tf32]", "num_samples=16", "every_n_epochs=4"]
RECIPE = ["--data.num_train=3000", *(f"--deployment_parity.{setting}" for setting in PARITY)]
FGSM = ["--adversarial.method=fgsm_rs", "--adversarial.eps=2/255", "--adversarial.val_eps=[]"]
EMA = ["--swa.kind=ema", "--swa.start=0", "--swa.every=1", "--swa.half_life=0.25 epochs", "--swa.bn_samples=1000"]
REGMIXUP = ["--model.regmixup_weight=1"]
ROWS: dict[str, list[str]] = {
    "plain": [],
    "FGSM-RS": FGSM,
    "SWA": ["--swa.start=2", "--swa.bn_samples=1000"],
    "EMA": EMA,
    "RegMixup": REGMIXUP,
    "rotation": ["--model.rotation_weight=0.5"],
    "UAT-OT, half the labels": [
        *("--model.uat_ot_weight=1", "--model.uat_eps=2/255", "--model.uat_steps=3", "--data.num_labelled=1500"),
        *("--model.uat_unlabelled_key=null", "--model.uat_index_key=null"),
    ],
    "FGSM-RS, EMA": [*FGSM, *EMA],
    "FGSM-RS, RegMixup": [*FGSM, *REGMIXUP],
    "RegMixup, EMA": [*REGMIXUP, *EMA],
}
COLUMNS = ("clean", "PGD-10", "preprocessing", "JPEG 90", "fp16", "tf32", "recording", "swing", "bend", "seconds")


@functools.cache
def reference(path: Path) -> tuple[Any, Any]:
    """Frames of the recording and the lines in them."""
    frames = read_frames(path)
    return frames, reference_lines(frames, 308.0)


def measured(cli: RobustCLI, weights: Path, recording: Path) -> dict[str, float]:
    """All columns but the time."""
    logged = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    attack = AdversarialCallback(eps="2/255", val_eps=["2/255"], val_steps=10, val_batches=4)
    (found,) = quiet_trainer([attack]).validate(cli.model, cli.datamodule, verbose=False)
    (attacked,) = (v for tag, v in found.items() if tag.startswith("adversarial/val_lateral_px@"))
    frames, lines = reference(recording)
    seen = measure(at_rows(*predict(weights, frames)), lines)
    return {
        "clean": found["val/lateral_px"],
        "PGD-10": attacked,
        "preprocessing": logged["attribution/preprocessing"],
        "JPEG 90": logged["sensitivity/jpeg_90/lateral_px_p99"],
        "fp16": logged["parity/emulated-fp16/lateral_px_p99"],
        "tf32": logged["parity/emulated-tf32/lateral_px_p99"],
        "recording": seen["median_px"],
        "swing": seen["swing_px"],
        "bend": seen["bend_px"],
    }


def trained(name: str, seed: int, folder: Path, recording: Path) -> dict[str, float]:
    """Train by one command, then measure the weights that it returns."""
    began = time.perf_counter()
    cli = run("fit", CONFIG, seed, folder, *RECIPE, *ROWS[name])
    seconds = time.perf_counter() - began
    weights = folder / "final.ckpt"
    cli.trainer.save_checkpoint(weights)
    return {**measured(cli, weights, recording), "seconds": seconds}


def main(given: argparse.Namespace) -> None:
    """Run what is missing and print the table: medians over seeds."""
    results = Results(given.out)
    for seed in given.seeds:
        for name in given.only:
            folder = results.folder / name.replace(" ", "_").replace(",", "") / str(seed)
            results.get(name, seed, lambda n=name, s=seed, f=folder: trained(n, s, f, given.recording))  # type: ignore[misc]
    rows = []
    for name in given.only:
        each = [results.content[f"{name} | {seed}"] for seed in given.seeds]
        rows.append([name, *(f"{statistics.median(numbers[column] for numbers in each):.3g}" for column in COLUMNS)])
    print(markdown(["training", *COLUMNS], rows))


if __name__ == "__main__":
    main(options(__doc__, "runs/suite_lanes", ROWS, files=["recording"]))
