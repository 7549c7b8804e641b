"""The benchmarks of the small transformer: its commands parse, its data does what it says, its files are checked."""

import numpy as np
import pytest
import torch

from lightning_robust.callbacks import WiSEFTCallback
from lightning_robust.cli import RobustCLI
from lightning_robust.deployment.pixels.corruptions import corruptions


@pytest.fixture
def sets(tmp_path, benchmark, monkeypatch):
    """Decoded pictures of which all pixels say the class, in the order of the classes."""
    vit = benchmark("vit")
    monkeypatch.setattr(vit, "HELD_OUT", 20)
    for part, count in (("train", 100), ("test", 40)):
        labels = np.repeat(np.arange(10), count // 10)
        np.save(tmp_path / f"{part}_labels.npy", labels)
        np.save(
            tmp_path / f"{part}.npy", np.broadcast_to(20 * labels[:, None, None, None], (count, 32, 32, 3)).astype("u1")
        )
    return vit, tmp_path


def test_rows_are_commands(benchmark, sets):
    vit, folder = sets
    soups, wise = benchmark("vit_soups"), benchmark("vit_wise")
    data = [
        "-c",
        vit.CONFIG,
        "--seed_everything=0",
        "--data.archive=none.tar.gz",
        f"--data.folder={folder}",
        "--data.pictures=80",
    ]
    built = {name: RobustCLI(args=[*data, *more], run=False) for name, more in soups.INGREDIENTS.items()}
    assert len(built) == 8
    assert sorted({cli.model.learning_rate for cli in built.values()}) == [3e-4, 1e-3]
    assert {(cli.datamodule.gain, cli.datamodule.cutout, cli.datamodule.shift) for cli in built.values()} == {
        (0.0, 0, 2),
        (0.4, 0, 2),
        (0.0, 12, 2),
        (0.0, 0, 4),
    }
    cli = RobustCLI(args=[*data, *wise.SETTINGS, f"--data.conditions={list(wise.CONDITIONS)}"], run=False)
    assert any(isinstance(callback, WiSEFTCallback) for callback in cli.trainer.callbacks)
    assert len(cli.datamodule.val_dataloader()) == len(wise.CONDITIONS)


def test_loaders_have_their_conditions_and_pictures_follow_no_class(sets):
    vit, folder = sets
    data = vit.ViTData("none.tar.gz", str(folder), pictures=80, conditions=["clean", "fog@3"])
    clean, foggy = (next(iter(loader)) for loader in data.val_dataloader())
    assert len(clean[1]) == 20
    assert clean[1].diff().ne(0).sum() > 10
    assert torch.equal(clean[0][:, 0, 0, 0], (20 * clean[1]).to(torch.uint8))
    assert torch.equal(data.on_after_batch_transfer(clean, 0)[0], data.normalise(clean[0]))
    (fog,) = corruptions(["fog@3"])
    expected = data.normalise(255 * fog(foggy[0].float() / 255))
    torch.testing.assert_close(data.on_after_batch_transfer(foggy, 1)[0], expected)
    with pytest.raises(ValueError, match="Expected `pictures` from 1 to 80, but got 81"):
        vit.ViTData("none.tar.gz", str(folder), pictures=81)


def test_cutout_and_gain_change_what_they_say(sets):
    vit, folder = sets
    pixels = torch.full((64, 3, 32, 32), 0.75)
    data = vit.ViTData("none.tar.gz", str(folder), pictures=80, cutout=8)
    torch.manual_seed(0)
    grey = data.augmented(pixels) == 0.5
    assert torch.equal(grey.any(1), grey.all(1))
    areas = grey[:, 0].sum((1, 2))
    assert areas.max() == 64  # a whole square; others are cut by the border, of which at least a quarter is inside
    assert areas.min() >= 16
    # 0.25 f + 0.5 o with f and o from 0.6 to 1.4
    brighter = vit.ViTData("none.tar.gz", str(folder), pictures=80, gain=0.4).augmented(pixels)
    assert torch.equal(brighter.amin((1, 2, 3)), brighter.amax((1, 2, 3)))
    assert brighter.min() >= 0.6 * 0.75 - 1e-6
    assert brighter.std() > 0.1


def test_a_checkpoint_of_another_shape_is_one_sentence(benchmark, tmp_path):
    vit = benchmark("vit")
    small = {"width": 16, "depth": 1, "heads": 2}
    torch.save(vit.CifarViT(**small).state_dict(), tmp_path / "small.ckpt")
    for other, complaint in (
        ({"width": 32}, r"^Expected trunk.places of shape \(1, 64, 32\) in .*small.ckpt, but got \(1, 64, 16\) \(and"),
        ({"depth": 2}, r"^Expected the same tensors in .*small.ckpt, but it lacks trunk.blocks.1"),
    ):
        for argument in ("weights", "pretrained"):
            with pytest.raises(ValueError, match=complaint) as caught:
                vit.CifarViT(**{**small, **other}, **{argument: str(tmp_path / "small.ckpt")})
            assert "\n" not in str(caught.value)


def test_the_probe_begins_from_the_pretrained_trunk_and_trains_the_head_alone(benchmark, tmp_path):
    vit = benchmark("vit")
    small = {"width": 16, "depth": 1, "heads": 2}
    pretext = vit.RotationViT(**small)
    torch.save({"state_dict": pretext.state_dict()}, tmp_path / "pretext.ckpt")
    probe = vit.CifarViT(**small, pretrained=str(tmp_path / "pretext.ckpt"), frozen=True)
    for name, value in pretext.trunk.state_dict().items():
        assert torch.equal(value, probe.trunk.state_dict()[name]), name
    assert [name for name, value in probe.named_parameters() if value.requires_grad] == ["head.weight", "head.bias"]
    assert (pretext.head.out_features, probe.head.out_features) == (4, 10)
    assert not any("Norm" in type(part).__name__ and "Batch" in type(part).__name__ for part in probe.modules())
