"""Every figure that a technique logs, over sound and odd results, can be read: see ``tests/figures.py``."""

import math
import warnings

import pytest
import torch
from matplotlib.figure import Figure

from lightning_robust.callbacks.averaging.figure import averaging_figures
from lightning_robust.callbacks.datapath.figure import datapath_figures
from lightning_robust.callbacks.datapath.measure import Datapath
from lightning_robust.callbacks.datapath.paths import Paths
from lightning_robust.callbacks.layer_criticality.figure import criticality_figures
from lightning_robust.callbacks.layer_criticality.measure import CriticalityCell, CriticalityMap, CriticalityRow
from lightning_robust.callbacks.layer_criticality.readings import Criterion
from lightning_robust.callbacks.lazy_training.figure import Measurement, laziness_figures
from lightning_robust.callbacks.merging.greedy_soup.figure import draw_soup
from lightning_robust.callbacks.merging.wise_ft.curve import AlphaCurve
from lightning_robust.callbacks.merging.wise_ft.figure import wise_ft_figures
from lightning_robust.callbacks.metric_curves import MetricCurves
from lightning_robust.callbacks.robust_validation.corruption_figure import corruption_figures
from lightning_robust.callbacks.robust_validation.figure import robust_figures
from lightning_robust.deployment.pixels.corruptions import corruptions
from lightning_robust.functional.datapath import LayerDivergence
from lightning_robust.functional.gates import CriticalChannels, Overlap
from lightning_robust.functional.soups import greedy_soup, uniform_soup
from lightning_robust.statistics import Estimate
from tests.figures import check_figure

ODD = "loss$x^{$_weighted_by_$\\frac{class_and_by_camera"
"""A name that matplotlib would take for mathematics, and that is longer than there is room."""


