"""Every wrong input of every command is one line that names it, and exit status 2; there is no traceback.

The table is made of kinds: each way in which a file can be wrong, at each place where a command reads one; each way in
which a value can be wrong, for options of each type.
"""

import itertools
import pickle
import re
import zipfile

import lightning.pytorch  # noqa: F401 - its log handler keeps the stream that it finds
import numpy as np
import onnx
import pytest
import torch
import yaml
from onnx import TensorProto, helper
from PIL import Image

from lightning_robust.cli import main

BORING = "lightning.pytorch.demos.boring_classes"
FIT = [
    "fit",
    f"--model={BORING}.BoringModel",
    f"--data={BORING}.BoringDataModule",
    "--trainer.logger=false",
    "--seed_everything=0",
]
FIT += ["--trainer.max_steps=1", "--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false"]
FIT += ["--trainer.accelerator=cpu", "--trainer.limit_val_batches=1", "--trainer.enable_model_summary=false"]


def graph(operator="Relu", domain="", opset=17):
    node = helper.make_node(operator, ["x"], ["y"], domain=domain)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:]), opset_imports=opsets, ir_version=8)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what is right and what is wrong, and the working folder of the commands."""
    place = tmp_path_factory.mktemp("inputs")
    (place / "folder").mkdir()
    (place / "empty").write_bytes(b"")
    (place / "text").write_text("not a file of any kind: [\n")
    (place / "binary").write_bytes(bytes(range(256)) * 8)
    onnx.save(graph(), place / "good.onnx")
    onnx.save(graph("Strange", "my.company"), place / "custom.onnx")
    onnx.save(graph(opset=99), place / "future.onnx")
    np.savez(place / "good.npz", x=np.zeros((4, 4), np.float32))
    np.savez(place / "double.npz", x=np.zeros((4, 4)))
    np.savez(place / "wide.npz", x=np.zeros((4, 5), np.float32))
    np.savez(place / "words.npz", x=np.array(["a", "b"]))
    np.savez(place / "objects.npz", x=np.array([{}], dtype=object))
    np.savez(place / "nothing.npz", x=np.zeros((0, 4), np.float32))
    np.savez(place / "other.npz", z=np.zeros((4, 4), np.float32))
    np.savez(
        place / "golden.npz", **{"input/x": np.zeros((4, 4), np.float32), "output/y": np.zeros((4, 4), np.float32)}
    )
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(place / "frame.png")
    np.savez(place / "nan.npz", x=np.full((4, 4), np.nan, np.float32))
    np.save(place / "flat.npy", np.zeros(3, np.float32))
    with zipfile.ZipFile(place / "zip", "w") as archive:
        archive.writestr("a", "b")
    for name in ("good.onnx", "good.npz"):
        (place / f"cut.{name}").write_bytes((place / name).read_bytes()[:-60])
    run = place / "run"
    run.mkdir()
    config = {"model": {"class_path": f"{BORING}.BoringModel"}, "data": {"class_path": f"{BORING}.BoringDataModule"}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    good = {
        "state_dict": {"layer.weight": torch.zeros(2, 32), "layer.bias": torch.zeros(2)},
        "epoch": 0,
        "global_step": 1,
    }
    torch.save(good, run / "good.ckpt")
    torch.save(good | {"state_dict": {"layer.weight": torch.zeros(3, 3)}}, run / "other.ckpt")
    torch.save({"weights": 1}, run / "strange.ckpt")
    torch.save(torch.zeros(3), run / "tensor.ckpt")
    torch.save([1, 2], run / "list.ckpt")
    (run / "pickle.ckpt").write_bytes(pickle.dumps({"state_dict": itertools.count}, protocol=2))
    (run / "cut.ckpt").write_bytes((run / "good.ckpt").read_bytes()[:-200])
    for name in ("empty", "text", "binary", "zip"):
        (run / f"{name}.ckpt").write_bytes((place / name).read_bytes())
    files = {
        "unclosed": "swa: {start: 1",
        "tagged": "swa: !!python/object/apply:os.system [ls]",
        "endless": "swa: &a {b: *a}",
        "bomb": "\n".join(f"k{i}: &k{i} [{', '.join([f'*k{i - 1}' if i else 'x'] * 9)}]" for i in range(9)),
        "list": "[1, 2]",
        "number": "7",
        "nested": "[" * 3000,
        "tabs": "swa:\n\t- 1",
        "twice": "a: b: c",
    }
    for name, text in files.items():
        (place / f"{name}.yaml").write_text(text)
    return place


DAMAGED = ["nowhere", "folder", "empty", "text", "binary", "zip"]
YAMLS = [
    f"{name}.yaml" for name in ("unclosed", "tagged", "endless", "bomb", "list", "number", "nested", "tabs", "twice")
]
CKPTS = ["nowhere", "empty", "text", "binary", "zip", "other", "strange", "tensor", "list", "pickle", "cut"]
GRAPHS = [*DAMAGED, "cut.good.onnx", "custom.onnx", "future.onnx", "good.npz"]
ARRAYS = [*DAMAGED, "cut.good.npz"]
MEANT = [f"{name}.npz" for name in ("double", "wide", "words", "objects", "nothing", "other", "nan")]
GOOD = "run/good.ckpt"


def at(places, damaged):
    """Each damaged file at each place: the arguments with the file for ``@``, and what the line has to name."""
    return [([word.replace("@", file) for word in line], re.escape(file)) for line in places for file in damaged]


FILES = [
    *at([["parity", "--onnx=@"], ["precision", "@", "--budget=1"]], GRAPHS),
    *at([["parity", "--onnx=good.onnx", "--inputs=@"]], [*ARRAYS, *MEANT]),
    *at([["precision", "good.onnx", "--budget=1", "--inputs=@"]], [*ARRAYS, *MEANT]),
    *at([["fingerprint", "@", "good.npz"]], [*ARRAYS, "good.onnx"]),
    *at([["fingerprint", "good.npz", "@"]], ["nowhere", "binary"]),
    *at([["parity", "--ckpt=run/@.ckpt"], ["golden", "--ckpt=run/@.ckpt"]], CKPTS),
    *at(
        [["replay", "--frames=frame.png", "--ckpt=run/@.ckpt"], ["precision", "run/@.ckpt", "--budget=1"]],
        ["nowhere", "cut"],
    ),
    *at([[*FIT, "--ckpt_path=run/@.ckpt"]], ["nowhere"]),
    *at([["parity", f"--ckpt={GOOD}", "--config=@"]], [*DAMAGED, *YAMLS]),
    *at([["golden", f"--ckpt={GOOD}", "--config=@"]], ["nowhere", "folder", "text"]),
    *at([["golden", f"--ckpt={GOOD}", "--output=golden.npz", "--check=@"]], ARRAYS),
    *at([["replay", f"--ckpt={GOOD}", "--frames=@"]], ["nowhere"]),
    *at([["compare", "@"]], DAMAGED),
    *at([["sweep", "@"]], [*DAMAGED, *YAMLS]),
    *at([[*FIT, "--config=@"]], [*DAMAGED, *YAMLS]),
    *at([["test", "-c", "@"]], ["folder", "binary", "endless.yaml", "list.yaml"]),
]
DAMAGED_FOR_TRAINING = [([*FIT, f"--ckpt_path=run/{name}.ckpt"], f"{name}.ckpt|loading state_dict") for name in CKPTS]
NUMBERS = [
    ([*line, f"--{option}={value}"], option)
    for line, options in [
        (["parity", "--onnx=good.onnx"], ["samples", "time_limit", "batch", "workspace", "calibration_samples"]),
        (["golden", f"--ckpt={GOOD}"], ["samples", "batch"]),
        (["replay", f"--ckpt={GOOD}", "--frames=folder"], ["stride", "limit", "batch_size", "time_limit"]),
        (["precision", "good.onnx", "--budget=1"], ["samples", "time_limit", "budget"]),
    ]
    for option in options
    for value in ("0", "many", "nan")
]
NAMES = [
    (["parity", "--onnx=good.onnx", "--targets=[emulated-fp61]"], "emulated-fp16"),
    (["parity", "--onnx=good.onnx", "--targets=[torch-fp16]"], "torch-fp16"),
    (["parity", "--onnx=good.onnx", "--targets=auto1"], "targets"),
    (["parity", "--onnx=good.onnx", "--perturbations=[bgrr]"], "Did you mean 'bgr'"),
    (["parity", "--onnx=good.onnx", "--calibration=minmaxx"], "Did you mean 'minmax'"),
    (["parity", "--onnx=good.onnx", "--keep_fp32=nowhere.json"], "keep_fp32"),
    (["parity", "--onnx=good.onnx", "--input_key=0"], "input_key"),
    (["parity", "--onnx=good.onnx", "--shapes=[1]"], "shapes"),
    (["parity", "--onnx=good.onnx", "--tolerance=0.1"], "tolerance"),
    (["parity", "--onnx=good.onnx", "--command=ssh"], "command"),
    (["parity", "--onnx=good.onnx", f"--ckpt={GOOD}"], "--onnx"),
    (["parity"], "--onnx"),
    (["parity", "--onx=good.onnx"], "Did you mean 'onnx'"),
    (["golden"], "ckpt"),
    (["golden", f"--ckpt={GOOD}", "--targets=[emulated]"], "emulated"),
    (["golden", f"--ckpt={GOOD}", "--sampels=3"], "Did you mean 'samples'"),
    (["replay", f"--ckpt={GOOD}"], "frames"),
    (["replay", f"--ckpt={GOOD}", "--frames=folder", "--perturbations=[gama]"], "Did you mean 'gamma'"),
    (["precision", "good.onnx"], "budget"),
    (["precision", "good.onnx", "--budget=1", "--precision=fp8"], "precision"),
    (["precision", "good.onnx", "--budget=1", "--calibration=entropy"], "calibration"),
    (["precision", "good.onnx", "--budget=1", "--precision=int8", "--tf32=true"], "tf32"),
    (["precision", "good.onnx", "--budget=inf"], "budget"),
    (["precision", GOOD, "--budget=1", "--inputs=good.npz"], "--inputs"),
    (["fingerprint", "flat.npy", "flat.npy"], "flat.npy|N x C|dimension|pictures"),
    (["fingerprint", "good.npz"], "deployed"),
    (["fingerprint", "good.npz", "good.npz", "--key=y"], "good.npz"),
    (["compare"], "runs"),
    (["compare", "run", "--baseline=nowhere"], "nowhere|baseline"),
    (["compare", "run", "--outputt=a"], "Did you mean 'output'"),
    (["sweep"], "file"),
    (["sweep", "good.onnx"], "good.onnx"),
    (["soop"], "Did you mean 'soup'"),
    (["parityy"], "Did you mean 'parity'"),
    (["soup", *FIT[1:], "--monitor=x", "--mode=min", "--ingredients=nowhere.ckpt"], "nowhere.ckpt"),
    (["soup", *FIT[1:], "--monitor=x", "--mode=min", "--ingredients=run/strange.ckpt"], "strange.ckpt|ingredients"),
    (["soup", *FIT[1:]], "ingredients"),
    (["soup", *FIT[1:], "--ingredients=run/good.ckpt", "--recipe=greed"], "Did you mean 'greedy'"),
]
SAID = [
    ([*FIT, "--swa={start: null}"], "swa.*Expected a start below 1.*got None"),
    ([*FIT, "--datapath.under=[null]"], r"datapath.under.*but got \[None\]\.?$"),
    ([*FIT, "--ckpt_path=run/nowhere.ckpt"], "ckpt_path.*Expected a checkpoint at run/nowhere.ckpt, but there is no"),
    (["fit", f"--model={BORING}.BoringModl", *FIT[2:]], "Did you mean 'BoringModel'"),
    ([*FIT, "--wise_ft=true"], "WiSEFTCallback: Expected a metric to judge weights by"),
    ([*FIT, "--lazy_training={betas: [abc]}"], "betas"),
]
TECHNIQUES = [
    ([*FIT, f"--{key}={value}"], f"`{key}")
    for key in ("swa", "deployment_parity")
    for value in ("ture", "3", "[1]", "{", "nothing.Here")
]
VALUES = [
    ([*FIT, f"--{key}={value}"], key.rsplit(".", 1)[-1])
    for key, value in [
        *[("swa.kind", "em"), ("swa.start", "abc"), ("swa.dtype", "float8"), ("swa.bn_refresh", "maybe")],
        *[("swa.word_length", "1.5"), ("swa.window", "abc"), ("swaa", "true"), ("swa.strt", "1")],
        *[
            ("adversarial.eps", "abc"),
            ("adversarial.eps", "-1"),
            ("adversarial.method", "pdg"),
            ("adversarial.ratio", "2"),
        ],
        *[("adversarial.steps", "0"), ("robust_validation.every_n_epochs", "0"), ("datapath.every_n_epochs", "-1")],
        *[("deployment_parity.num_samples", "0"), ("deployment_parity", "{targets: [emulated-fp61]}")],
        *[("deployment_parity.perturbations", "[bgrr]"), ("deployment_parity.tolerance", "abc")],
        *[("deployment_parity.on_failure", "ignore"), ("deployment_parity.batch", "0")],
        *[("greedy_soup.top_k", "0"), ("greedy_soup.recipe", "greed"), ("greedy_soup.mode", "maximum")],
        *[("layer_criticality.every_n_epochs", "0"), ("lazy_training.every_n_epochs", "x")],
        *[("model", "my.Module"), ("model.hidden", "3"), ("data", "nothing.Here"), ("optimizer", "Adamm")],
        *[("trainer.max_epochs", "abc"), ("trainer.max_epohs", "3"), ("trainer.accelerator", "gpuu")],
        *[("trainer.callbacks", "Foo"), ("trainer.precision", "8"), ("trainer.limit_val_batches", "-1")],
        *[("trainer.val_check_interval", "7.5"), ("seed_everything", "abc"), ("trainer.logger", "TensorBord")],
    ]
]
CASES = [*FILES, *DAMAGED_FOR_TRAINING, *NUMBERS, *NAMES, *SAID, *TECHNIQUES, *VALUES]


def test_there_are_enough_of_them_over_all_commands():
    assert len(CASES) >= 150
    commands = {line[0] for line, _ in CASES}
    assert commands >= {
        "fit",
        "test",
        "soup",
        "compare",
        "fingerprint",
        "golden",
        "parity",
        "precision",
        "replay",
        "sweep",
    }


@pytest.mark.parametrize(
    ("line", "named"), CASES, ids=lambda part: " ".join(part[-2:]) if isinstance(part, list) else ""
)
def test_one_line_and_no_traceback(line, named, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit) as stop:
        main(line)
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert "Traceback" not in said
    errors = [number for number, text in enumerate(said.splitlines()) if text.startswith("error:")]
    assert len(errors) == 1, said
    assert re.search(named, said.splitlines()[errors[0]]), said
    after = said.splitlines()[errors[0] + 1 :]
    assert after == [] or (len(after) == 1 and after[0].startswith("Run with --help")), said
