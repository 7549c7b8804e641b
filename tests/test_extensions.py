"""Entry points: the package of docs/extend/packages.md adds one of each kind, and a broken one costs nothing else."""

import subprocess
import sys
import tomllib

import pytest
import torch
from torch import nn

from lightning_robust import DeploymentParityCallback, measure_parity
from lightning_robust.callbacks.conditions import name_of, named_entries
from lightning_robust.cli import TECHNIQUES, RobustCLI, main
from lightning_robust.cli.techniques import slots
from lightning_robust.deployment.budget_keys import parity_key
from lightning_robust.deployment.engines import Subject, available, runtime
from lightning_robust.deployment.engines.names import TARGET_NAMES, check_target_names, target_names
from lightning_robust.deployment.graph.export import export
from lightning_robust.deployment.graph.frozen import frozen_copy
from lightning_robust.deployment.parity.scale import decoder_of
from lightning_robust.deployment.pixels.catalogue import CATALOGUE, perturbations
from lightning_robust.deployment.replay.limits import replay_key
from lightning_robust.extensions import extension_names, forget_extensions

from .docs.pages import ROOT, blocks

PAGE = "docs/extend/packages.md"
BROKEN = 'raise RuntimeError("libvendor.so.9 is not there")\n'


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a package of one module as pip does: the module, and its metadata beside it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    modules = []

    def add(name, source, groups):
        module = name.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"[{g}]\n" + "".join(f"{key} = {value}\n" for key, value in e.items()) for g, e in groups.items()]
        (info / "entry_points.txt").write_text("\n".join(lines))
        modules.append(module)
        forget_extensions()

    yield add
    for module in modules:
        sys.modules.pop(module, None)
    monkeypatch.undo()
    forget_extensions()


@pytest.fixture
def mine(install):
    (text,) = blocks(PAGE, "toml")
    project = tomllib.loads(text)["project"]
    install(project["name"], "\n\n".join(blocks(PAGE, "python")), project["entry-points"])


@pytest.fixture
def broken(install):
    groups = {
        "lightning_robust.runtimes": {"vendor-fp16": "vendor:Engine"},
        "lightning_robust.perturbations": {"smear": "vendor:smear"},
        "lightning_robust.decoders": {"angles": "vendor:angles"},
        "lightning_robust.techniques": {"vendor_tuning": "vendor:Tuning"},
    }
    install("vendor", BROKEN, groups)


def test_names_are_known_without_an_import(mine):
    check_target_names(["stored-bf16"])
    assert target_names() == (*TARGET_NAMES, "stored-bf16")
    assert parity_key("stored-bf16") == "stored-bf16/rel_l2"
    assert replay_key("half_dark/p99") == "half_dark/p99_px"
    assert extension_names("techniques") == ("cooldown",)
    assert "my_robust" not in sys.modules


def test_runtime(mine):
    """Its distance is that of a layer whose weights were rounded by hand."""
    layer, inputs = nn.Linear(8, 2), torch.rand(16, 8)
    report = measure_parity(Subject(frozen_copy(layer), (inputs,)), available(["stored-bf16"]))
    found = report.targets["stored-bf16"].metrics
    exact = nn.functional.linear(inputs.double(), layer.weight.double(), layer.bias.double())
    rounded = nn.functional.linear(inputs, layer.weight.bfloat16().float(), layer.bias.bfloat16().float()).double()
    error = rounded - exact
    assert found["rmse"] == pytest.approx(error.square().mean().sqrt().item(), rel=1e-4)
    assert "stored-bf16" not in [made.name for made in available("auto")]
    assert DeploymentParityCallback(["stored-bf16"], tolerance={"stored-bf16": 1.0}).targets == ["stored-bf16"]


