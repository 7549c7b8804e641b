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
from tests.deployment.graphs import graph
from tests.deployment.models import OverflowingNorm, images


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(0)
    onnx.save(export(frozen_copy(OverflowingNorm()), (images(4),)).model, tmp_path / "norm.onnx")
    np.savez(tmp_path / "inputs.npz", input=images(10).numpy())
    return tmp_path / "norm.onnx"


def status(*arguments):
    try:
        main(["precision", *map(str, arguments)])
    except SystemExit as stop:
        return stop.code
    return 0


def test_budget_met(file, tmp_path, capsys):
    out = tmp_path / "out"
    assert status(file, f"--inputs={tmp_path / 'inputs.npz'}", "--budget=2e-3", f"--output={out}") == 0
    assert sorted(path.name for path in out.iterdir()) == [
        *("keep_fp32.json", "norm_fp16.onnx", "precision.html", "precision.json")
    ]
    found, listed = (json.loads((out / name).read_text()) for name in ("precision.json", "keep_fp32.json"))
    assert found["distance"] <= 2e-3 < found["keep"]["total"]
    assert listed["nodes_to_exclude"] == [f"^{name}$" for name in found["keep"]["nodes"]]
    assert "^node_pow_1$" in listed["nodes_to_exclude"]
    types = {node.op_type for node in onnx.load(out / "norm_fp16.onnx").graph.node}
    assert "Cast" in types
    page, printed = (out / "precision.html").read_text(), capsys.readouterr().out
    for text in (page, printed):
        assert "Budget met in emulated fp16" in text
        assert "No engine was executed" in text
        assert "trtexec --onnx=norm_fp16.onnx --stronglyTyped --noTF32" in text
        assert "on 5 samples" in text
        assert "noise" not in text
    assert "node_pow_1" in page


def test_budget_not_met_says_what_was_reached_and_why(file, tmp_path, capsys):
    arguments = [f"--inputs={tmp_path / 'inputs.npz'}", "--budget=1e-9", f"--output={tmp_path / 'out'}"]
    assert status(file, *arguments, "--precision=bf16", "--tf32=true") == 1
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "precision.json").read_text())
    assert f"Budget not met: {found['distance']:.3g}" in printed
    assert "No list meets it, not even every node in fp32: it multiplies in TF32" in printed
    assert (tmp_path / "out" / "norm_bf16.onnx").is_file()


def test_the_list_of_an_earlier_run_is_excluded(file, tmp_path):
    """Nothing more is found: the list stays as it is."""
    arguments = [file, f"--inputs={tmp_path / 'inputs.npz'}", "--budget=2e-3"]
    assert status(*arguments, f"--output={tmp_path / 'a'}") == 0
    assert status(*arguments, f"--output={tmp_path / 'b'}", f"--exclude={tmp_path / 'a' / 'keep_fp32.json'}") == 0
    first, second = (json.loads((tmp_path / name / "precision.json").read_text()) for name in "ab")
    assert second["excluded"] == second["keep"]["nodes"] == first["keep"]["nodes"]
    assert second["distance"] == pytest.approx(first["distance"], rel=0.02)


def test_a_budget_that_leaves_nothing_in_half(file, tmp_path, capsys):
    assert status(file, f"--inputs={tmp_path / 'inputs.npz'}", "--budget=1e-9", f"--output={tmp_path / 'out'}") == 0
    assert "Nothing is left in fp16" in capsys.readouterr().out


def test_without_inputs_it_is_noise(file, tmp_path, capsys):
    assert (
        status(file, "--budget=2e-3", "--samples=6", "--shapes={'input': [6, 3, 16, 16]}", "--output=" + str(tmp_path))
        == 0
    )
    assert "The inputs are noise" in capsys.readouterr().out


def test_tf32_and_the_first_samples(file, tmp_path, capsys):
    arguments = [f"--inputs={tmp_path / 'inputs.npz'}", "--samples=4", f"--output={tmp_path / 'out'}", "--tf32=true"]
    assert status(file, *arguments, "--budget=1e-2", "--exclude=[node_conv2d]") == 0
    assert "--noTF32 " not in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "precision.json").read_text())
    assert found["keep"]["samples"] + found["keep"]["checked"] == 4
    assert found["excluded"] == ["node_conv2d"]


def test_int8(file, tmp_path, capsys):
    out, inputs = tmp_path / "out", tmp_path / "inputs.npz"
    asked = [file, f"--inputs={inputs}", f"--calibration_data={inputs}", f"--output={out}", "--precision=int8"]
    assert status(*asked, "--budget=1e-2", "--calibration=percentile") == 0
    assert sorted(path.name for path in out.iterdir()) == [
        *("exclude_int8.json", "norm_int8.onnx", "norm_int8_fp16.onnx", "precision.html", "precision.json")
    ]
    found, listed = (json.loads((out / name).read_text()) for name in ("precision.json", "exclude_int8.json"))
    assert max(found["distance"], found["executed_distance"]) <= 1e-2 < found["keep"]["total"]
    assert listed["nodes_to_exclude"] == [f"^{found['keep']['nodes'][0]}$"]
    operators = [node.op_type for node in onnx.load(out / "norm_int8.onnx").graph.node]
    assert operators.count("QuantizeLinear") == 1
    printed = capsys.readouterr().out
    assert "Budget met in int8, executed by ONNX Runtime" in printed
    assert "calibrated by percentile on 10 samples of inputs.npz" in printed
    assert status(*asked, "--budget=1e-5", "--exclude=[node_conv2d]") == 0
    assert "Nothing is left in int8" in capsys.readouterr().out


