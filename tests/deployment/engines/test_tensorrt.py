"""TensorRT as a runtime where there is no package, or no device."""

import pytest
import torch

from lightning_robust.deployment.engines import Subject, abilities, runtime
from lightning_robust.deployment.graph.export import frozen_copy

from ..models import SmallCNN, images


@pytest.mark.parametrize("target", ["tensorrt-fp32", "tensorrt-fp16", "tensorrt_rtx-fp16"])
def test_missing_package_says_what_to_install(monkeypatch, target):
    monkeypatch.setattr(abilities.importlib.util, "find_spec", lambda name: None)
    made = runtime(target)
    extra = "rtx" if "rtx" in target else "tensorrt"
    for able in (made.can_build(), made.can_run()):
        assert not able
        assert f'pip install "lightning-robust[{extra}]"' in able.reason


@pytest.mark.rtx
@pytest.mark.parametrize("target", ["tensorrt_rtx-fp32", "tensorrt_rtx-fp16"])
def test_an_engine_is_built_and_not_run_without_a_device(target, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    made = runtime(target)
    if made.can_run():
        pytest.skip("this machine can run the engine")
    torch.manual_seed(0)
    here = Subject(frozen_copy(SmallCNN()), (images(6),), max_batch=8, cache=tmp_path)
    built = made.build(here)
    assert built.run is None
    assert built.size > 4 * 3 * 8 * 9
    assert "not run" in built.note
