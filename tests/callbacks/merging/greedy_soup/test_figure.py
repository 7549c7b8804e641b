import pytest
import torch

from lightning_robust.callbacks.merging.greedy_soup.figure import draw_soup
from lightning_robust.functional.soups import greedy_soup, uniform_soup


def points(axes, name):
    """The scores of the ingredients that are drawn under a label."""
    (dots,) = [each for each in axes.collections if each.get_label() == name]
    return dots.get_offsets().tolist()


def course(axes):
    return next(line for line in axes.lines if line.get_label() == "soup so far").get_xdata()


@pytest.mark.parametrize("drop", [False, True])
def test_trials_in_their_order_and_the_score_of_the_soup_after_each(drop):
    """0.4 first, then -1.0 and 1.4 are accepted and -2.9 is not; dropped ones change the soup, not the order."""
    states = [{"w": torch.tensor(w)} for w in (0.4, -2.9, 1.4, -1.0)]
    soup = greedy_soup(states, lambda state: -abs(state["w"].item()), drop=drop)
    assert soup.ingredients == ([3, 2] if drop else [0, 3, 2])
    figure = draw_soup(soup, [f"epoch {index}" for index in range(4)], "score", "max")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["epoch 0", "epoch 3", "epoch 2", "epoch 1"]
    inside, outside = points(axes, "ingredient in the soup"), points(axes, "ingredient left out")
    expected = [[-0.4, 0], [-1.0, 1], [-1.4, 2], [-2.9, 3]]
    assert sorted(inside + outside) == [pytest.approx(point) for point in sorted(expected)]
    assert len(inside) == len(soup.ingredients)
    assert course(axes) == pytest.approx([-0.4, -0.3, -0.8 / 3, -0.8 / 3])
    # -0.8 / 3 in place of -0.4; dropping 0.4 makes it -(1.4 - 1.0) / 2
    gain = "0.2" if drop else "0.13"
    count = 2 if drop else 3
    assert (
        figure.get_suptitle().replace("\n", " ")
        == f"A soup of {count} of 4 ingredients is {gain} better than the best alone"
    )


def test_a_recipe_without_trials_has_no_course():
    soup = uniform_soup([{"w": torch.tensor(1.0)}, {"w": torch.tensor(2.0)}])
    soup.scores, soup.score = [0.5, 0.25], 0.75
    (axes,) = draw_soup(soup, ["a", "b" * 40], "score", "max").axes
    assert points(axes, "ingredient in the soup") == [[0.5, 0], [0.25, 1]]
    assert [line.get_label() for line in axes.lines] == ["soup: 0.75"]
    assert axes.get_yticklabels()[1].get_text() == "..." + "b" * 17
