from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_robust.cli import RobustCLI, main
from lightning_robust.commands.work.fingerprint import read_pictures


def status(*arguments):
    try:
        main(["fingerprint", *map(str, arguments)])
    except SystemExit as stop:
        return stop.code
    return 0


def picture(seed=0):
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((64, 48), Image.Resampling.BICUBIC))


def test_names_swapped_channels_between_files_of_any_kind(tmp_path, capsys):
    rgb = picture()
    Image.fromarray(rgb).save(tmp_path / "train.png")
    np.savez(tmp_path / "car.npz", **{"input/image": rgb[..., ::-1].transpose(2, 0, 1)[None], "output/y": np.ones(3)})
    assert status(tmp_path / "train.png", tmp_path / "car.npz") == 1
    assert "channel_order" in capsys.readouterr().out


def test_verdict(tmp_path, monkeypatch, capsys):
    """Nothing differs, something does, what the budget allows, what it does not, and what cannot be told."""
    monkeypatch.chdir(tmp_path)
    rgb = picture().transpose(2, 0, 1)[None]
    for name, images in {
        "a": rgb,
        "bgr": rgb[:, ::-1],
        "flat": np.full_like(rgb, 9),
        "other": picture(5)[None],
    }.items():
        np.save(f"{name}.npy", images.transpose(0, 3, 1, 2) if name == "other" else images)

    def verdict(other, *options):
        found = status("a.npy", f"{other}.npy", *options)
        return found, capsys.readouterr().out.splitlines()[-1]

    default = "the default, that nothing differs"
    assert verdict("a") == (0, f"verdict: within {default}: no difference (0.00 levels)")
    code, told = verdict("bgr")
    assert (code, told.split(" (")[0]) == (1, f"verdict: beyond {default}: channel_order")
    for other in ("flat", "other"):
        code, told = verdict(other)
        assert (code, told[:30]) == (2, "verdict: could not measure dis")
        assert "Cannot tell" in told
    for text, expected in {
        "fingerprint/distance: 200": 0,
        "fingerprint/distance: 1": 1,
        "fingerprint/causes: 1": 0,
        "fingerprint: {distance: 200, channel_order: 0}": 1,
        "fingerprint: {distance: 200, channel_order: 1}": 0,
        "fingerprint: {noise: 0}": 1,
        "emulated-fp16/rel_l2: 1": 1,
        "fingerprint/chanel_order: 1": 2,
    }.items():
        (tmp_path / "parity.yaml").write_text(text)
        assert status("a.npy", "bgr.npy") == expected, text
    assert "Did you mean 'channel_order'?" in capsys.readouterr().err
    (tmp_path / "parity.yaml").unlink()
    assert verdict("bgr", "--write-budget")[0] == 0
    assert verdict("bgr")[0] == 0
    assert verdict("bgr", "--budget=none")[0] == 1


def test_reads_pictures_as_they_are(tmp_path):
    rgb = picture()
    Image.fromarray(rgb).save(tmp_path / "one.png")
    np.save(tmp_path / "one.npy", rgb[None])
    assert np.array_equal(read_pictures(str(tmp_path / "one.png"))[0].transpose(1, 2, 0), rgb)
    assert np.array_equal(read_pictures(str(tmp_path / "one.npy"))[0], rgb)


def test_reads_folders_and_channels_last(tmp_path, capsys):
    """A folder in natural order (9 before 10) beside one array; two arrays with channels last, one of them BGR."""
    frames = np.stack([picture(seed) for seed in (3, 1, 2)])
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "frames" / f"frame_{number + 9}.png")
    (tmp_path / "frames" / "notes.txt").write_text("at noon")
    np.save(tmp_path / "rgb.npy", frames)
    np.save(tmp_path / "bgr.npy", frames[..., ::-1])
    np.save(tmp_path / "first.npy", frames.transpose(0, 3, 1, 2))
    assert status(tmp_path / "frames", tmp_path / "first.npy") == 0
    capsys.readouterr()
    assert status(tmp_path / "rgb.npy", tmp_path / "bgr.npy") == 1
    told = capsys.readouterr().out
    assert "channel_order" in told
    assert "Channels come last on both sides." in told
    assert "memory_layout" not in told
    assert read_pictures(str(tmp_path / "rgb.npy")).shape == (3, 48, 64, 3)


