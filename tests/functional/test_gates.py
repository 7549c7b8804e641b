import itertools
import math

import pytest
import torch

from lightning_robust.functional.gates import (
    CriticalChannels,
    covering,
    critical_channels,
    first_order,
    jaccard,
    overlaps,
)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_covering_takes_positive_terms_only():
    assert covering(torch.tensor([[-1.0, -2.0], [0.0, 0.0], [1.0, -5.0]]), 0.9).tolist() == [
        [False, False],
        [False, False],
        [True, False],
    ]


def two_classes(weights):
    """Probabilities of a class whose logit is a weighted sum of the gates, and of one whose logit is zero."""

    def predict(gates):
        logit = sum((gate * weight).sum(1) for gate, weight in zip(gates, weights, strict=True))
        return torch.stack([logit, torch.zeros_like(logit)], 1).softmax(1)

    return predict


def test_first_order_terms_of_a_logistic_model(generator):
    weights = [torch.rand(4, generator=generator), torch.rand(3, generator=generator)]
    ones = [torch.ones(2, 4), torch.ones(2, 3)]
    probabilities, terms = first_order(two_classes(weights), ones)
    p = torch.cat(weights).sum().sigmoid()
    assert torch.allclose(probabilities[:, 0], p.expand(2))
    for term, weight in zip(terms, weights, strict=True):
        assert torch.allclose(term, (p * (1 - p) * weight).expand_as(term), atol=1e-6)
    assert first_order(lambda z: z[0], [torch.ones(1, 2), torch.ones(1, 3)])[1][1].tolist() == [[0, 0, 0]]


def test_the_one_channel_of_each_layer_that_matters_is_found():
    def predict(gates):
        logit = 6 * gates[0][:, 3] * gates[1][:, 1]
        return torch.stack([torch.ones_like(logit), logit], 1).softmax(1)

    found = critical_channels(predict, [torch.ones(2, 8), torch.ones(2, 5)])
    assert [each.nonzero().tolist() for each in found.sets] == [[[0, 3], [1, 3]], [[0, 1], [1, 1]]]
    assert torch.equal(found.kept, found.confidence)
    assert found.classes.tolist() == [1, 1]
    assert found.share == pytest.approx((1 / 8 + 1 / 5) / 2)


@pytest.mark.parametrize(("steps", "most", "exact"), [(0, 0.04, 1), (20, 0.006, 20)])
def test_close_to_the_best_of_all_sets(generator, steps, most, exact):
    """Against exhaustive search over the 2^10 sets of two layers, on thirty random models."""
    excess = []
    for _ in range(30):
        weights = [torch.randn(6, generator=generator) + 0.5, torch.randn(4, generator=generator) + 0.5]
        predict = two_classes(weights)
        found = critical_channels(predict, [torch.ones(1, 6), torch.ones(1, 4)], weight=0.1, steps=steps)
        gates = torch.tensor(list(itertools.product([0.0, 1.0], repeat=10)))
        probabilities = predict([gates[:, :6], gates[:, 6:]])
        keeps = probabilities.argmax(1) == found.classes
        sizes = (gates[:, :6].mean(1) ** 2 + gates[:, 6:].mean(1) ** 2) / 2
        values = (1 - probabilities[:, found.classes.item()] / found.confidence).square() + 0.1 * sizes
        mine = (torch.cat(found.sets, 1) == gates.bool()).all(1)
        assert keeps[mine].all()
        excess.append((values[mine] - values[keeps].min()).item())
    # with all channels it is 0.095
    assert sum(excess) / len(excess) < most
    assert sum(each < 1e-6 for each in excess) >= exact


def test_descent_is_never_worse_than_first_order_terms(generator):
    for _ in range(10):
        weights = [torch.randn(12, generator=generator)]
        values = []
        for steps in (0, 30):
            found = critical_channels(two_classes(weights), [torch.ones(1, 12)], weight=0.1, steps=steps)
            values.append((1 - found.kept / found.confidence) ** 2 + 0.1 * found.share**2)
        assert values[1] <= values[0] + 1e-6


def test_all_channels_where_no_set_keeps_the_class():
    def predict(gates):
        # the class holds only while everything is open
        whole = (gates[0].sum(1) == 4).float() + 0 * gates[0].sum(1)
        return torch.stack([whole, 0.5 * torch.ones_like(whole)], 1).softmax(1)

    assert critical_channels(predict, [torch.ones(1, 4)], steps=3).sets[0].all()


def test_jaccard_is_that_of_sets(generator):
    one, other = (torch.rand(size, 20, generator=generator) < 0.3 for size in (4, 6))
    found = jaccard(one, other)
    for i, j in itertools.product(range(4), range(6)):
        a, b = (set(each.nonzero().flatten().tolist()) for each in (one[i], other[j]))
        assert found[i, j].item() == pytest.approx(len(a & b) / len(a | b))
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    assert jaccard(nothing, nothing).item() == 1


def channels(classes, *rows):
    return CriticalChannels(
        torch.tensor(classes), torch.ones(len(rows)), torch.ones(len(rows)), [torch.tensor(rows, dtype=torch.bool)]
    )


def test_overlaps_by_hand():
    clean = channels([0, 0, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1])
    perturbed = channels([1, 0, 1, 1], [1, 0, 1, 1], [1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1])
    (found,) = overlaps(clean, perturbed)
    # only the first changed: {0, 2, 3} against itself {0, 1}, its class {0}, the wrong class {2, 3} and {3}
    assert (found.pair, found.within, found.own) == pytest.approx((1 / 4, 1 / 2, 1 / 3))
    assert found.other == pytest.approx((2 / 3 + 1 / 3) / 2)
    (unmoved,) = overlaps(clean, clean)
    assert unmoved.pair == 1
    assert unmoved.within == pytest.approx(1 / 2)
    assert math.isnan(unmoved.other)


def test_joined_is_one_after_the_other():
    parts = [channels([0], [1, 0]), channels([1], [0, 1])]
    joined = CriticalChannels.joined(parts)
    assert joined.classes.tolist() == [0, 1]
    assert joined.sets[0].tolist() == [[True, False], [False, True]]
