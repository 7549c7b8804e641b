import pytest

from lightning_robust.callbacks.merging.wise_ft.curve import AlphaCurve, choose_alpha


@pytest.mark.parametrize(
    ("values", "settings", "expected"),
    [
        ([[0.7, 0.9], [0.9, 0.8], [0.91, 0.5]], {"epsilon": 0.01, "mode": "max"}, 0.5),
        ([[0.7, 0.9], [0.9, 0.8], [0.92, 0.5]], {"epsilon": 0.01, "mode": "max"}, 1.0),
        ([[0.9, 0.9, 0.1], [0.9, 0.4, 0.9], [0.9, 0.5, 0.5]], {"epsilon": 0.0, "mode": "max"}, 0.5),
        ([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]], {"epsilon": 0.0, "mode": "min"}, 1.0),
        ([[float("nan"), 0.0], [1.0, 2.0], [1.0, 3.0]], {"epsilon": 9.0, "mode": "min"}, 0.5),
    ],
)
def test_choice(values, settings, expected):
    assert choose_alpha([0.0, 0.5, 1.0], values, **settings) == expected
    with pytest.raises(ValueError, match="finite metrics"):
        choose_alpha([0.0], [[float("nan")]], **settings)


def test_one_loader_is_shifted_and_in_distribution_at_once():
    curve = AlphaCurve([0.0, 0.5, 1.0], ["acc"], [[0.5], [0.75], [0.7]], [])
    assert curve.inside == curve.shifted == [0.5, 0.75, 0.7]


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0.9], [0.28], [0.5]], 1.0),
        ([[0.1], [0.3], [0.5]], 1.0),
        ([[0.9], [float("nan")], [0.5]], 1.0),
        ([[0.9], [0.3], [float("nan")]], 0.5),
    ],
)
def test_one_loader_leaves_the_end_only_where_it_has_no_metric(values, expected, mode):
    for epsilon in (0.0, 0.005, 9.0):
        assert choose_alpha([0.0, 0.5, 1.0], values, epsilon=epsilon, mode=mode) == expected
