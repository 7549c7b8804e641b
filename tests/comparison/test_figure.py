"""The picture of a comparison shows the numbers of its table."""

from pathlib import Path

from matplotlib.collections import LineCollection, PathCollection

from lightning_robust.comparison.figure import draw_pareto
from lightning_robust.comparison.finished_runs import FinishedRun
from lightning_robust.comparison.table import compare_runs


def finished(name, accuracy, attacked, **config):
    scalars = {"val/acc": accuracy, "adversarial/val_acc@0.1": attacked}
    return FinishedRun(Path(name), {"model": {"class_path": "a.B"}, **config}, scalars)


def test_picture_has_the_means_and_the_front():
    swa = {"class_path": "lightning_robust.callbacks.SWACallback"}
    plain = [finished(f"p{seed}", 0.5 + seed / 8, 0.25, seed_everything=seed) for seed in range(2)]
    runs = [
        *plain,
        finished("s", 0.875, 0.125, swa=swa),
        finished("w", 0.25, 0.0625, swa=swa | {"init_args": {"a": 1}}),
    ]
    (plane,) = draw_pareto(compare_runs(runs)).axes
    dots = [each for each in plane.collections if isinstance(each, PathCollection)]
    places = [tuple(each.get_offsets()[0]) for each in dots]
    assert places == [(0.5625, 0.25), (0.875, 0.125), (0.25, 0.0625)]
    assert plane.lines[0].get_xydata().tolist() == [[0.5625, 0.25], [0.875, 0.125]]  # the last is beaten in both
    assert plane.get_xlabel() == "clean: val/acc"
    bars = [each for each in plane.collections if isinstance(each, LineCollection)]
    across, up = (each.get_segments()[0].tolist() for each in bars)  # of two runs: from one value to the other
    assert across == [[0.5, 0.25], [0.625, 0.25]]
    assert up == [[0.5625, 0.25], [0.5625, 0.25]]
    assert draw_pareto(compare_runs([finished("p", 0.5, 0.25)])) is None
