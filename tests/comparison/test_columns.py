"""What the name of a metric says, and which metrics a table shows."""

import re

import pytest

from lightning_robust.comparison.columns import GROUPS, Column, default_columns, direction, group_of, with_modes


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


@pytest.mark.parametrize(
    ("tag", "better"),
    [
        ("val/loss", "min"),
        ("val/lossless", None),
        ("val/lossless_acc", "max"),
        ("val/ferry", None),
        ("val/ferry_err", "min"),
        ("val/terrain", None),
        ("val/accident_rate", None),
        ("val/face_recognition", None),
        ("val/absent", None),
        ("val/sometimes", None),
        ("val/blossom", None),
        ("val/pxe", None),
        ("val/mapped", None),
        ("val/dice_loss", "min"),
        ("val/acc_error", "min"),
        ("valLoss", "min"),
        ("val/meanIoU", None),
        ("val/top5_acc", "max"),
        ("val/acc5", "max"),
        ("val/f1", "max"),
        ("val/map_50", "max"),
        ("val/loss_reduction", None),
        ("val/error_free", None),
        ("val/no_error", None),
        ("val/time_to_collision", None),
        ("train/loss_scale", None),
        ("val/memory_acc", "max"),
        ("val/recording_acc", "max"),
        ("val/memoryless_depth", None),
        ("sensitivity/bgr/acc", "min"),
        ("corruption/mce", "min"),
        ("corruption/mean_error", "min"),
        ("corruption/frame_loss/val_acc", "max"),
        ("corruption/frame_loss/val_depth", None),
    ],
)
def test_direction_is_told_by_whole_words(tag, better):
    assert direction(tag) == better


def test_a_loss_gives_way_to_a_metric_by_whole_words():
    assert [column.tag for column in default_columns(["val/loss", "val/lossless_acc"])] == ["val/lossless_acc"]


def test_directions_that_the_user_says():
    columns = [Column.of("val/depth"), Column.of("val/acc")]
    shown = with_modes(columns, "val/depth=max, val/acc=min,a=b=min", ["val/depth", "val/acc", "a=b"])
    assert [(column.tag, column.mode) for column in shown] == [("val/depth", "max"), ("val/acc", "min"), ("a=b", "min")]
    for modes, told in (
        ("val/depth", "as tag=max or tag=min, but got 'val/depth'"),
        ("val/depth=up", "as tag=max or tag=min, but got 'val/depth=up'"),
        ("val/dept=max", "but got 'val/dept=max'. There are: val/depth. Did you mean 'val/depth'?"),
        (" ,", "as tag=max or tag=min, but got ' ,'"),
    ):
        with pytest.raises(ValueError, match=re.escape(told)):
            with_modes(columns, modes, ["val/depth"])


def test_few_families_of_preprocessing_have_columns():
    """A run that measures what a fingerprint found shows each family beside the worst; eleven would be no table."""
    names = ["resize_filter", "color_matrix", "gamma", "noise", "shift"]
    for count, shown in ((2, 3), (4, 5), (5, 1)):
        tags = ["sensitivity/worst", *(f"sensitivity/family/{name}" for name in names[:count])]
        columns = default_columns(tags)
        assert len(columns) == shown
        assert {(column.group, column.mode) for column in columns} == {("preprocessing", "min")}


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