def test_perturbation(mine):
    (entry,) = perturbations(["half_dark"])
    assert (entry.deployed(torch.tensor([1.0, 0.5])) * 255).tolist() == pytest.approx([127, 63])
    assert [each.name for each in perturbations("all")] == [*CATALOGUE, "half_dark"]
    assert "half_dark" not in [each.name for each in perturbations("typical")]
    assert "half_dark" in [each.name for each in perturbations(["gain_offset"])]
    assert [name_of(each) for each in named_entries(["half_dark"])] == ["half_dark"]


def test_decoder(mine):
    class WithMethod(nn.Module):
        def degrees(self, outputs):
            return {"mine": outputs}

    assert decoder_of(nn.Linear(1, 1), "degrees")(torch.tensor(2.0))["steering_deg"] == pytest.approx(114.6)
    assert set(decoder_of(WithMethod(), "degrees")(torch.tensor(2.0))) == {"mine"}, "a method goes before"
    assert decoder_of(nn.Linear(1, 1), "decode") is None


def test_technique(mine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = "--model=lightning.pytorch.demos.boring_classes.BoringModel"
    for argument, factor in (("--cooldown=true", 0.5), ("--cooldown.factor=0.25", 0.25)):
        cli = RobustCLI(args=["--seed_everything=0", model, argument], run=False)
        assert [each.factor for each in cli.trainer.callbacks if type(each).__name__ == "Cooldown"] == [factor]
        assert cli.config.cooldown.init_args.factor == factor
    assert [slot.key for slot in slots()] == [*(slot.key for slot in TECHNIQUES), "cooldown"]


def test_a_broken_package_is_named_and_the_rest_works(broken, mine):
    with pytest.warns(UserWarning, match="'vendor_tuning' of vendor .* RuntimeError: libvendor.so.9 is not there"):
        assert [slot.key for slot in slots()][-1] == "cooldown"
    with pytest.warns(UserWarning, match="'smear' of vendor .*It is left out"):
        assert [each.name for each in perturbations("all")][-1] == "half_dark"
    assert runtime("stored-bf16").precision == "bf16"
    with pytest.raises(ImportError, match=r"Expected 'vendor-fp16' among .*libvendor\.so\.9 is"):
        runtime("vendor-fp16")
    with pytest.raises(ImportError, match="Expected 'angles' among"):
        decoder_of(nn.Linear(1, 1), "angles")


def test_a_command_says_it_in_one_line(broken, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = export(nn.Linear(2, 1).eval(), (torch.rand(2, 2),)).model
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(SystemExit) as stop:
        main(["parity", "--onnx=model.onnx", "--targets=[vendor-fp16]", "--output=out"])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2
    assert error.startswith("error: Expected 'vendor-fp16' among the entry points")


def test_what_is_of_another_kind_or_takes_a_name_is_left_out(install):
    groups = {
        "lightning_robust.runtimes": {"emulated-fp16": "odd:number", "odd-fp32": "odd:number"},
        "lightning_robust.perturbations": {"bgr": "odd:number"},
        "lightning_robust.techniques": {"swa": "odd:Other", "trainer": "odd:Other"},
    }
    install("odd", "from lightning.pytorch import Callback\n\nnumber = 3\n\n\nclass Other(Callback): ...\n", groups)
    assert type(runtime("emulated-fp16")).__name__ == "EmulatedRuntime"
    with pytest.raises(ImportError, match="is 3 where a subclass of Runtime is expected"):
        runtime("odd-fp32")
    with pytest.warns(UserWarning, match="'bgr' of odd .* is 3 where a Perturbation is expected"):
        assert [each.name for each in perturbations("all")] == [*CATALOGUE]
    assert slots() == TECHNIQUES


def test_help_names_the_key(mine, tmp_path):
    """In a process of its own, as a user meets it."""
    code = "from lightning_robust.cli import main; main(['fit', '--help'])"
    path = f"{tmp_path}:{ROOT}"
    settings = {"env": {"PYTHONPATH": path, "HOME": str(tmp_path)}, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", code], **settings, check=False)
    assert "--cooldown" in done.stdout, done.stderr
