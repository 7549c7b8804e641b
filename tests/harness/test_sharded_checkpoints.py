"""The index of a sharded checkpoint is a pickle: nothing that it names is run."""

import pickle

import pytest

from lightning_robust.harness.sharded_checkpoints import index_of


def written(module, name, argument):
    """A pickle of that call; protocol 4 takes dotted names."""
    text = [value.encode() for value in (module, name, argument)]
    short = [b"\x8c" + bytes([len(value)]) + value for value in text]
    return b"\x80\x04" + short[0] + short[1] + b"\x93" + short[2] + b"\x85R."


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "mkdir"),
        ("torch.distributed.checkpoint.filesystem", "os.mkdir"),
        ("torch.distributed.checkpoint.metadata", "os.mkdir"),
        ("torch.distributed.checkpoint.filesystem", "FileSystemWriter"),
        ("torch", "load"),
    ],
)
def test_an_index_runs_nothing(tmp_path, module, name):
    made = tmp_path / "made"
    content = written(module, name, str(made))
    (tmp_path / ".metadata").write_bytes(content)
    with pytest.raises(ValueError, match=rf"it names {module}.{name}, which is never loaded"):
        index_of(tmp_path)
    assert not made.exists()


def test_such_an_index_would_run_elsewhere(tmp_path):
    """The pickles of this test are what they are meant to be."""
    pickle.loads(written("torch.distributed.checkpoint.filesystem", "os.mkdir", str(tmp_path / "made")))
    assert (tmp_path / "made").exists()
