import numpy as np
import pytest
from PIL import Image

from lightning_robust.cli import main
from lightning_robust.commands.work.fingerprint import read_pictures


def picture(seed=0):
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((64, 48), Image.Resampling.BICUBIC))


def test_names_swapped_channels_between_files_of_any_kind(tmp_path, capsys):
    rgb = picture()
    Image.fromarray(rgb).save(tmp_path / "train.png")
    np.savez(tmp_path / "car.npz", **{"input/image": rgb[..., ::-1].transpose(2, 0, 1)[None], "output/y": np.ones(3)})
    main(["fingerprint", str(tmp_path / "train.png"), str(tmp_path / "car.npz")])
    assert "channel_order" in capsys.readouterr().out


def test_reads_pictures_as_they_are(tmp_path):
    rgb = picture()
    Image.fromarray(rgb).save(tmp_path / "one.png")
    np.save(tmp_path / "one.npy", rgb[None])
    assert np.array_equal(read_pictures(str(tmp_path / "one.png"))[0].transpose(1, 2, 0), rgb)
    assert np.array_equal(read_pictures(str(tmp_path / "one.npy"))[0], rgb)


def test_rejects(tmp_path, capsys):
    np.savez(tmp_path / "two.npz", a=np.ones(3), b=np.ones(3))
    (tmp_path / "text.npy").write_text("text")
    np.save(tmp_path / "one.npy", picture().transpose(2, 0, 1)[None])
    for first, message in (
        ("none.npy", "no such file"),
        ("two.npz", "Choose with --key"),
        ("text.npy", "Expected .npy, .npz or a picture"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["fingerprint", str(tmp_path / first), str(tmp_path / "one.npy")])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"Expected 'c' in"):
        read_pictures(str(tmp_path / "two.npz"), "c")
