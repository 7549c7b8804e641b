from lightning_robust.deployment.parity.result import BEYOND, MeasuredWeights, ParityReport
from lightning_robust.deployment.pixels.catalogue import CATALOGUE


def test_families_closed_form():
    """The worst of each family counts, the worst family first; names of families never meet those of entries."""
    moved = {"resize_nearest": 7.0, "resize_area": 2.0, "bgr": 4.0, "of_my_own": 9.0}
    measured = {n: {"rel_l2": v, "times_fp16": v / 0.5} for n, v in moved.items()}
    report = ParityReport({}, measured, (), "rel_l2", "torch-fp64", 4, 1.0)
    assert list(report.families().items()) == [("resize_filter", 7.0), ("channel_order", 4.0)]
    assert report.families("times_fp16") == {"resize_filter": 14.0, "channel_order": 8.0}
    assert report.families("flip_rate") == {}
    assert report.scalars()["sensitivity/family/resize_filter"] == 7.0
    assert "family" not in CATALOGUE


def test_what_goes_beyond_the_motion_of_the_picture_ranks():
    """A shift of which a right answer would do most is not what moves the outputs most."""
    measured = {"shift_half_pixel": {"rel_l2": 9.0, BEYOND: 1.0}, "bgr": {"rel_l2": 4.0, BEYOND: 4.0}}
    report = ParityReport({}, measured, (), "rel_l2", "torch-fp64", 4, 1.0)
    assert report.worst_perturbation() == "bgr"
    assert report.families() == {"channel_order": 4.0, "shift": 1.0}
    assert report.scalars()["sensitivity/shift_half_pixel/beyond_geometry"] == 1.0


def test_weights_are_named():
    assert str(MeasuredWeights()) == ""
    assert str(MeasuredWeights(3, 188, "last.ckpt", "9f2c51d0")) == (
        "weights of epoch 3, step 188, last.ckpt (9f2c51d0)"
    )
