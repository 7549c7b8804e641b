import pytest
import torch
from torch import nn

from lightning_robust.deployment.engines import TARGETS, Subject, abilities, available, run_module, runtime
from lightning_robust.deployment.engines import subject as subject_module
from lightning_robust.deployment.engines.profile import make_profile
from lightning_robust.deployment.graph.export import ExportError, frozen_copy

from ..models import SmallCNN, images

HERE = [name for name in TARGETS if not name.startswith("tensorrt")]


@pytest.fixture(scope="module")
def subject():
    torch.manual_seed(0)
    return Subject(frozen_copy(SmallCNN()), (images(6),), max_batch=8)


@pytest.mark.parametrize("target", HERE)
def test_matches_reference_within_the_precision(subject, target):
    """The last place of the output type, times ten for the sums in between."""
    made = runtime(target)
    assert made.name == target
    assert made.can_build()
    assert made.can_run()
    exact = run_module(frozen_copy(subject.module).double(), (subject.example[0].double(),))[0]
    got = made.build(subject).run(subject.example)[0].double()
    bound = {"fp32": 2**-23, "tf32": 2**-11, "fp16": 2**-11, "bf16": 2**-8}[made.precision] * 10 * exact.abs().max()
    assert 0 < (got - exact).abs().max() < bound


def test_other_batch_sizes_run(subject):
    run = runtime("onnxruntime-fp32").build(subject).run
    x = images(5, seed=3)
    torch.testing.assert_close(run((x[:1],))[0], run((x,))[0][:1], rtol=0, atol=1e-6)


def test_profile_spans_one_to_the_largest_batch(subject):
    assert make_profile(subject.exported, subject) == {"input": ((1, 3, 16, 16), (6, 3, 16, 16), (8, 3, 16, 16))}


def test_a_failed_export_is_tried_once(monkeypatch):
    calls = []

    def refuse(*_, **__):
        calls.append(1)
        raise ExportError("planted")

    monkeypatch.setattr(subject_module, "export", refuse)
    subject = Subject(nn.Identity(), (torch.zeros(2, 1),))
    for _ in range(3):
        with pytest.raises(ExportError, match="planted"):
            _ = subject.exported
    assert len(calls) == 1


@pytest.mark.parametrize("target", ["tensorrt-fp32", "tensorrt-fp16", "tensorrt_rtx-fp16"])
def test_missing_package_says_what_to_install(monkeypatch, target):
    monkeypatch.setattr(abilities.importlib.util, "find_spec", lambda name: None)
    made = runtime(target)
    extra = "rtx" if "rtx" in target else "tensorrt"
    for able in (made.can_build(), made.can_run()):
        assert not able
        assert f'pip install "lightning-robust[{extra}]"' in able.reason


def test_auto_leaves_out_what_is_not_here(monkeypatch):
    monkeypatch.setattr(abilities.importlib.util, "find_spec", lambda name: None)
    names = [made.name for made in available("auto")]
    assert {"onnxruntime-fp32", "emulated-tf32", "emulated-fp16", "emulated-bf16"} <= set(names)
    assert not any(name.startswith("tensorrt") for name in names)


@pytest.mark.rtx
@pytest.mark.parametrize("target", ["tensorrt_rtx-fp32", "tensorrt_rtx-fp16"])
def test_an_engine_is_built_and_not_run_without_a_device(subject, target, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    made = runtime(target)
    if made.can_run():
        pytest.skip("this machine can run the engine")
    here = Subject(subject.module, subject.example, max_batch=8, cache=tmp_path)
    built = made.build(here)
    assert built.run is None
    assert built.size > 4 * 3 * 8 * 9
    assert "not run" in built.note


def test_rejects_unknown_target():
    with pytest.raises(ValueError, match="Did you mean 'tensorrt_rtx-fp16'"):
        runtime("tensorrtrtx-fp16")