class PictureData(pl.LightningDataModule):
    """Stands in the configuration as the data of the checkpoint's run."""

    def val_dataloader(self):
        return DataLoader(Pictures(), 4)

    train_dataloader = val_dataloader


class Scored(Boring):
    """Its unit is a score of the first class, and it knows the first of every batch of pictures."""

    def decode(self, outputs):
        return {"score": outputs[:, 0]}

    def known(self, values, batch):
        return torch.arange(len(batch[0])) % 2 == 0


def test_a_run_is_judged_in_its_own_unit(tmp_path):
    config = {
        "model": {"class_path": "tests.commands.test_precision.Scored"},
        "data": {"class_path": "tests.commands.test_precision.PictureData"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    torch.manual_seed(3)
    torch.save({"state_dict": Scored().state_dict(), "pytorch-lightning_version": "2.6.0"}, tmp_path / "last.ckpt")
    out = tmp_path / "out"
    assert status(tmp_path / "last.ckpt", "--budget=0.01", "--samples=8", f"--output={out}") == 0
    found = json.loads((out / "precision.json").read_text())
    assert found["keep"]["unit"] == "score_known_p99"
    assert 0 < found["distance"] <= 0.01
    assert (out / "last_fp16.onnx").is_file()


def test_a_run_in_int8_is_calibrated_on_its_training_inputs(tmp_path, capsys):
    config = {
        "model": {"class_path": "tests.commands.test_precision.Scored"},
        "data": {"class_path": "tests.commands.test_precision.PictureData"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    torch.manual_seed(3)
    torch.save({"state_dict": Scored().state_dict(), "pytorch-lightning_version": "2.6.0"}, tmp_path / "last.ckpt")
    asked = [tmp_path / "last.ckpt", "--budget=0.5", "--samples=8", f"--output={tmp_path / 'out'}", "--precision=int8"]
    assert status(*asked, "--calibration_samples=12") == 0
    assert "calibrated by minmax on 12 training samples" in capsys.readouterr().out


def test_nodes_without_names_are_said_to_be(tmp_path, capsys):
    onnx.save(graph("g (float[n, 4] x) => (float[n, 4] y) { a = Tanh(x) [scale] y = Mul(a, a) }"), tmp_path / "x.onnx")
    assert status(tmp_path / "x.onnx", "--budget=1", f"--output={tmp_path}") == 0
    assert "1 of 2 nodes have no name of their own" in capsys.readouterr().out


def test_verdict_and_a_budget_from_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(graph("g (float[n, 4] x) => (float[n, 4] y) { [t] a = Tanh(x) [s] y = Mul(a, a) }"), "x.onnx")
    assert "Expected one budget for fp16, but got none. Give --budget=1e-3" in refused(capsys, "x.onnx")
    for text, code, told in (
        ("precision/fp16/rel_l2: 0.5", 0, "verdict: within parity.yaml: fp16/rel_l2 is 0.00"),
        ("precision: {fp16: 0.5, bf16: 1e-9}", 0, "verdict: within parity.yaml: fp16/rel_l2 is 0.00"),
        ("precision/fp16/x_px_p99: 0.5", 2, "(the budget is one of x_px_p99, and the file was measured in rel_l2)"),
    ):
        (tmp_path / "parity.yaml").write_text(text)
        assert status("x.onnx") == code
        assert told in capsys.readouterr().out.splitlines()[-1]
    (tmp_path / "parity.yaml").write_text("precision/fp16/rel_l2: 0.5\nprecision/fp16/max_abs: 1")
    assert "but got 2 of them in parity.yaml" in refused(capsys, "x.onnx")
    assert status("x.onnx", "--budget=0.25") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("verdict: within --budget: fp16/rel_l2 is 0.00")


def refused(capsys, *arguments):
    assert status(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.onnx", "--budget=1"], "Expected an ONNX file at nowhere.onnx, but there is no such file."),
        (["nowhere.ckpt", "--budget=1"], "Expected a checkpoint at nowhere.ckpt, but there is no such file."),
        (["nowhere.ckpt", "--budget=1", "--inputs=x.npz"], "Expected --inputs and --shapes with an ONNX file"),
        (["nowhere.onnx", "--budget=1", "--precision=int8", "--tf32=true"], "Expected no --tf32 with --precision=int8"),
        (["nowhere.onnx", "--budget=1", "--calibration=entropy"], "Expected no --calibration with --precision=fp16"),
        (["nowhere.onnx", "--budget=1", "--samples=0"], "Expected `samples` to be positive, but got 0."),
    ],
)
def test_rejects_arguments(arguments, message, capsys):
    assert message in refused(capsys, *arguments)


@pytest.mark.parametrize("budget", ["0", "-1", ".nan", ".inf"])
def test_rejects_a_budget_that_is_none(budget, file, tmp_path, capsys):
    message = refused(capsys, file, f"--budget={budget}", f"--output={tmp_path / 'out'}")
    assert "Expected `budget` to be a positive number" in message


def test_rejects_inputs(file, tmp_path, capsys):
    ask = [file, "--budget=1", f"--output={tmp_path / 'out'}"]
    bad = tmp_path / "bad.npz"
    for arrays, message in [
        ({"other": images(4).numpy()}, "Expected an array for each of the inputs ['input']"),
        ({"input": images(4).double().numpy()}, "Expected input 'input' as float32"),
        ({"input": images(4).numpy() * np.nan}, "Expected numbers in input 'input', but 3072 of them are NaN"),
    ]:
        np.savez(bad, **arrays)
        assert message in refused(capsys, *ask, f"--inputs={bad}")
    np.save(tmp_path / "lone.npy", images(4).numpy())
    assert "it has no named arrays" in refused(capsys, *ask, f"--inputs={tmp_path / 'lone.npy'}")
    bad.write_bytes(b"PK no archive")
    assert "Expected an .npz file" in refused(capsys, *ask, f"--inputs={bad}")
    assert "nowhere.npz" in refused(capsys, *ask, "--inputs=nowhere.npz")


def test_rejects_a_graph_in_half(file, tmp_path, capsys):
    onnx.save(to_half(onnx.load(file)), tmp_path / "half.onnx")
    assert "in half precision already" in refused(capsys, tmp_path / "half.onnx", "--budget=1")


def test_rejects_weights_beyond_two_gigabytes(tmp_path, capsys):
    """Before they are read: the file is a hole of 3 GB."""
    model = graph("g (float[n, 4] x) => (float[n, 4] y) { [layer] y = Mul(x, w) }", w=np.ones(4, np.float32))
    onnx.save(model, tmp_path / "large.onnx", save_as_external_data=True, location="large.data", size_threshold=0)
    with (tmp_path / "large.data").open("r+b") as weights:
        weights.truncate(3 * 10**9)
    assert "but" in (message := refused(capsys, tmp_path / "large.onnx", "--budget=1"))
    assert "has 3.0 GB" in message


def test_a_quantised_graph_is_measured_and_said_to_be_one(tmp_path, capsys):
    model = graph(
        "g (float[n, 4] x) => (float[n, 4] y) {"
        "[q] a = QuantizeLinear(x, s, z) [dq] b = DequantizeLinear(a, s, z) [scale] y = Mul(b, b) }",
        s=np.float32(0.01),
        z=np.int8(0),
    )
    onnx.save(model, tmp_path / "q.onnx")
    assert status(tmp_path / "q.onnx", "--budget=1", f"--output={tmp_path}") == 0
    assert "The graph is quantised" in capsys.readouterr().out


def test_rejects_a_quantised_graph_for_int8(tmp_path, capsys):
    model = graph(
        "g (float[n, 4] x) => (float[n, 4] y) { [q] a = QuantizeLinear(x, s, z) [dq] y = DequantizeLinear(a, s, z) }",
        s=np.float32(0.01),
        z=np.int8(0),
    )
    onnx.save(model, tmp_path / "q.onnx")
    message = refused(capsys, tmp_path / "q.onnx", "--budget=1", "--precision=int8", f"--output={tmp_path}")
    assert "this one is quantised already" in message


def test_rejects_a_graph_that_gives_integers_alone(tmp_path, capsys):
    model = graph("g (float[n, 4] x) => (int64[n] y) { [a] z = Mul(x, x) [b] y = ArgMax<axis = 1, keepdims = 0>(z) }")
    onnx.save(model, tmp_path / "choice.onnx")
    message = refused(capsys, tmp_path / "choice.onnx", "--budget=1", f"--output={tmp_path}")
    assert "Expected an output in floating point" in message


def test_rejects_a_graph_in_which_nothing_computes_in_fp32(tmp_path, capsys):
    onnx.save(graph("g (int64[n] x) => (int64[n] y) { [twice] y = Add(x, x) }"), tmp_path / "int.onnx")
    assert "none does" in refused(capsys, tmp_path / "int.onnx", "--budget=1", f"--output={tmp_path}")


def test_what_onnxruntime_refuses_is_no_budget_that_is_not_met(tmp_path, capsys):
    """Status 1 is kept for what was measured."""
    text = '<ir_version: 10, opset_import: ["" : 20, "mine" : 1]> g (float[n] x) => (float[n] y) { y = mine.Op(x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "op.onnx")
    message = refused(capsys, tmp_path / "op.onnx", "--budget=1", f"--output={tmp_path}")
    assert "mine" in message
