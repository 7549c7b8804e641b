import pytest

from lightning_robust.callbacks.averaging.learning_rate import CyclicRate


def test_closed_form():
    """A cycle of n steps begins high, ends low with the snapshot, and falls by equal amounts between."""
    rate = CyclicRate([0.07, 0.01])
    assert [rate.at(step, 4) for step in range(6)] == pytest.approx([0.07, 0.05, 0.03, 0.01, 0.01, 0.01])
    assert rate.at(0, 1) == 0.07
    assert [CyclicRate(0.05).at(step, 4) for step in range(4)] == [0.05] * 4


@pytest.mark.parametrize("lr", [-0.1, [0.1], [0.1, 0.2, 0.3], [0.1, -0.2]])
def test_rejects_other_rates(lr):
    with pytest.raises(ValueError, match=r"Expected `lr`"):
        CyclicRate(lr)
