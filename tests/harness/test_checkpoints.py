import os
import pickle
import warnings

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import save_file

from lightning_robust import SWACallback, load_averaged
from lightning_robust.harness.checkpoints import expand, read_state

from ..boring import Boring, make_trainer

STATE = {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)}


class Evil:
    """Unpickling it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


class System:
    """Unpickling it would run a command."""

    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize("form", ["lightning", "plain", "safetensors", "legacy"])
def test_reads_every_form(tmp_path, form):
    path = tmp_path / ("x.safetensors" if form == "safetensors" else "x.ckpt")
    if form == "safetensors":
        save_file(STATE, path)
    else:
        content = {"state_dict": STATE, "epoch": 3} if form == "lightning" else STATE
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    found = read_state(path)
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())


def damaged(kind, path, whole):
    if kind == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "no end":
        path.write_bytes(whole[:-40])
    else:
        path.write_bytes({"empty": b"", "text": b"hello world"}[kind])


@pytest.mark.parametrize("kind", ["truncated", "no end", "empty", "text"])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_rejects_damaged_files(tmp_path, kind, suffix):
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": STATE}, whole)
    else:
        save_file(STATE, whole)
    path = tmp_path / f"damaged{suffix}"
    damaged(kind, path, whole.read_bytes())
    with pytest.raises(ValueError, match=f"Expected .*damaged{suffix}"):
        read_state(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_rejects_objects_without_running_them(tmp_path, how):
    path, target = tmp_path / "evil.ckpt", tmp_path / "written"
    content = {"state_dict": STATE, "x": Evil(target)}
    if how == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="never loaded"):
        read_state(path)
    assert not target.exists()


def test_rejects_what_holds_no_weights(tmp_path):
    torch.save([1, 2], tmp_path / "list.ckpt")
    torch.save({"epoch": 3}, tmp_path / "none.ckpt")
    with pytest.raises(ValueError, match="a list"):
        read_state(tmp_path / "list.ckpt")
    with pytest.raises(ValueError, match=r"holds epoch\."):
        read_state(tmp_path / "none.ckpt")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_state(tmp_path / "missing.ckpt")


def test_globs_in_natural_order_once(tmp_path):
    for name in ("10.ckpt", "9.ckpt", "1.pt"):
        (tmp_path / name).write_text(name)
    found = expand([str(tmp_path / "*.ckpt"), str(tmp_path / "9.ckpt"), str(tmp_path / "1.pt")])
    assert [path.name for path in found] == ["9.ckpt", "10.ckpt", "1.pt"]
    with pytest.raises(ValueError, match="nothing matches"):
        expand([str(tmp_path / "*.safetensors")])


class Tied(Boring):
    """The last layer's weight under a second name."""

    def __init__(self):
        super().__init__()
        self.again = torch.nn.Linear(256, 4, bias=False)
        self.again.weight = self.net[5].weight


def test_every_average_of_a_run_is_in_its_file(tmp_path):
    swa = SWACallback(start=0, every=1, also={"last": {"kind": "lawa", "window": 2}})
    keeper = ModelCheckpoint(tmp_path, "last")
    module = Tied()
    make_trainer(tmp_path, [swa, keeper], enable_checkpointing=True).fit(module)
    found = {which: load_averaged(tmp_path / "last.ckpt", which) for which in ("averaged", "raw", "last")}
    for state in found.values():
        assert state.keys() == module.state_dict().keys()
        assert torch.equal(state["net.5.weight"], state["again.weight"])
        Tied().load_state_dict(state)
    assert torch.equal(found["averaged"]["net.5.weight"], module.net[5].weight)
    assert not torch.equal(found["raw"]["net.5.weight"], found["last"]["net.5.weight"])
    with pytest.raises(ValueError, match=r"holds \['averaged', 'last', 'raw', 'swa'\]"):
        load_averaged(tmp_path / "last.ckpt", "ema")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("system", "it holds posix.system, most likely"),
        ("path", "it holds pathlib.PosixPath, most likely"),
        ("module", "it holds torch.nn.modules.linear.Linear, most likely"),
        ("pickle", "it holds a pickle of other objects, most likely"),
        ("empty", "it is empty."),
        ("cut", "it is damaged or cut off"),
        ("script", "it holds a TorchScript module, which is code."),
        ("tensor", "but got a Tensor."),
        ("list", "but got a list."),
        ("numbers", "but it holds 1, a."),
        ("folder", "but it is a folder."),
    ],
)
def test_foreign_files_are_one_sentence_of_ours(tmp_path, kind, told):
    """It names the file, and never advises to read it in another way."""
    path = tmp_path / "x.ckpt"
    contents = {
        "system": {"state_dict": STATE, "x": System()},
        "path": {"hyper_parameters": {"root": tmp_path}},
        "module": torch.nn.Linear(1, 1),
        "tensor": torch.zeros(2),
        "list": [1],
        "numbers": {1: 2, "a": 3},
    }
    if kind in contents:
        torch.save(contents[kind], path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"x": System()}))
    elif kind == "script":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path)
    elif kind == "folder":
        path.mkdir()
    else:
        torch.save({"state_dict": STATE}, path)
        path.write_bytes(path.read_bytes()[: 0 if kind == "empty" else -60])
    with pytest.raises(ValueError, match="Expected") as caught:
        read_state(path)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)
