"""What the name of a metric says, and which metrics a table shows."""

import pytest

from lightning_robust.comparison.columns import GROUPS, default_columns, direction, group_of


@pytest.mark.parametrize(
    ("tag", "group", "better"),
    [
        ("val/acc", "clean", "max"),
        ("val_lateral_px", "clean", "min"),
        ("adversarial/val_acc@0.1", "attacked", "max"),
        ("adversarial/val_loss@0.1", "attacked", "min"),
        ("val/pgd_acc", "attacked", "max"),
        ("val/acc_corrupted", "corrupted", "max"),
        ("attribution/preprocessing", "preprocessing", "min"),
        ("parity/tensorrt-fp16/px_p99", "fp16", "min"),
        ("parity/emulated-tf32/rel_l2", "tf32", "min"),
        ("replay/torch-fp32/swing", "recording", "min"),
        ("test/recording_bend_px", "recording", "min"),
        ("train/loss", "other", "min"),
        ("val/depth", "clean", None),
    ],
)
def test_what_a_tag_tells(tag, group, better):
    assert (group_of(tag), direction(tag)) == (group, better)


def test_default_columns_are_in_the_order_of_the_groups():
    tags = ["parity/a-fp16/rel_l2", "parity/a-fp16/px_p99", "parity/a-tf32/rel_l2", "val/loss", "val/acc", "depth"]
    tags += ["adversarial/val_loss@0.1", "time/seconds", "gpu_memory"]
    assert [(column.group, column.tag) for column in default_columns(tags)] == [
        ("clean", "val/acc"),  # the loss gives way to a metric
        ("attacked", "adversarial/val_loss@0.1"),
        ("fp16", "parity/a-fp16/px_p99"),  # in the task's units where there are some
        ("tf32", "parity/a-tf32/rel_l2"),
        ("time", "time/seconds"),
        ("memory", "gpu_memory"),
    ]
    assert [group.name for group in GROUPS[:2]] == ["clean", "attacked"]
