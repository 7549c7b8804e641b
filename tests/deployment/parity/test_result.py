from lightning_robust.deployment.parity.result import ParityReport
from lightning_robust.deployment.pixels.catalogue import CATALOGUE
from lightning_robust.deployment.report.tables import family_sentences


def test_families_closed_form():
    """The worst of each family counts, the worst family first; names of families never meet those of entries."""
    moved = {"resize_nearest": 7.0, "resize_area": 2.0, "bgr": 4.0, "of_my_own": 9.0}
    measured = {n: {"rel_l2": v, "times_fp16": v / 0.5} for n, v in moved.items()}
    of_another_target = {"fp16": 0.1}
    report = ParityReport({}, measured, of_another_target, "rel_l2", "torch-fp64", 4, 1.0)
    assert list(report.families().items()) == [("resize_filter", 7.0), ("channel_order", 4.0)]
    assert report.families("times_fp16") == {"resize_filter": 14.0, "channel_order": 8.0}
    assert report.families("flip_rate") == {}
    assert report.scalars()["sensitivity/family/resize_filter"] == 7.0
    assert "family" not in CATALOGUE
    assert family_sentences(report)[0] == "The resize filter moves relative L2 distance 14 times as far as fp16."
