"""The targets: each engine against PyTorch in fp64, and their names."""

import importlib.util

import pytest
import torch

from lightning_robust.deployment.engines import TARGETS, Subject, available, run_module, runtime
from lightning_robust.deployment.graph.export import frozen_copy
from lightning_robust.processor import processor_flags

from ..models import SmallCNN, images
from ..numerics.int8 import HAS_VNNI

HERE = [name for name in TARGETS if not name.startswith(("tensorrt", "deployed"))]


@pytest.fixture(scope="module")
def subject():
    torch.manual_seed(0)
    return Subject(frozen_copy(SmallCNN()), (images(6),))


@pytest.mark.parametrize("target", HERE)
def test_matches_reference_within_the_precision(subject, target):
    """The last place of the output type, times ten for the sums in between."""
    made = runtime(target)
    if target == "openvino-bf16" and "avx512_bf16" not in processor_flags():
        pytest.skip("this CPU does not execute bf16")
    if target == "openvino-int8" and not HAS_VNNI:
        pytest.skip("without VNNI sums saturate")
    assert made.name == target
    assert made.can_build()
    assert made.can_run()
    exact = run_module(frozen_copy(subject.module).double(), (subject.example[0].double(),))[0]
    got = made.build(subject).run(subject.example)[0].double()
    bound = (
        {"fp32": 2**-23, "tf32": 2**-11, "fp16": 2**-11, "fp16acc": 2**-11, "bf16": 2**-8, "int8": 2**-7}[
            made.precision
        ]
        * 10
        * exact.abs().max()
    )
    assert 0 < (got - exact).abs().max() < bound


def test_other_batch_sizes_run(subject):
    run = runtime("onnxruntime-fp32").build(subject).run
    x = images(5, seed=3)
    torch.testing.assert_close(run((x[:1],))[0], run((x,))[0][:1], rtol=0, atol=1e-6)


def test_auto_leaves_out_what_is_not_here(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    names = [made.name for made in available("auto")]
    assert {"onnxruntime-fp32", "emulated-tf32", "emulated-fp16", "emulated-bf16"} <= set(names)
    assert not any(name.startswith("tensorrt") for name in names)


def test_rejects_unknown_target():
    with pytest.raises(ValueError, match="Did you mean 'tensorrt_rtx-fp16'"):
        runtime("tensorrtrtx-fp16")


def test_auto_leaves_out_the_bound_that_takes_long():
    assert "emulated-fp16acc" in TARGETS
    assert "emulated-fp16acc" not in {made.name for made in available("auto")}
