"""WiSE-FT of a small pretrained transformer that is fine-tuned on corrupted pictures: the whole curve.

    python benchmarks/vit_wise.py --archive cifar10-jpeg.tar.gz [--seeds 0 1 2] [--out runs/vit]

From the best single fine-tuning of ``vit_soups.py``, which knows clean pictures, two epochs on 10,000 pictures under
one corruption by ``lightning-robust fit --wise_ft...``. The first validation loader has that corruption, the others are
the shift: clean pictures and other corruptions, the same 2,000 each. The curve is the callback's own: accuracy in
percent at every alpha on every loader, with 95 % intervals where there is one seed, else the mean over the seeds and
their range.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from rows import Results, options, run, spread
from vit import CLEAN, CONFIG, data_arguments
from vit_soups import BEST, Kitchen

from lightning_robust.statistics import share_interval
from lightning_robust.tables import markdown

TUNED = "low_light@3"
CONDITIONS = (TUNED, CLEAN, "fog@3", "defocus_blur@3", "snow@3")
ROW = f"WiSE-FT on {TUNED}"
SETTINGS = ["--wise_ft.monitor=val/acc", "--wise_ft.mode=max", "--wise_ft.epsilon=0.01"]
SETTINGS += ["--model.learning_rate=3e-4", "--trainer.max_epochs=2"]


def fine_tuned(results: Results, archive: Path, seed: int) -> dict[str, float]:
    """The curve of one seed: ``alpha``, and accuracies by ``<alpha> <condition>``."""
    kitchen = Kitchen(results, archive, seed)
    kitchen.fine_tuned()
    best = results.get(BEST, seed, kitchen.single)["number"]
    folder = results.folder / "wise_ft" / str(seed)
    begin = [f"--model.weights={kitchen.checkpoints()[int(best)]}", f"--data.conditions={json.dumps(CONDITIONS)}"]
    where = f"--wise_ft.dirpath={folder / 'curve'}"
    run("fit", CONFIG, seed, folder, *data_arguments(archive, results.folder), *begin, *SETTINGS, where)
    told = json.loads((folder / "curve" / "wise_ft.json").read_text())
    numbers = {"chosen": told["alpha"], "samples": told["samples"][0]}
    for alpha, row in zip(told["alphas"], told["values"], strict=True):
        numbers |= {f"{alpha:.1f} {name}": value for name, value in zip(CONDITIONS, row, strict=True)}
    return numbers


def table(results: Results, seeds: Sequence[int]) -> str:
    """The curve of the seeds that are there."""
    runs = [results.content[f"{ROW} | {seed}"] for seed in seeds if f"{ROW} | {seed}" in results.content]
    alphas = sorted({key.split()[0] for key in runs[0] if " " in key})
    lines = []
    for alpha in alphas:
        values = {name: [run[f"{alpha} {name}"] for run in runs] for name in CONDITIONS}
        others = [
            sum(values[name][seed] for name in CONDITIONS[1:]) / (len(CONDITIONS) - 1) for seed in range(len(runs))
        ]
        cells = [_cell(found, int(runs[0]["samples"])) for found in values.values()]
        lines.append([alpha, *cells, spread([100 * value for value in others])])
    return markdown(["alpha", *CONDITIONS, "mean of the shifted"], lines)


def _cell(values: Sequence[float], samples: int) -> str:
    if len(values) > 1:
        return spread([100 * value for value in values])
    low, high = share_interval(values[0], samples)
    return f"{100 * values[0]:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def main() -> None:
    """Do what is missing and print the curve."""
    given = options(__doc__, "runs/vit", files=["archive"])
    torch.set_num_threads(1)
    results = Results(given.out)
    for seed in given.seeds:
        results.get(ROW, seed, lambda seed=seed: fine_tuned(results, given.archive, seed))
    print("\n" + table(results, given.seeds))
    print("alpha that the callback chose:", [results.content[f"{ROW} | {seed}"]["chosen"] for seed in given.seeds])


if __name__ == "__main__":
    main()
