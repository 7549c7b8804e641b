"""What RegMixup, rotation self-supervision and unsupervised adversarial training buy on Fashion-MNIST.

    python benchmarks/objectives.py [--seeds 0 1 2] [--out runs/objectives]

Every row is a command of ``lightning-robust`` (with this folder on PYTHONPATH); finished ones are kept in
``results.json``. Shifted: the mean over noise, blur and contrast at three strengths each, on the first 5,000 test
pictures. Pictures from elsewhere: digits in five fonts that come with matplotlib, turned and moved; the score is the
confidence of the prediction. Attacked: PGD with 20 steps on the first 2,000 test pictures.
"""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import matplotlib
import torch
from PIL import Image, ImageDraw, ImageFont
from rows import Results, options, run, slug, summary
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, multiclass_calibration_error

from lightning_robust import AdversarialCallback
from lightning_robust.cli import RobustCLI

CONFIG = "configs/fashion_mnist.yaml"
FEW = ["--data.num_train=10000", "--trainer.max_epochs=15"]
ROBUST = "--model=lightning_robust.demo.fashion_mnist.RobustImageClassifier"
MIXED = {
    "plain": [],
    "mixup": ["--model=models.Mixup"],
    "RegMixup": [ROBUST, "--model.regmixup_weight=1"],
}
FAST = [
    "--model=models.RobustFastNet",
    "--model.learning_rate=5e-3",
    "--model.weight_decay=0",
    "--data.batch_size=100",
    "--data.flip=false",
]
ATTACK = ["--adversarial.eps=0.1", "--adversarial.val_eps=[]"]
PGD = ["--trainer.max_epochs=3", *ATTACK, "--adversarial.method=pgd", "--adversarial.step_size=0.025"]
TURNED = {
    "PGD-7": PGD,
    "PGD-7, rotation": [*PGD, "--model.rotation_weight=0.5"],
}
LABELLED = ["--trainer.max_epochs=5", *ATTACK, "--adversarial.method=fgsm_rs"]
HALF = [
    *LABELLED,
    "--data.num_train=20500",
    "--data.num_labelled=500",
    "--adversarial.input_key=labelled.0",
    "--model.uat_unlabelled_key=unlabelled.0",
    "--model.uat_index_key=unlabelled.1",
    "--model.uat_eps=0.1",
    "--model.uat_steps=5",
    "--model.uat_target_epochs=2",
]
UNLABELLED = {
    "500 labels": [
        *LABELLED,
        "--data.num_train=500",
        "--trainer.max_epochs=200",
        "--trainer.check_val_every_n_epoch=50",
    ],
    "500 labels, UAT-OT": [*HALF, "--model.uat_ot_weight=5"],
    "500 labels, UAT-FT": [*HALF, "--model.uat_ft_weight=1"],
    "500 labels, UAT++": [*HALF, "--model.uat_ot_weight=5", "--model.uat_ft_weight=1"],
    "20,500 labels": [*LABELLED, "--data.num_train=20500"],
}


def blurred(pixels: Tensor, sigma: float) -> Tensor:
    """Pixels (N, 1, H, W) under a Gaussian of 9 x 9 taps, mirrored at the border."""
    taps = torch.exp(-((torch.arange(9.0) - 4) ** 2) / (2 * sigma**2))
    taps = taps / taps.sum()
    padded = torch.nn.functional.pad(pixels, (4, 4, 4, 4), mode="reflect")
    return torch.nn.functional.conv2d(padded, torch.outer(taps, taps)[None, None])


def shifts(pixels: Tensor) -> dict[str, Tensor]:
    """Test pictures in [0, 1], shifted in nine ways."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(pixels.shape, generator=generator)
    found = {f"noise {s}": (pixels + s * noise).clamp(0, 1) for s in (0.05, 0.1, 0.2)}
    found |= {f"blur {s}": blurred(pixels, s) for s in (0.7, 1.0, 1.5)}
    return found | {f"contrast {s}": 0.5 + s * (pixels - 0.5) for s in (0.7, 0.5, 0.3)}


def digits(count: int = 2000) -> Tensor:
    """Rendered digits as Fashion-MNIST would hold them, ``(N, 1, 28, 28)`` in [0, 1]."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    names = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral")
    generator, pictures = torch.Generator().manual_seed(0), []
    for index in range(count):
        font = ImageFont.truetype(str(folder / f"{names[index % 5]}.ttf"), 22 + index % 4)
        angle, right, down = (torch.rand(3, generator=generator) * 2 - 1).tolist()
        picture = Image.new("L", (28, 28))
        place = (14 + 3 * right, 14 + 3 * down)
        ImageDraw.Draw(picture).text(place, str(index % 10), fill=255, font=font, anchor="mm")
        turned = picture.rotate(15 * angle, Image.Resampling.BILINEAR)
        pictures.append(torch.frombuffer(bytearray(turned.tobytes()), dtype=torch.uint8).reshape(1, 28, 28))
    return torch.stack(pictures).float() / 255


