"""The techniques, three combinations and five starts on lanes: trained on rendered roads, tested on a real recording.

    python benchmarks/suite_lanes.py --recording solidWhiteRight.mp4 [--seeds 0 1 2] [--out runs/suite_lanes] [--jobs 2]

Every row is a command of ``lightning-robust`` over 2,000 rendered pictures and four epochs; finished ones
are kept in ``results.json`` and not run again, and their numbers stand in their folders too, for ``lightning-robust
compare runs/suite_lanes``. In pixels of 960: mean error on rendered pictures, clean and under PGD with 10 steps at eps
2/255 (256 of them); the 99th percentile of what the median preprocessing difference, JPEG 90 and emulated fp16 and tf32
move on 16 of them; and against the reference of ``lanes_recording.py`` the median, swing and bend on the recording.
Rendering is not in what training took.
"""

from __future__ import annotations

import functools
from pathlib import Path

from lanes_recording import Reference, at_rows, measure, read_frames, reference_lines
from rows import COST, MIXED, Columns, measured_run, options, quiet_trainer, run_rows

from lightning_robust import AdversarialCallback, DeploymentParityCallback
from lightning_robust.cli import RobustCLI
from lightning_robust.demo.lanes import predict

CONFIG = "configs/lanes.yaml"
RECIPE = ["--data.num_train=2000", f"--trainer.precision={MIXED}"]
FGSM = ["--adversarial.method=fgsm_rs", "--adversarial.eps=2/255", "--adversarial.val_eps=[]"]
EMA = ["--swa.kind=ema", "--swa.start=0", "--swa.every=1", "--swa.half_life=0.25 epochs", "--swa.bn_samples=1000"]
SWA = ["--swa.start=2", "--swa.bn_samples=1000"]
SOUP = ["ingredients=epochs", "monitor=val/lateral_px", "mode=min", "bn_samples=1000"]
REGMIXUP = ["--model.regmixup_weight=1"]
HALF = ["--data.num_labelled=1000", "--model.uat_unlabelled_key=null", "--model.uat_index_key=null"]
ROWS: dict[str, list[str]] = {
    "plain": [],
    "FGSM-RS": FGSM,
    "SWA": SWA,
    "EMA": EMA,
    "SWALP, 8 bits": [*SWA, "--swa.word_length=8"],
    "greedy soup of epochs": [f"--greedy_soup.{setting}" for setting in SOUP],
    "RegMixup": REGMIXUP,
    "rotation": ["--model.rotation_weight=0.5"],
    "plain, half the labels": ["--data.num_train=1000", "--trainer.max_epochs=8"],
    "UAT-OT, half the labels": [*HALF, "--model.uat_ot_weight=1", "--model.uat_eps=2/255", "--model.uat_steps=3"],
    "FGSM-RS, EMA": [*FGSM, *EMA],
    "FGSM-RS, RegMixup": [*FGSM, *REGMIXUP],
    "RegMixup, EMA": [*REGMIXUP, *EMA],
    "start: Kaiming": ["--initialise=kaiming"],
    "start: orthogonal": ["--initialise=orthogonal"],
    "start: a tenth of PyTorch's": ["--initialise=small"],
    "start: LSUV": ["--initialise=lsuv"],
    "start: pretrained by rotation": ["--model=models.LanesPretrainedByRotation"],
}
COLUMNS: Columns = {
    "clean": ("val/lateral_px", 1, ".1f"),
    "PGD-10": ("val/lateral_px_pgd10", 1, ".0f"),
    "preprocessing": ("attribution/preprocessing", 1, ".1f"),
    "JPEG 90": ("sensitivity/jpeg_90/lateral_px_p99", 1, ".1f"),
    "fp16": ("parity/emulated-fp16/lateral_px_p99", 1, ".2f"),
    "tf32": ("parity/emulated-tf32/lateral_px_p99", 1, ".3f"),
    "recording": ("test/recording_px", 1, ".2f"),
    "swing": ("test/recording_swing_px", 1, ".2f"),
    "bend": ("test/recording_bend_px", 1, ".2f"),
    **COST,
}


def measured(cli: RobustCLI, weights: Path, recording: Path, lines: Reference) -> dict[str, float]:
    """All columns but the cost, of the weights that training returned."""
    cli.trainer.save_checkpoint(weights)
    attack = AdversarialCallback(eps="2/255", val_eps=["2/255"], val_steps=10, val_batches=4)
    parity = DeploymentParityCallback(["emulated-fp16", "emulated-tf32"], num_samples=16, localise=False)
    trainer = quiet_trainer([attack, parity])
    trainer.validate(cli.model, cli.datamodule, verbose=False)
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    (attacked,) = (v for tag, v in found.items() if tag.startswith("adversarial/val_lateral_px@"))
    seen = measure(at_rows(*predict(weights, read_frames(recording))), lines)
    return {
        **{tag: found[tag] for _, (tag, _, _) in COLUMNS.items() if tag in found},
        "val/lateral_px_pgd10": attacked,
        "test/recording_px": seen["median_px"],
        "test/recording_swing_px": seen["swing_px"],
        "test/recording_bend_px": seen["bend_px"],
    }


def trained(name: str, seed: int, folder: Path, recording: Path, lines: Reference) -> dict[str, float]:
    """One row: train by its command, then measure."""
    measure_it = functools.partial(measured, weights=folder / "final.ckpt", recording=recording, lines=lines)
    return measured_run(CONFIG, seed, folder, [*RECIPE, *ROWS[name]], measure_it, idle="soup" in name)


def main() -> None:
    """Run what is missing and print the table."""
    given = options(__doc__, "runs/suite_lanes", ROWS, files=["recording"])
    lines = reference_lines(read_frames(given.recording), 308.0)
    print("\n" + run_rows(given, trained, given.recording, lines).table(given.only, given.seeds, COLUMNS))


if __name__ == "__main__":
    main()