def test_rejects(tmp_path, capsys):
    np.savez(tmp_path / "two.npz", a=np.ones(3), b=np.ones(3))
    (tmp_path / "text.npy").write_text("text")
    for name in ("empty", "sizes"):
        (tmp_path / name).mkdir()
    for number in range(2):
        Image.fromarray(picture()[number:]).save(tmp_path / "sizes" / f"{number}.png")
    np.save(tmp_path / "one.npy", picture().transpose(2, 0, 1)[None])
    for first, message in (
        ("none.npy", "no such file"),
        ("two.npz", "Choose with --key"),
        ("text.npy", "Expected .npy, .npz, a picture or a folder of pictures"),
        ("empty", "but found none"),
        ("sizes", "Expected pictures of one size"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["fingerprint", str(tmp_path / first), str(tmp_path / "one.npy")])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"Expected 'c' in"):
        read_pictures(str(tmp_path / "two.npz"), "c")


def test_emits_the_switch_and_the_transform(tmp_path, monkeypatch, capsys):
    """The file is one for fit beside the lanes' own, the code makes the deployed pictures, and none is overwritten."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    rgb = np.stack([picture(seed) for seed in generator.integers(0, 99, 3)]).transpose(0, 3, 1, 2)
    dark = np.rint(255 * (rgb / 255.0) ** 1.4).astype(np.uint8)
    for name, images in {"a": rgb, "dark": dark, "flipped": dark[..., ::-1], "mirror": rgb[..., ::-1]}.items():
        np.save(f"{name}.npy", images)

    assert status("a.npy", "flipped.npy", "--emit", "yaml") == 1
    assert "wrote preprocessing.yaml: fit -c ... -c preprocessing.yaml" in capsys.readouterr().out
    text = (tmp_path / "preprocessing.yaml").read_text()
    assert "# lightning-robust fingerprint a.npy flipped.npy --emit yaml" in text
    assert "frame[:, ::-1]" in text
    lanes = Path(__file__).parents[2] / "configs" / "lanes.yaml"
    model = RobustCLI(args=["-c", str(lanes), "-c", "preprocessing.yaml", "--trainer.logger=false"], run=False).model
    assert model.preprocessing_weight > 0
    assert model.preprocessing_entries == ["gamma_09"]
    low, high = model.preprocessing_ranges["gamma"]
    assert low == 1.0
    assert high == pytest.approx(1.6, abs=0.03)

    boring = "--model=lightning.pytorch.demos.boring_classes.BoringModel"
    with pytest.raises(SystemExit):
        RobustCLI(args=[boring, "-c", "preprocessing.yaml"], run=False)
    told = "is not accepted. It is an argument of PreprocessingMixin: put that before your module in the bases."
    assert told in capsys.readouterr().err

    assert status("a.npy", "flipped.npy", "--emit=code") == 1
    scope = {}
    exec((tmp_path / "deployed.py").read_text(), scope)
    made = scope["deployed"](torch.from_numpy(rgb)).numpy()
    assert made.dtype == np.uint8
    assert np.abs(made.astype(int) - dark[..., ::-1]).max() < 3

    capsys.readouterr()
    for arguments, expected, told in (
        (("a.npy", "flipped.npy", "--emit=yaml"), 2, "preprocessing.yaml exists"),
        (("a.npy", "dark.npy", "--emit=a.txt"), 2, "ends in .yaml or .py"),
        (("a.npy", "dark.npy", "--emit=none/a.yaml"), 2, "there is no none"),
        (("a.npy", "a.npy", "--emit=b.yaml"), 0, "b.yaml was not written: nothing differs"),
        (("a.npy", "mirror.npy", "--emit=b.yaml"), 1, "b.yaml was not written: training cannot or should not"),
    ):
        assert status(*arguments) == expected, arguments
        said = capsys.readouterr()
        assert told in said.out + said.err
    assert not (tmp_path / "b.yaml").exists()
