import json

import numpy as np
import onnx
import pytest
import torch
import yaml

from lightning_robust.cli import main
from lightning_robust.deployment.graph.export import export, frozen_copy
from tests.boring import Boring, Pictures


def status(*arguments):
    try:
        main(list(arguments))
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.fixture
def checkpoint(tmp_path):
    config = {
        "model": {"class_path": "tests.boring.Boring"},
        "data": {"class_path": "tests.commands.test_parity.PictureData"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    torch.manual_seed(3)
    module = Boring()
    torch.save({"state_dict": module.state_dict(), "pytorch-lightning_version": "2.6.0"}, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt", module.eval()


def test_writes_what_the_network_sees_and_gives(checkpoint, tmp_path, capsys):
    path, module = checkpoint
    main(["golden", f"--ckpt={path}", f"--output={tmp_path / 'golden.npz'}", "--samples=6"])
    assert "input (6, 3, 8, 8), output (6, 4)" in capsys.readouterr().out
    with np.load(tmp_path / "golden.npz") as content:
        images = torch.stack([Pictures()[index][0] for index in range(6)])
        assert np.array_equal(content["input/input"], images.numpy())
        with torch.no_grad():
            assert np.allclose(content["output/output"], module(images).numpy(), atol=1e-6)


def test_reads_a_dump_back(checkpoint, tmp_path, capsys):
    path, _ = checkpoint
    common = ["golden", f"--ckpt={path}", f"--output={tmp_path / 'golden.npz'}"]
    main([*common, "--samples=4"])
    with np.load(tmp_path / "golden.npz") as content:
        dumped = {"output/output": content["output/output"] + np.float32(0.125)}
    np.savez(tmp_path / "car.npz", **dumped)
    main([*common, f"--check={tmp_path / 'car.npz'}"])
    found = json.loads((tmp_path / "check.json").read_text())
    assert found["engine"]["max_abs"] == pytest.approx(0.125, abs=1e-6)
    printed = capsys.readouterr().out
    assert "come from the engine" in printed
    assert printed.splitlines()[-1].startswith("verdict: no budget was set, nothing was judged: ")
    budget = tmp_path / "b.yaml"
    for text, code, told in (
        ("golden/engine/max_abs: 0.126", 0, "within"),
        ("golden: {whole/max_abs: 0.126, engine/max_abs: 0.124}", 1, "engine/max_abs is 0.125, allowed 0.124; 1 of 2"),
        ("golden/input/max_abs: 1", 2, "could not measure input/max_abs (the dump has no inputs)"),
        ("golden/whole/x_p99: 1", 2, "could not measure whole/x_p99 (it has no such metric."),
        ("golden/emulated-fp16/rel_l2: 1e-9", 0, "no budget was set"),  # no target was asked for
        ("golden/hole/max_abs: 1", 2, "Did you mean 'whole'"),
    ):
        budget.write_text(text)
        assert status(*common, f"--check={tmp_path / 'car.npz'}", f"--budget={budget}") == code
        printed = capsys.readouterr()
        assert told in (printed.out + printed.err).splitlines()[-1]


def test_runs_the_deployed_file_and_targets(checkpoint, tmp_path, capsys):
    """A file whose bias moved by 0.25 is 0.25 away; a file that is not there is said to be missing."""
    path, module = checkpoint
    file = tmp_path / "model.onnx"
    with torch.no_grad():
        module.net[-1].bias += 0.25
    onnx.save(export(frozen_copy(module), (torch.rand(2, 3, 8, 8),)).model, file)
    files = json.dumps({"deployed-fp32": str(file), "deployed-int8": str(tmp_path / "none.onnx")})
    output = tmp_path / "golden.npz"
    common = ["golden", f"--ckpt={path}", f"--output={output}"]
    assert status(*common, "--targets=[onnxruntime-fp32,onnxruntime-int8]", f"--deployed={files}") == 2
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].startswith("verdict: could not measure deployed-int8/rel_l2 (unavailable: there is")
    assert f"Wrote {output}" in printed
    assert "deployed-int8\nunavailable: there is no file at" in printed
    found = json.loads((tmp_path / "targets.json").read_text())
    assert found["deployed-fp32"]["engine"]["max_abs"] == pytest.approx(0.25, abs=1e-6)
    assert found["onnxruntime-fp32"]["engine"]["max_abs"] < 1e-6
    assert 1e-6 < found["onnxruntime-int8"]["engine"]["rel_l2"] < 0.2
    assert found["onnxruntime-int8"]["notes"][0].endswith("calibrated by minmax on 64 training samples")
    before = output.stat().st_mtime_ns
    main([*common, f"--deployed={file}"])
    assert output.stat().st_mtime_ns == before
    assert "come from the engine" in capsys.readouterr().out


def test_a_file_of_other_weights_is_refused(checkpoint, tmp_path, capsys):
    """Else what differs between two trainings would be told as the engine's."""
    path, module = checkpoint
    common = [f"--output={tmp_path / 'golden.npz'}", "--samples=4"]
    main(["golden", f"--ckpt={path}", *common])
    state = {name: value + 0.1 if value.is_floating_point() else value for name, value in module.state_dict().items()}
    torch.save({"state_dict": state, "pytorch-lightning_version": "2.6.0"}, tmp_path / "other.ckpt")
    assert status("golden", f"--ckpt={path}", *common, "--targets=[torch-fp32]") == 0
    assert status("golden", f"--ckpt={tmp_path / 'other.ckpt'}", *common, "--targets=[torch-fp32]") == 2
    assert "golden.npz to be of the weights of" in capsys.readouterr().err


def test_rejects(checkpoint, tmp_path, capsys):
    path, _ = checkpoint
    for arguments, message in (
        (["--samples=0"], "Expected `samples` to be positive"),
        ([f"--output={tmp_path / 'none.npz'}", "--check=x.npz"], "Expected golden tensors at"),
    ):
        with pytest.raises(SystemExit):
            main(["golden", f"--ckpt={path}", *arguments])
        assert message in capsys.readouterr().err
