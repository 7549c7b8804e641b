"""Every technique alone, three combinations, and ways to initialise, under one recipe on Fashion-MNIST.

    python benchmarks/suite.py [--seeds 0 1 2] [--out runs/suite] [--only plain EMA] [--jobs 2]

Every row is a command of ``lightning-robust`` (with this folder on PYTHONPATH) over 5,000 pictures and ten epochs;
finished ones are kept in ``results.json`` and not run again, and their numbers stand in their folders too, for
``lightning-robust compare runs/suite``. Measured on the test pictures: clean and shifted (``objectives.py``), attacked
by one FGSM step and by PGD with 20 steps at eps 8/255 (the first 2,000); on 64 of them what the median preprocessing
difference and emulated fp16 and tf32 move (relative L2 of the logits); and what training took. The pairs combine the
three techniques that help alone. WiSE-FT needs a model to fine-tune and has its own table (``weight_space.py``); the
diagnostics leave weights alone.
"""

from __future__ import annotations

from pathlib import Path

from objectives import looked_at
from rows import COST, Columns, measured_run, options, quiet_trainer, run_rows

from lightning_robust import AdversarialCallback, measure_parity
from lightning_robust.cli import RobustCLI
from lightning_robust.deployment.engines import Subject, available
from lightning_robust.deployment.graph.export import frozen_copy
from lightning_robust.deployment.pixels.catalogue import perturbations
from lightning_robust.functional.pixels import PixelSpace

CONFIG = "configs/fashion_mnist.yaml"
RECIPE = ["--data.num_train=5000", "--trainer.max_epochs=10"]
EPS = "8/255"
ADVERSARIAL = ["--adversarial.eps=0.05", "--adversarial.val_eps=[]"]
FGSM = [*ADVERSARIAL, "--adversarial.method=fgsm_rs"]
STEPS = ["--adversarial.steps=5", "--adversarial.step_size=0.02"]
EMA = ["--swa.kind=ema", "--swa.start=0", "--swa.every=1", "--swa.half_life=0.5 epochs", "--swa.bn_samples=5000"]
SWA = ["--swa.start=7", "--swa.bn_samples=5000"]
REGMIXUP = ["--model.regmixup_weight=1"]
SOUP = ["--greedy_soup.ingredients=epochs", "--greedy_soup.monitor=val/acc", "--greedy_soup.mode=max"]
# as many steps as with 5,000 pictures, 38 an epoch
LABELS = ["--data.num_train=500", "--trainer.max_epochs=127", "--trainer.check_val_every_n_epoch=127"]
UNLABELLED = ["--data.num_labelled=500", "--model.uat_unlabelled_key=unlabelled.0"]
REWIND = ["monitor=val/acc", "mode=max", "rewind=0.1", "threshold=0.5", "checkpoints=[]", "draws=1"]
ROWS = {
    "plain": [],
    "FGSM-RS": FGSM,
    "PGD-5": [*ADVERSARIAL, "--adversarial.method=pgd", *STEPS],
    "TRADES": [*ADVERSARIAL, "--adversarial.method=trades", *STEPS],
    "SWA": SWA,
    "EMA": EMA,
    "SWALP, 8 bits": [*SWA, "--swa.word_length=8"],
    "greedy soup of epochs": SOUP,
    "RegMixup": REGMIXUP,
    "rotation": ["--model.rotation_weight=0.5"],
    "plain, 500 labels": LABELS,
    "UAT-OT, 500 labels": [*UNLABELLED, "--model.uat_ot_weight=0.5", "--model.uat_eps=0.05", "--model.uat_steps=3"],
    "FGSM-RS, EMA": [*FGSM, *EMA],
    "FGSM-RS, RegMixup": [*FGSM, *REGMIXUP],
    "RegMixup, EMA": [*REGMIXUP, *EMA],
    "start: Kaiming": ["--initialise=kaiming"],
    "start: orthogonal": ["--initialise=orthogonal"],
    "start: a tenth of PyTorch's": ["--initialise=small"],
    "start: LSUV": ["--initialise=lsuv"],
    "start: pretrained by rotation": ["--model=models.PretrainedByRotation"],
    "ambient layers rewound": [f"--layer_criticality.{setting}" for setting in REWIND],
}
COLUMNS: Columns = {
    "clean": ("test/acc", 100, ".1f"),
    "shifted": ("test/acc_shifted", 100, ".1f"),
    "FGSM": ("test/acc_fgsm", 100, ".1f"),
    "PGD-20": ("test/acc_pgd20", 100, ".1f"),
    "preprocessing": ("attribution/preprocessing", 1, ".2f"),
    "fp16": ("parity/emulated-fp16/rel_l2", 1, ".1e"),
    "tf32": ("parity/emulated-tf32/rel_l2", 1, ".1e"),
    **COST,
}


def attacked(cli: RobustCLI, steps: int) -> float:
    """Accuracy on the first 2,000 test pictures under an attack."""
    attack = AdversarialCallback(eps=EPS, val_eps=[EPS], val_steps=steps, val_batches=16)
    (found,) = quiet_trainer([attack]).test(cli.model, cli.datamodule, verbose=False)
    (accuracy,) = (value for tag, value in found.items() if tag.startswith("adversarial/test_acc@"))
    return accuracy


def measured(cli: RobustCLI) -> dict[str, float]:
    """All columns but the cost."""
    seen, data = looked_at(cli), cli.datamodule
    images = next(iter(data.test_dataloader()))[0][:64]
    subject = Subject(frozen_copy(cli.model), (data.on_after_batch_transfer((images, images), 0)[0],))
    parity = measure_parity(
        subject,
        available(["emulated-fp16", "emulated-tf32"]),
        perturbations=perturbations(),
        pixels=PixelSpace(data.mean, data.std),
    ).scalars()
    return {
        "test/acc": seen["clean"],
        "test/acc_shifted": seen["shifted"],
        "test/acc_fgsm": attacked(cli, 1),
        "test/acc_pgd20": attacked(cli, 20),
        **{tag: parity[tag] for _, (tag, _, _) in COLUMNS.items() if tag in parity},
    }


def trained(name: str, seed: int, folder: Path) -> dict[str, float]:
    """One row: train by its command, then measure."""
    return measured_run(CONFIG, seed, folder, [*RECIPE, *ROWS[name]], measured, idle="soup" in name)


def main() -> None:
    """Run what is missing and print the table."""
    given = options(__doc__, "runs/suite", ROWS)
    print("\n" + run_rows(given, trained).table(given.only, given.seeds, COLUMNS))


if __name__ == "__main__":
    main()
