"""Quarter turns against numpy, and the score for pictures from elsewhere against its formula."""

import numpy as np
import pytest
import torch

from lightning_robust.functional.rotation import rotate_each, rotate_quadrants, rotation_anomaly, square


def test_turns_are_those_of_numpy():
    images = torch.rand(3, 2, 5, 5)
    rotated, labels = rotate_quadrants(images)
    assert labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    for row, turn in enumerate(labels.tolist()):
        assert np.array_equal(rotated[row].numpy(), np.rot90(images[row % 3].numpy(), turn, (1, 2)))
    turns = torch.tensor([3, 0, 2])
    each = rotate_each(images, turns)
    for row, turn in enumerate(turns.tolist()):
        assert np.array_equal(each[row].numpy(), np.rot90(images[row].numpy(), turn, (1, 2)))


def test_the_middle_is_cut_out_or_set_amid_zeros():
    images = torch.rand(2, 3, 4, 9)
    assert torch.equal(square(images), images[:, :, :, 2:6])
    whole = square(images, "pad")
    assert whole.shape == (2, 3, 9, 9)
    assert torch.equal(whole[:, :, 2:6], images)
    assert whole.sum() == pytest.approx(images.sum().item(), rel=1e-5)
    assert square(images[:, :, :, :4]) is not None
    for tall in ("crop", "pad"):
        assert torch.equal(square(images.mT, tall), square(images, tall).mT)


def test_anomaly_is_its_formula():
    images, weight = torch.rand(5, 1, 3, 3), torch.randn(9, 4)
    classes = torch.randn(5, 6)
    score = rotation_anomaly(images, lambda x: x.flatten(1) @ weight, classes)
    for row in range(5):
        losses = [
            -(torch.rot90(images[row], turn, (1, 2)).flatten() @ weight).log_softmax(0)[turn] for turn in range(4)
        ]
        p = classes[row].softmax(0)
        divergence = ((1 / 6) * ((1 / 6) / p).log()).sum()
        expected = sum(losses) / 4 - divergence
        # the constant log(classes) does not rank
        assert score[row].item() == pytest.approx(expected.item() - np.log(6), abs=1e-5)
    alone = rotation_anomaly(images, lambda x: x.flatten(1) @ weight)
    torch.testing.assert_close(score - alone, classes.log_softmax(1).mean(1))


def test_rejects_what_cannot_be_turned():
    with pytest.raises(ValueError, match=r"square pictures \(N, C, S, S\), but got \(1, 1, 2, 3\)"):
        rotate_quadrants(torch.zeros(1, 1, 2, 3))
    with pytest.raises(ValueError, match=r"pictures \(N, C, H, W\) to turn, but got \(4, 4\)"):
        square(torch.zeros(4, 4))
    with pytest.raises(ValueError, match="'crop' or 'pad'"):
        square(torch.zeros(1, 1, 2, 3), "stretch")
