import json

import lightning.pytorch as pl
import numpy as np
import onnx
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from lightning_robust.cli import main
from lightning_robust.deployment.graph.export import export, frozen_copy
from lightning_robust.deployment.numerics.convert import to_half
from tests.boring import Boring, Pictures
from tests.deployment.models import SmallCNN, images


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "cnn.onnx"
    onnx.save(export(frozen_copy(SmallCNN()), (images(4),)).model, path)
    return path


def report(folder):
    return json.loads((folder / "parity.json").read_text())


def test_onnx_file_with_inputs(file, tmp_path, capsys):
    np.savez(tmp_path / "inputs.npz", input=images(6).numpy())
    main(
        [
            *("parity", f"--onnx={file}", f"--inputs={tmp_path / 'inputs.npz'}", f"--output={tmp_path / 'out'}"),
            *("--targets=[emulated-fp16]", "--perturbations=[bgr]", "--mean=0.5", "--std=0.25"),
        ]
    )
    found = report(tmp_path / "out")
    assert found["samples"] == 6
    assert found["reference"] == "onnxruntime-fp32"
    assert 1e-5 < found["targets"]["emulated-fp16"]["metrics"]["rel_l2"] < 5e-3
    assert found["notes"] == [] or "pixels" in found["notes"][0]
    assert str(tmp_path / "out" / "parity.html") in capsys.readouterr().out


def test_onnx_file_without_inputs_says_that_it_is_noise(file, tmp_path, capsys):
    main(["parity", f"--onnx={file}", f"--output={tmp_path / 'out'}", "--targets=[emulated-fp16]", "--samples=3"])
    assert report(tmp_path / "out")["samples"] == 3
    assert any("noise" in note for note in report(tmp_path / "out")["notes"])
    assert set(report(tmp_path / "out")["sensitivity"])  # the input is a batch of pictures
    assert "Give --inputs" in capsys.readouterr().out


def test_keep_list_is_honoured(file, tmp_path, capsys):
    """As a list, and as the file that was written."""
    common = ["parity", f"--onnx={file}", "--targets=[emulated-fp16]", "--perturbations=none"]
    main([*common, f"--output={tmp_path / 'a'}", "--keep_tolerance=1e-4"])
    kept = json.loads((tmp_path / "a" / "keep_fp32.json").read_text())
    assert kept["met"]
    main([*common, f"--output={tmp_path / 'b'}", f"--keep_fp32={json.dumps(kept['nodes'])}"])
    main([*common, f"--output={tmp_path / 'c'}", f"--keep_fp32={tmp_path / 'a' / 'keep_fp32.json'}"])
    before, after, again = (report(tmp_path / x)["targets"]["emulated-fp16"]["metrics"]["rel_l2"] for x in "abc")
    assert after < 0.3 * before
    assert again == after


def test_a_deployed_file_beside_the_file(file, tmp_path, capsys):
    """Our own conversion gives the emulation's numbers, and its link is none."""
    onnx.save(to_half(onnx.load(file)), tmp_path / "half.onnx")
    common = ["parity", f"--onnx={file}", "--targets=[emulated-fp16]", "--perturbations=none"]
    main([*common, f"--output={tmp_path / 'out'}", f"--deployed={tmp_path / 'half.onnx'}"])
    found = report(tmp_path / "out")
    emulated = found["targets"]["emulated-fp16"]["metrics"]
    assert found["targets"]["deployed-fp16"]["metrics"] == {k: v for k, v in emulated.items() if k != "storage"}
    assert found["attribution"]["engine/deployed-fp16"] == 0.0
    assert "The deployed file, emulated and not executed: deployed-fp16." in (tmp_path / "out/parity.html").read_text()


