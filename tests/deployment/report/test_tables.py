import dataclasses
from math import nan

from lightning_robust import measure_parity
from lightning_robust.deployment.engines import Subject, available
from lightning_robust.deployment.engines.latency import Latency
from lightning_robust.deployment.graph.export import frozen_copy
from lightning_robust.deployment.parity.links import Basis
from lightning_robust.deployment.parity.result import TargetResult
from lightning_robust.deployment.pixels.catalogue import perturbations
from lightning_robust.deployment.report.tables import engine_rows, narrow, perturbation_rows, summary, target_rows
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


def test_the_summary_tells_the_worst():
    subject = Subject(frozen_copy(SmallCNN()), (images(4),))
    measured = measure_parity(
        subject, available(["emulated-fp16"]), perturbations=perturbations(["bgr", "truncation"]), pixels=PixelSpace()
    )
    text = summary(measured)
    assert measured.worst_perturbation() == "bgr"
    assert "What moves the outputs most: bgr" in text
    assert f"{measured.targets['emulated-fp16'].metrics['rel_l2']:.3g}" in text


def test_what_matters_comes_first():
    """The target, its distance with the interval in the task's unit, whether it was measured, on what."""
    basis = {"parity/emulated-fp16/x_px_p99": Basis(16, 0.2, 0.4), "sensitivity/crop/beyond_geometry": Basis(16, 1, 2)}
    moved = {
        "crop": {"x_px_p99": 9.0, "x_px_mean": 4.0, "beyond_geometry": 1.5},
        "bgr": {"x_px_p99": 3, "x_px_mean": 2},
    }
    told = report(targets={"emulated-fp16": measured(0.3)}, basis=basis, sensitivity=moved)
    assert narrow(target_rows(told)) == (
        ["target", "x px p99", "status", "n"],
        [["emulated-fp16", "0.3 (0.2 to 0.4)", "measured", "16"]],
    )
    columns, rows = narrow(perturbation_rows(told))
    assert columns == ["perturbation", "moves by", "with the motion", "p99"]
    assert rows == [["bgr", "2", "2", "3"], ["crop", "1.5 (1 to 2)", "4", "9"]]


def test_a_relative_distance_has_its_interval_too():
    told = report(unit="rel_l2", basis={"parity/emulated-fp16/rel_l2": Basis(16, 0.9e-4, 2e-4)})
    columns, rows = target_rows(told)
    assert (columns[1], rows[1][1]) == ("relative L2", "0.0001 (9e-05 to 0.0002)")


def test_guesses_are_told_of_the_unit_alone():
    named = [f"{name}_{part}p99" for name in ("x_px", "y_px") for part in ("", "known_", "guessed_")]
    told = report(targets={"emulated-fp16": TargetResult("measured", dict.fromkeys(named, 1.0) | {"z_px_p99": nan})})
    columns, _ = target_rows(dataclasses.replace(told, unit="x_px_known_p99"))
    assert columns == ["target", "x px known p99", "status", "n", "x px guessed p99", "y px known p99"]