def looked_at(cli: RobustCLI) -> dict[str, float]:
    """Clean and shifted accuracy, calibration, and how confidence tells digits from clothes."""
    data = cli.datamodule
    data.setup("test")
    clothes = data.test_dataloader().dataset
    pixels, labels = clothes.images[:5000].float() / 255, clothes.labels[:5000]
    (mean,), (std,) = data.mean, data.std
    module = cli.model.eval()

    @torch.no_grad()
    def predict(images: Tensor) -> Tensor:
        return torch.cat([module((part - mean) / std).softmax(1) for part in images.split(500)])

    def accuracy(probabilities: Tensor) -> float:
        return (probabilities.argmax(1) == labels).float().mean().item()

    clean = predict(pixels)
    moved = {name: accuracy(predict(images)) for name, images in shifts(pixels).items()}
    confidence = torch.cat([clean.amax(1), predict(digits()).amax(1)])
    elsewhere = (torch.arange(len(confidence)) >= len(clean)).long()
    return {
        "clean": accuracy(clean),
        "shifted": sum(moved.values()) / len(moved),
        **moved,
        "auroc": binary_auroc(1 - confidence, elsewhere).item(),
        "ece": multiclass_calibration_error(clean, labels, 10).item(),
    }


def attacked(cli: RobustCLI) -> dict[str, float]:
    """Clean accuracy and that under PGD-20, at the radius of training and above."""
    radii = [0.05, 0.1, 0.15]
    attack = AdversarialCallback(eps=0.1, val_eps=radii, val_steps=20, val_batches=20)
    trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[attack], enable_progress_bar=False)
    (found,) = trainer.test(cli.model, cli.datamodule, verbose=False)
    return {"clean": found["test/acc"]} | {f"{r:g}": found[f"adversarial/test_acc@{r:g}"] for r in radii}


def measured(
    measure: Callable[[RobustCLI], dict[str, float]], seed: int, folder: Path, arguments: list[str]
) -> dict[str, float]:
    """Train, then look at what came of it."""
    start = time.perf_counter()
    cli = run("fit", CONFIG, seed, folder, *arguments)
    return {"seconds": time.perf_counter() - start, **measure(cli)}


def main() -> None:
    """Run what is missing and print the tables."""
    sys.path.insert(0, str(Path(__file__).parent))
    given = options(__doc__, "runs/objectives")
    results, seeds = Results(given.out), given.seeds
    tables = (
        ("mixed", MIXED, FEW, looked_at),
        ("turned", TURNED, FAST, attacked),
        ("half", UNLABELLED, FAST, attacked),
    )
    for seed in seeds:
        for table, rows, recipe, measure in tables:
            for name, switches in rows.items():
                folder = results.folder / table / slug(name) / str(seed)
                results.get(name, seed, functools.partial(measured, measure, seed, folder, [*recipe, *switches]))
    for _, rows, _, _ in tables:
        keys = [key for key in results.content[f"{next(iter(rows))} | {seeds[0]}"] if key != "seconds"]
        keys = [key for key in keys if not key.startswith(("noise", "blur", "contrast"))]
        print(f"\n| training | {' | '.join(keys)} | seconds |\n|{' --- |' * (len(keys) + 2)}")
        for name in rows:
            each = [results.content[f"{name} | {seed}"] for seed in seeds]
            seconds = sorted(numbers["seconds"] for numbers in each)[len(each) // 2]
            print(f"| {name} | {' | '.join(summary([n[key] for n in each]) for key in keys)} | {math.ceil(seconds)} |")


if __name__ == "__main__":
    main()
