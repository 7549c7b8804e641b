import pytest
import yaml

from lightning_robust.sweeps.file import Sweep, as_argument, read_settings


def write(folder, **changes):
    (folder / "base.yaml").write_text("seed_everything: 0\n")
    content = {"configs": ["base.yaml"], "vary": {"lr": [1]}, "monitor": "val/acc", "mode": "max"} | changes
    (folder / "sweep.yaml").write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
    return folder / "sweep.yaml"


def test_arguments_of_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "start.ckpt").touch()
    assert as_argument("model.weights", "start.ckpt") == f"--model.weights={tmp_path / 'start.ckpt'}"
    assert as_argument("swa", {"start": 0.5}) == '--swa={"start": 0.5}'
    assert as_argument("a", None) == "--a=null"


def test_read(tmp_path):
    read = read_settings(write(tmp_path, resources={"cpus": 2, "gpus": 0.5}, retries=0), Sweep)
    assert read.configs == [str(tmp_path / "base.yaml")]
    assert (read.resources.cpus, read.resources.gpus, read.retries, read.num_samples) == (2, 0.5, 0, 1)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"vari": {}}, "Did you mean 'vary'?"),
        ({"monitor": None}, "monitor"),
        ({"mode": "best"}, "best"),
        ({"num_samples": "many"}, "many"),
        ({"num_samples": 3}, "every sample would be the same"),
        ({"num_samples": 0}, "`num_samples` of at least 1"),
        ({"retries": -1}, "`retries` of at least 0"),
        ({"vary": {}}, "at least one"),
        ({"vary": {"lr": 0.1}}, "`vary.lr`, but got 0.1"),
        ({"vary": {"lr": []}}, "`vary.lr`, but got []"),
        ({"vary": {"lr": {"logunifrom": [1, 2]}}}, "Did you mean 'loguniform'?"),
        ({"vary": {"lr": {"uniform": [2, 1]}}}, "low < high"),
        ({"vary": {"lr": {"uniform": ["1e-3", 1]}}}, "Write 1.0e-3"),
        ({"vary": {"lr": {"loguniform": [0, 1]}}}, "positive bounds"),
        ({"vary": {"lr": {"randint": [0.5, 2]}}}, "two integers"),
        ({"resources": {"gpus": 2}}, "`resources.gpus` from 0 to 1"),
        ({"resources": {"cpus": 0}}, "`resources.cpus` to be positive"),
        ({"resources": {"cores": 1}}, "cores"),
    ],
)
def test_rejects(tmp_path, changes, complaint):
    with pytest.raises(ValueError) as error:
        read_settings(write(tmp_path, **changes), Sweep)
    assert complaint in str(error.value)


def test_rejects_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the file of a sweep at"):
        read_settings(tmp_path / "none.yaml", Sweep)
    with pytest.raises(FileNotFoundError, match=r"a configuration at .*other.yaml"):
        read_settings(write(tmp_path, configs=["other.yaml"]), Sweep)


def test_rejects_a_file_without_keys(tmp_path):
    (tmp_path / "sweep.yaml").write_text("- base.yaml\n")
    with pytest.raises(ValueError, match="Begin with `configs:`"):
        read_settings(tmp_path / "sweep.yaml", Sweep)
