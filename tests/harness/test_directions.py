"""Directions of metrics by their names; tests/comparison/test_columns.py has the long list."""

from lightning_robust.harness.directions import named_direction, words_of


def test_the_last_known_word_decides():
    assert named_direction("val/acc_error") == "min"
    assert named_direction("val/error_acc") == "max"
    assert named_direction("val/lateral_px") == "min"
    assert named_direction("val/no_error") is None
    assert named_direction("") is None
    assert [named_direction(name) for name in ("val/mIoU", "val/IoU", "val/MSELoss", "BCEWithLogitsLoss")] == [
        *("max", "max", "min", "min")
    ]
    assert named_direction("val/acc_std") is named_direction("val/loss_ratio") is None


def test_words():
    assert words_of("val/top5Acc@0.1") == ["val", "top", "acc"]
    assert words_of("hd95_p99/F1") == ["hd95", "p99", "f1"]
