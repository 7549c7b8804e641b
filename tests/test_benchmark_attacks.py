"""The benchmarks of attacks: what they count, tiny rows of both, and that finished rows are not run again."""

import argparse

import pytest
import torch
from torch import nn

from lightning_robust.functional.pixels import PixelSpace

from .test_benchmark_averages import archive as archive


def linear_task():
    """A linear classifier of four classes, and points that it has right."""
    torch.manual_seed(0)
    net, images = nn.Sequential(nn.Flatten(), nn.Linear(36, 4)), torch.rand(12, 1, 6, 6)
    return net, images, net((images - 0.5) / 0.5).argmax(1)


def test_pictures_forward_and_back_are_counted(benchmark):
    """Six of twelve pictures twice: 12 forward, and back each time that a gradient is asked for."""
    net, images, _ = linear_task()
    network = benchmark("auto_attack").Counted(net, PixelSpace((0.5,), (0.5,)))
    leaf = images[:6].clone().requires_grad_()
    logits = network(leaf)
    torch.testing.assert_close(logits, net((images[:6] - 0.5) / 0.5))
    assert network.passes == 6
    for column in range(2):
        torch.autograd.grad(logits[:, column].sum(), leaf, retain_graph=True)
    assert network.passes == 18
    network(images[:6])
    assert network.passes == 24


def test_both_sides_leave_the_same_of_a_linear_classifier(benchmark, monkeypatch):
    """What a corner of the ball brings across a border is known; pieces and passes are those of each side."""
    pytest.importorskip("torchattacks")
    attacks = benchmark("auto_attack")
    for name, value in {"STEPS": 10, "QUERIES": 20, "CLASSES": 4}.items():
        monkeypatch.setattr(attacks, name, value)
    net, images, labels = linear_task()
    found = {}
    for side, attack in attacks.SIDES.items():
        network = attacks.Counted(net, PixelSpace((0.5,), (0.5,)))
        found[side] = attack(network, images, labels, 0.05, 0)
        assert not any(part.training for part in network.modules())
        assert found[side]["passes"] > 1
    assert found["auto"]["acc"] == pytest.approx(found["AutoAttack"]["acc"])
    assert 0 < found["auto"]["acc"] < 1 == found["AutoAttack"]["clean"]
    assert found["AutoAttack"]["after APGD-CE"] >= found["AutoAttack"]["after Square"] == found["AutoAttack"]["acc"]


def test_the_table_has_the_difference_and_the_ratio(benchmark, tmp_path):
    attacks, rows = benchmark("auto_attack"), benchmark("rows")
    results, name = rows.Results(tmp_path), next(iter(attacks.ROWS))
    results.put(f"{name}, auto", 0, {"acc": 0.613, "passes": 900})
    results.put(f"{name}, AutoAttack", 0, {"acc": 0.611, "clean": 0.8, "passes": 6000})
    line = " ".join(attacks.table(results, [name], [0, 1]).splitlines()[-1].split())
    assert line == f"| {name} | 0 | 0.02 | 80.0 | 61.3 | 61.1 | 0.2 | 900 | 6000 | 0.15 |"


def test_a_tiny_row_of_a_small_resnet(benchmark, archive, tmp_path, monkeypatch):
    """From the archive to the numbers of one side; the weights are kept."""
    attacks, fastat = benchmark("auto_attack"), benchmark("fastat")
    tiny(fastat, monkeypatch)
    monkeypatch.setattr(attacks, "EVERY", 5)
    given = argparse.Namespace(archive=archive, out=tmp_path)
    network, images, labels = attacks.attacked_task("CIFAR-10, plain", 0, given)
    assert labels.tolist() == [0, 2, 5, 7]
    assert (images.shape, images.min() >= 0, images.max() <= 1) == ((4, 3, 24, 24), True, True)
    with torch.no_grad():
        assert network(images).shape == (4, 10)
    assert (tmp_path / "fastat" / "plain" / "0.pt").exists()


def tiny(fastat, monkeypatch):
    """A training of a moment."""
    settings = {"PER_CLASS": 18, "EPOCHS": 2, "STEPS": 1, "EVERY": 5, "AVERAGE": fastat.AVERAGE | {"bn_samples": 128}}
    for name, value in settings.items():
        monkeypatch.setattr(fastat, name, value)


def test_a_tiny_table_of_fast_trainings(benchmark, archive, tmp_path, monkeypatch):
    """Two rows of one training; the average is another network, and neither is trained again."""
    fastat = benchmark("fastat")
    tiny(fastat, monkeypatch)
    raw_name, averaged_name = fastat.names_of("FGSM-RS")
    raw, averaged = (fastat.measured(name, "FGSM-RS", 0, archive, tmp_path) for name in (raw_name, averaged_name))
    assert raw.keys() == averaged.keys() == {"clean", "auto", "cpu_seconds"}
    assert all(0 <= each["auto"] <= 1 and 0 <= each["clean"] <= 1 for each in (raw, averaged))
    monkeypatch.setattr(fastat, "fitted", None)
    states = fastat.weights_of("FGSM-RS", 0, archive, tmp_path)["states"]
    assert not torch.equal(states[raw_name]["head.weight"], states[averaged_name]["head.weight"])
