from lightning_robust import measure_parity
from lightning_robust.deployment.engines import Subject, available
from lightning_robust.deployment.graph.export import frozen_copy
from lightning_robust.deployment.pixels.catalogue import perturbations
from lightning_robust.deployment.report.figures import draw_parity
from lightning_robust.deployment.report.tables import summary
from lightning_robust.functional import PixelSpace

from ..models import SmallCNN, images


def test_summary_and_figure_tell_the_worst():
    subject = Subject(frozen_copy(SmallCNN()), (images(4),))
    measured = measure_parity(
        subject, available(["emulated-fp16"]), perturbations=perturbations(["bgr", "truncation"]), pixels=PixelSpace()
    )
    text = summary(measured)
    assert measured.worst_perturbation() == "bgr"
    assert "What moves the outputs most: bgr" in text
    assert f"{measured.targets['emulated-fp16'].metrics['rel_l2']:.3g}" in text
    figure = draw_parity([(0, measured.attribution), (3, measured.attribution)], measured)
    assert [axes.get_title() for axes in figure.axes][2].startswith("How far each preprocessing")
    heights = [patch.get_height() for patch in figure.axes[1].patches]
    assert heights[0] == measured.attribution["fp16"]
