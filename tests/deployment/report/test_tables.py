import dataclasses

from lightning_robust import measure_parity
from lightning_robust.deployment.engines import Subject, available
from lightning_robust.deployment.engines.latency import Latency
from lightning_robust.deployment.graph.export import frozen_copy
from lightning_robust.deployment.parity.result import TargetResult
from lightning_robust.deployment.pixels.catalogue import perturbations
from lightning_robust.deployment.report.figures import draw_parity
from lightning_robust.deployment.report.tables import engine_rows, summary
from lightning_robust.functional import PixelSpace

from ..models import SmallCNN, images
from ..reports import measured, report


def test_engines_are_told_by_latency_size_and_what_ran():
    ran = dataclasses.replace(measured(0.2), layers={"int8": 9, "fp32": 1}, latency=Latency.of([0.002, 0.004], 1))
    built = TargetResult("built", size=2_500_000)
    told = report(targets={"onnxruntime-int8": ran, "tensorrt-fp16": built, "emulated-fp16": measured(0.3)})
    columns, rows = engine_rows(told)
    assert [dict(zip(columns, row, strict=True)) for row in rows] == [
        {"engine": "onnxruntime-int8", "ms": "3", "p99 ms": "4", "batch": "1", "runs": "2", "MB": "-"}
        | {"layers ran in": "9 int8, 1 fp32"},
        {"engine": "tensorrt-fp16", "ms": "-", "p99 ms": "-", "batch": "-", "runs": "-", "MB": "2.5"}
        | {"layers ran in": "-"},
    ]
    assert "9 int8, 1 fp32" in summary(told)
    scalars = told.scalars()
    assert scalars["parity/onnxruntime-int8/latency_ms"] == 3.0
    assert scalars["parity/onnxruntime-int8/latency_ms_p99"] == 4.0
    assert "parity/emulated-fp16/latency_ms" not in scalars


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
