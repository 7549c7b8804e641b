"""What averaging weights buys on Fashion-MNIST: SWA, EMA, SWALP, soups and WiSE-FT beside their baselines.

    python benchmarks/weight_space.py [--seeds 0 1 2] [--out runs/weight_space]

Every row is a command of ``lightning-robust``; finished ones are kept in ``results.json`` and not run again. Accuracy
is that of the weights that training returns, on the 10,000 test pictures.
"""

from __future__ import annotations

import json

from rows import Results, accuracies, checkpoint, options, run, slug, summary

from lightning_robust import load_averaged

BASE = "configs/fashion_mnist_sgd.yaml"
AVERAGED = ["--swa.start=8", "--swa.lr=0.05", "--swa.bn_samples=5000"]
ROWS = {
    "SGD, cosine schedule": [],
    "SWA": AVERAGED,
    "SWA, lr 0.02": ["--swa.start=8", "--swa.lr=0.02", "--swa.bn_samples=5000"],
    "EMA": ["--swa.kind=ema", "--swa.start=0", "--swa.every=1", "--swa.half_life=0.5 epochs", "--swa.bn_samples=5000"],
    "8-bit SGD": ["--swa.word_length=8", "--swa.start=1000"],
    "SWALP, 8 bits": [*AVERAGED, "--swa.word_length=8"],
}
AVERAGES = ("SWA", "SWA, lr 0.02", "EMA", "SWALP, 8 bits")
RATES = (0.003, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.2)
JUDGE = ["--monitor=val/acc", "--mode=max"]


def averaging(results: Results, row: str, seed: int) -> None:
    """A row of the first table."""
    folder = results.folder / slug(row) / str(seed)

    def raw() -> dict[str, float]:
        cli = run("validate", BASE, seed, folder / "raw")
        cli.model.load_state_dict(load_averaged(checkpoint(folder), "raw"))
        return accuracies(cli)

    results.get(row, seed, lambda: accuracies(run("fit", BASE, seed, folder, *ROWS[row])))
    if row in AVERAGES:
        results.get(f"{row}, its raw weights", seed, raw)


def soup(results: Results, seed: int) -> None:
    """Eight short runs from the first row's weights, their best, their uniform and their greedy soup."""
    start = checkpoint(results.folder / "SGD_cosine_schedule" / str(seed))
    folder = results.folder / "soup" / str(seed)
    for index, rate in enumerate(RATES):
        arguments = [
            f"--model.weights={start}",
            "--trainer.max_epochs=3",
            "--lr_scheduler.T_max=3",
            f"--optimizer.lr={rate}",
        ]

        def fit(index: int = index, arguments: list[str] = arguments) -> dict[str, float]:
            cli = run("fit", BASE, 100 * seed + index, folder / f"run{index}", *arguments)
            val = float(cli.trainer.callback_metrics["val/acc"])
            return accuracies(cli) | {"val": val}

        results.get(f"ingredient {index} (lr {rate})", seed, fit)
    for recipe in ("uniform", "greedy"):

        def cook(recipe: str = recipe) -> dict[str, float]:
            where = f"--dirpath={folder / recipe / 'soup'}"
            cli = run(
                "soup",
                BASE,
                seed,
                folder / recipe,
                f"--ingredients={folder}/run*/**/last.ckpt",
                f"--recipe={recipe}",
                where,
                *JUDGE,
            )
            content = json.loads((folder / recipe / "soup" / "soup.json").read_text())
            return accuracies(cli) | {"val": content["score"], "ingredients": len(content["order"])}

        results.get(f"{recipe} soup", seed, cook)


def wise_ft(results: Results, seed: int) -> None:
    """Fine-tuning on turned and noisy pictures, clean ones being the shift."""
    start = checkpoint(results.folder / "SGD_cosine_schedule" / str(seed))
    folder = results.folder / "wise_ft" / str(seed)
    corrupted = ["--data.corruption=rotated_noisy", f"--model.weights={start}"]

    def zero_shot() -> dict[str, float]:
        cli = run("validate", BASE, seed, folder / "zero_shot", *corrupted)
        return accuracies(cli)

    def fit(name: str, *settings: str) -> dict[str, float]:
        short = ["--trainer.max_epochs=5", "--lr_scheduler.T_max=5", "--optimizer.lr=0.05"]
        judge = ["--wise_ft.monitor=val/acc", "--wise_ft.mode=max", *settings]
        cli = run("fit", BASE, seed, folder / name, *corrupted, *short, *judge)
        numbers = {"alpha": float(cli.trainer.callback_metrics["wise_ft/alpha"])} | accuracies(cli)
        fine_tuned = accuracies(cli, checkpoint(folder / name))
        return numbers | {f"fine_tuned {key}": value for key, value in fine_tuned.items()}

    results.get("zero-shot", seed, zero_shot)
    results.get("WiSE-FT", seed, lambda: fit("fit", "--wise_ft.bn_samples=5000"))
    results.get("WiSE-FT, mixed BatchNorm", seed, lambda: fit("mixed", "--wise_ft.bn_refresh=false"))


def main() -> None:
    """Run what is missing and print the tables."""
    given = options(__doc__, "runs/weight_space")
    results, seeds = Results(given.out), given.seeds
    for seed in seeds:
        for row in ROWS:
            averaging(results, row, seed)
        soup(results, seed)
        wise_ft(results, seed)
    print("\n| row | test accuracy, % |\n| --- | --- |")
    averaged = [name for row in ROWS for name in (row, f"{row}, its raw weights")[: 2 if row in AVERAGES else 1]]
    for row in [*averaged, "uniform soup", "greedy soup"]:
        print(f"| {row} | {summary([results.content[f'{row} | {seed}']['acc'] for seed in seeds])} |")
    best = [
        max(
            (v for k, v in results.content.items() if k.startswith("ingredient") and k.endswith(f"| {seed}")),
            key=lambda v: v["val"],
        )
        for seed in seeds
    ]
    print(f"| best ingredient | {summary([entry['acc'] for entry in best])} |")
    for loader in ("acc/dataloader_idx_0", "acc/dataloader_idx_1"):
        for label, row, key in (
            ("zero-shot", "zero-shot", loader),
            ("fine-tuned", "WiSE-FT", f"fine_tuned {loader}"),
            ("WiSE-FT", "WiSE-FT", loader),
            ("WiSE-FT, mixed BatchNorm", "WiSE-FT, mixed BatchNorm", loader),
        ):
            print(f"| {label}, {loader} | {summary([results.content[f'{row} | {seed}'][key] for seed in seeds])} |")
    for row in ("WiSE-FT", "WiSE-FT, mixed BatchNorm"):
        print(f"alpha of {row}:", [round(results.content[f"{row} | {seed}"]["alpha"], 2) for seed in seeds])


if __name__ == "__main__":
    main()
