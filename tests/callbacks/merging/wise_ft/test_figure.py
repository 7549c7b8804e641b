import pytest
from scipy.stats import binomtest

from lightning_robust.callbacks.merging.wise_ft.curve import AlphaCurve
from lightning_robust.callbacks.merging.wise_ft.figure import wise_ft_figures

ALPHAS = [0.0, 0.5, 1.0]
SHARES = [[0.6, 0.9, 0.5], [0.8, 0.85, 0.6], [0.9, 0.7, 0.55]]


def drawn(values, samples=(), mode="max", chosen=0.5, start="initialisation"):
    names = ["acc", "acc, night", "acc, rain"][: len(values[0])]
    figures = wise_ft_figures(AlphaCurve(ALPHAS, names, values, samples), chosen, "acc", mode, start)
    return {tag: draw().axes[0] for tag, draw in figures.items()}


def legend(axes):
    return axes.get_legend_handles_labels()[1]


def test_a_figure_for_each_shifted_loader_holds_the_curve():
    panels = drawn(SHARES)
    assert list(panels) == ["wise_ft/overview", "wise_ft/overview_2"]
    assert [axes.get_ylabel() for axes in panels.values()] == ["acc, night, shifted", "acc, rain, shifted"]
    for loader, axes in enumerate(panels.values(), 1):
        assert axes.lines[0].get_xydata().tolist() == [[row[0], row[loader]] for row in SHARES]
        assert (axes.get_xscale(), axes.get_yscale()) == ("logit", "logit")
    # 0.85 - 0.7 and 0.8 - 0.9
    title = " ".join(panels["wise_ft/overview"].figure.get_suptitle().split())
    assert title == "Alpha 0.5 gains 0.15 under shift and loses 0.1 in distribution"


def test_one_loader_is_drawn_over_alpha_and_its_start_is_named_as_what_it_is():
    (axes,) = drawn([[row[0]] for row in SHARES], chosen=1.0).values()
    assert axes.lines[0].get_xydata().tolist() == [[0.0, 0.6], [0.5, 0.8], [1.0, 0.9]]
    assert axes.get_ylabel() == "acc (higher is better)"
    marks = {mark.get_label(): mark.get_offsets().tolist() for mark in axes.collections}
    assert marks == {
        "initialisation (alpha 0)": [[0.0, 0.6]],
        "fine-tuned (alpha 1)": [[1.0, 0.9]],
        "chosen (alpha 1)": [[1.0, 0.9]],
    }
    (axes,) = drawn([[row[0]] for row in SHARES], chosen=1.0, start="zero-shot model").values()
    assert "zero-shot model (alpha 0)" in legend(axes)


def test_losses_are_drawn_on_linear_axes_without_intervals():
    (axes,) = drawn([[2.0, 3.0], [1.0, 2.5], [0.5, 4.0]], samples=[100, 100], mode="min").values()
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "linear")
    assert not axes.containers
    assert "95 % interval" not in legend(axes)
    assert axes.figure.get_suptitle().split("\n")[0].startswith("Alpha 0.5 gains 1.5 under shift and loses 0.5")


def test_intervals_are_wilsons():
    axes = drawn([row[:2] for row in SHARES], samples=[100, 400])["wise_ft/overview"]
    _, _, (horizontal, vertical) = axes.containers[0]
    for segment, place, count, share in ((horizontal, 0, 100, 0.8), (vertical, 1, 400, 0.85)):
        ends = [end[place] for end in segment.get_segments()[1]]
        wilson = binomtest(round(share * count), count).proportion_ci(method="wilson")
        assert ends == [pytest.approx(wilson.low), pytest.approx(wilson.high)]
    assert not drawn([row[:2] for row in SHARES], samples=[100])["wise_ft/overview"].containers