def layer(name, change, noise=None, width=64, seed=0):
    """A layer that moves by this share."""
    weights = torch.rand(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    moved, ones = weights / weights.sum(), torch.full((width,), 1 / width, dtype=torch.float64)
    return LayerDivergence(name, ones, moved * change**2, None if noise is None else moved * noise**2)


def datapath(names, changes, noises=None, start=0.21, condition="pgd", classifier=True, width=64):
    layers = [
        layer(name, change, None if noises is None else noises[i], width, i)
        for i, (name, change) in enumerate(zip(names, changes, strict=True))
    ]
    classes = torch.arange(8) % 2
    sets = list(torch.rand(len(names), 8, width, generator=torch.Generator().manual_seed(1)) < 0.3)
    sides = [CriticalChannels(each, torch.ones(8), torch.ones(8), sets) for each in (classes, 1 - classes)]
    steps = [place / max(len(names) - 1, 1) for place in range(len(names))]
    overlaps = [Overlap(0.9 - 0.6 * step, 0.7 - 0.1 * step, 0.7 - 0.5 * step, 0.1 + 0.6 * step) for step in steps]
    paths = Paths(list(range(len(names))), *sides, overlaps) if classifier else None
    return Datapath(condition, 64, layers, 1.5, start, paths)


CNN = ["features.conv1", "features.conv2", "features.conv3", "head"]
DEEP = [f"backbone.stages.{i // 6}.blocks.{i % 6}.conv2" for i in range(64)]
DATAPATHS = {
    "plain": datapath(CNN, [0.27, 0.33, 0.64, 0.84], [0.29, 0.36, 0.46, 0.31]),
    "robust": datapath(CNN, [0.21, 0.19, 0.12, 0.04], [0.16, 0.14, 0.09, 0.02], classifier=False),
    "fp16": datapath(CNN, [2e-4, 3e-4, 4e-4, 9e-4], None, None, "fp16"),
    "deep": datapath(DEEP, [0.03 * 1.08**i for i in range(64)], [0.03] * 64, 0.03, width=2048),
    "odd names": datapath([ODD, f"{ODD}_2"], [0.1, 900.0], None, 1e-6, "jpeg_90"),
    "one layer": datapath(["net"], [0.3], [0.3], 0.3),
    "overflow": datapath(CNN, [0.1, math.inf, math.nan, 0.2], None, None, "fp16"),
    "nothing": datapath(CNN, [0.0] * 4, [0.0] * 4, 0.0),
}


def curve(loaders=1, names=("val/acc",), samples=(), scale=1.0):
    alphas = [i / 10 for i in range(11)]
    columns = [[scale * (0.3 + 0.1 * k + 0.5 * a - 0.1 * k * a * a) for a in alphas] for k in range(loaders)]
    return AlphaCurve(alphas, names, [list(row) for row in zip(*columns, strict=True)], list(samples))


WISE_FTS = {
    "one loader": wise_ft_figures(curve(samples=[400]), 1.0, "val/acc", "max", "initialisation"),
    "two loaders": wise_ft_figures(
        curve(2, ["val/acc/dataloader_idx_0", "val/acc/dataloader_idx_1"], [400, 400]),
        0.8,
        "val/acc",
        "max",
        "zero-shot model",
    ),
    "odd names": wise_ft_figures(curve(3, [ODD, ODD, f"{ODD}2"], scale=7.0), 0.5, ODD, "min", "start of the fit"),
    "constant": wise_ft_figures(AlphaCurve([0.0, 0.5, 1.0], ["l"], [[1.0]] * 3, []), 1.0, "l", "min", "initialisation"),
}


def soup(count, drop=False, score=None):
    generator = torch.Generator().manual_seed(0)
    states = [{"w": torch.randn(4, generator=generator)} for _ in range(count)]
    return greedy_soup(states, lambda state: -state["w"].norm().item(), drop=drop)


def made(labels, soup=None, monitor="val/acc", mode="max"):
    found = soup or uniform_soup([{"w": torch.tensor(1.0)}] * len(labels))
    found.scores = found.scores or [0.5 + 0.01 * index for index in range(len(labels))]
    return lambda: draw_soup(found, labels, monitor, mode)


SOUPS = {
    "soup": made([f"epoch={i}-step={i * 200}.ckpt" for i in range(6)], soup(6)),
    "soup of many": made([f"runs/lanes/version_{i}/checkpoints/best.ckpt" for i in range(70)], soup(70)),
    "soup with odd names": made([ODD, f"{ODD}$"], monitor=ODD, mode="min"),
    "soup of one": made(["last.ckpt"], soup(1)),
}


def criticality(
    names,
    labels,
    condition="clean",
    monitor="val/acc",
    verdicts=("critical", "ambient", "undecided", "unchanged"),
    scale=1.0,
):
    def row(name, place):
        cells = [
            CriticalityCell(scale * min(0.1 + 0.1 * place + 0.1 * step, 0.89), Estimate(0.5))
            for step in range(len(labels) + 1)
        ]
        drawn = tuple(CriticalityCell(scale * (0.1 + 0.05 * k), Estimate(0.1)) for k in range(3))
        moved = tuple(0.01 * place * step for step in range(len(labels) + 1))
        return CriticalityRow(name, tuple(cells), drawn, moved, moved, verdicts[place % len(verdicts)])

    rows = tuple(row(name, place) for place, name in enumerate(names))
    criterion = Criterion(monitor, "max", 0.9)
    return CriticalityMap(condition, criterion, (*labels, "end"), scale * 0.89, rows, row("whole network", 0), 9, ())


CRITICALITIES = {
    "criticality": [criticality(CNN, ("start", "1", "2", "4")), criticality(CNN, ("start", "1", "2", "4"), "jpeg_90")],
    "criticality, deep": [criticality(DEEP, ("start", *(str(2**i) for i in range(12))))],
    "criticality, odd": [criticality([ODD, f"{ODD}2"], ("start", f"{ODD}_3 steps"), "fgsm", ODD, ("ambient",), 1e4)],
    "criticality, one layer": [criticality(["net"], ("start",), verdicts=("unchanged",))],
    "criticality, broken": [criticality(CNN, ("start", "1"), scale=math.nan)],
}


def course(*numbers):
    return [Measurement(100 * (step + 1), each) for step, each in enumerate(numbers)]


STEPS = {"single_step@0.5": 0.1, "single_step@1": 0.3, "single_step@2": 0.7, "fgsm": 0.4}
LAZINESS = {
    "lazy": course(
        *(
            {
                "movement": 0.05 * n,
                "linearization_gap": 0.1 * n,
                "sign_changes": 0.02 * n,
                "kernel_alignment": 1 - 0.03 * n,
                **STEPS,
            }
            for n in range(1, 9)
        )
    ),
    "lazy, fooled": course({"movement": 0.002, **STEPS}),
    "lazy, losses": course(
        *({"movement": 3.0 * n, "single_step_loss@1": 3.0, "single_step_loss@2": 9e4} for n in (1, 2))
    ),
    "lazy, broken": course({"movement": 0.0}),
}


def curves(metric, **series):
    found = MetricCurves()
    for name, values in series.items():
        for epoch, value in values:
            found.note(epoch, name, {metric: value})
    return found


ROBUST = {
    "adversarial": curves(
        "val/acc", **{"0": [(1, 0.7), (2, 0.8)], "0.0078431": [(1, 0.5), (2, 0.6)], "0.0313725": [(1, 0.2), (2, 0.4)]}
    ),
    "adversarial, odd": curves(
        ODD, **{"0": [(0.5, 7.0)], **{f"{0.0123 * i:g}": [(0.5, 1e4 * i)] for i in range(1, 6)}}
    ),
}


def corrupted(names, metric="val/acc", scale=1.0):
    """Metrics that fall with the severity, and with the place of the corruption in the list."""
    values = {"clean": {metric: 0.9 * scale}}
    for place, name in enumerate(names):
        severity = int(name.partition("@")[2] or 0)
        values[name] = {metric: scale * (0.9 - 0.1 * severity - 0.0005 * place)}
    return values


CORRUPTED = {
    "corruption": corrupted([str(each) for each in corruptions()]),
    "corruption and preprocessing": corrupted(["fog@3", "jpeg_90", "resize_align_corners", "bgr"]),
    "corruption, one": corrupted(["fog@2"], "val/lateral_px", 1e4),
    "corruption, odd": corrupted([str(each) for each in corruptions(["time", "fog@1"])], ODD, 1e-7),
    "corruption, nothing found": corrupted(["fog@2", "snow@3"]) | {"fog@5": {"val/acc": math.nan}},
    "corruption, equal": {each: {"acc": 1.0} for each in ("clean", "fog@1", "fog@2")},
}
AVERAGES = {
    "averaging": curves(
        "val/acc", raw=[(1, 0.7), (2, 0.75), (3, 0.76)], average=[(2, 0.8), (3, 0.81)], last2=[(3, 0.8)]
    ),
    "averaging, odd": curves(ODD, average=[(1, 1e-9)], **{f"{ODD}{i}": [(1, 1e-9)] for i in range(4)}),
}


def every_figure():
    """What draws each figure, by a name."""
    figures = {
        f"{name}, {tag}": draw
        for name, found in ROBUST.items()
        for tag, draw in robust_figures(found, list(found.points), 8).items()
    }
    for name, found in CORRUPTED.items():
        figures |= {f"{name}, {tag}": draw for tag, draw in corruption_figures(found, [*found["clean"]]).items()}
    for name, found in AVERAGES.items():
        figures |= {f"{name}, {tag}": draw for tag, draw in averaging_figures(found, list(found.points)).items()}
    figures |= {
        f"datapath {name}, {end}": draw for name, d in DATAPATHS.items() for end, draw in datapath_figures(d).items()
    }
    figures |= {f"{tag}, {name}": draw for name, drawn in WISE_FTS.items() for tag, draw in drawn.items()}
    figures |= SOUPS
    figures |= {f"{name}, {t}": d for name, maps in CRITICALITIES.items() for t, d in criticality_figures(maps).items()}
    figures |= {f"{name}, {t}": d for name, run in LAZINESS.items() for t, d in laziness_figures(run, 0.1, 0.5).items()}
    return figures


FIGURES = every_figure()


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_can_be_read(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = FIGURES[name]()
        assert isinstance(figure, Figure)
        check_figure(figure)