def test_list_of_int8_is_honoured(file, tmp_path):
    """With the list out of int8 the target is as near to fp32 as the report said it would be."""
    np.savez(tmp_path / "inputs.npz", input=images(16).numpy())
    common = ["parity", f"--onnx={file}", "--targets=[emulated-int8]", "--perturbations=none"]
    common.append(f"--inputs={tmp_path / 'inputs.npz'}")
    main([*common, f"--output={tmp_path / 'a'}", "--keep_tolerance=0.0105"])
    listed = json.loads((tmp_path / "a" / "exclude_int8.json").read_text())
    assert (listed["of"], len(listed["nodes"]), listed["precision"]) == (2, 1, "int8")
    assert report(tmp_path / "a")["int8"]["keep"]["nodes"] == listed["nodes"]
    main([*common, f"--output={tmp_path / 'b'}", f"--exclude_int8={json.dumps(listed['nodes'])}"])
    before, after = (report(tmp_path / x)["targets"]["emulated-int8"]["metrics"]["rel_l2"] for x in "ab")
    assert after < 0.9 * before
    assert min(listed["error"], listed["found_error"]) < after < max(listed["error"], listed["found_error"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Expected one of --run, --ckpt and --onnx, but got none."),
        (["--onnx=a", "--ckpt=b"], "but got two."),
        (["--onnx=nowhere.onnx"], "Expected an ONNX file at nowhere.onnx"),
        (["--onnx=a", "--config=b"], "Expected no --config with --onnx"),
        (["--ckpt=a", "--inputs=b", "--shapes={}"], "Expected no --inputs and --shapes with --run and --ckpt"),
        (["--onnx=a", "--keep_fp32=none.json"], "in the file of `keep_fp32`, but got FileNotFoundError"),
        (["--ckpt=nowhere.ckpt"], "Expected a checkpoint at nowhere.ckpt"),
    ],
)
def test_rejects(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["parity", *arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_rejects_targets_that_compare_the_file_with_itself(file, capsys):
    with pytest.raises(SystemExit):
        main(["parity", f"--onnx={file}", "--targets=[onnxruntime-fp32]"])
    assert "the reference of an ONNX file" in capsys.readouterr().err


class PictureData(pl.LightningDataModule):
    """Stands in the configuration as the data of the checkpoint's run."""

    def val_dataloader(self):
        return DataLoader(Pictures(), 4)


@pytest.fixture
def checkpoint(tmp_path):
    config = {
        "model": {"class_path": "tests.boring.Boring"},
        "data": {"class_path": "tests.commands.test_parity.PictureData"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    torch.manual_seed(3)
    torch.save({"state_dict": Boring().state_dict(), "pytorch-lightning_version": "2.6.0"}, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_checkpoint(checkpoint, tmp_path, capsys):
    main(
        [
            *("parity", f"--ckpt={checkpoint}", f"--output={tmp_path / 'out'}", "--samples=4"),
            *("--targets=[onnxruntime-fp32,emulated-fp16]", "--perturbations=none"),
        ]
    )
    found = report(tmp_path / "out")
    assert found["reference"] == "torch-fp64"
    assert found["samples"] == 4
    assert found["targets"]["onnxruntime-fp32"]["metrics"]["rel_l2"] < 1e-5
    assert found["layers"]["nodes"]
    assert found["provenance"]["checkpoint"] == str(checkpoint)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "last.ckpt", "out"]


def test_settings_and_files_that_do_not_fit_with_a_checkpoint(checkpoint, tmp_path, capsys):
    """A kept module lowers fp16's distance; a file that is not there has a status, and the rest its numbers."""
    common = ["parity", f"--ckpt={checkpoint}", "--samples=4", "--targets=[emulated-fp16]", "--perturbations=none"]
    main([*common, f"--output={tmp_path / 'a'}", "--input_key=0", "--decode=null"])
    with pytest.warns(UserWarning, match="deployed-fp16 cannot be measured here: there is no file at gone.onnx"):
        main([*common, f"--output={tmp_path / 'b'}", "--keep_fp32=[net]", "--deployed=gone.onnx"])
    before, after = (report(tmp_path / x)["targets"]["emulated-fp16"]["metrics"]["rel_l2"] for x in "ab")
    assert after < 0.3 * before
    assert report(tmp_path / "b")["targets"]["deployed-fp16"]["status"] == "unavailable"
