import gzip
import hashlib
import io
import struct
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_robust.demo.fashion_mnist import FashionMNISTData, ImageClassifier, idx_files
from lightning_robust.demo.fashion_mnist.data import shift_pictures
from lightning_robust.demo.fashion_mnist.idx_files import DEBIAN, SHA256, find_files, read_idx
from lightning_robust.demo.fashion_mnist.two_layers import TwoLayerClassifier, UnitFashionMNISTData
from lightning_robust.demo.lanes import LaneDetector
from lightning_robust.demo.traffic import TrafficDetector

needs_files = pytest.mark.skipif(
    not DEBIAN.is_dir(), reason="Fashion-MNIST is not installed (apt-get install dataset-fashion-mnist)"
)


def idx(values, *shape):
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + bytes(values)


@pytest.fixture
def folder(tmp_path):
    """5,010 training and 20 test pictures whose every pixel is the picture's number modulo 256."""
    for part, count in (("train", 5010), ("t10k", 20)):
        pixels = b"".join(bytes([number % 256]) * 784 for number in range(count))
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(pixels, count, 28, 28))
        labels = idx([number % 10 for number in range(count)], count)
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    return tmp_path


def test_idx_closed_form():
    assert read_idx(idx(range(12), 2, 2, 3), "x", 3).tolist() == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (idx(range(4), 4), "begin like an IDX file of bytes in 3 dimensions"),
        (b"\x1f\x8b\x08\x00", "got 1f 8b 08 00"),
        (idx(range(11), 2, 2, 3), "Expected 12 values in x, but got 11"),
        (b"", "begin like an IDX file"),
    ],
)
def test_rejects_what_is_no_idx_file(content, match):
    with pytest.raises(ValueError, match=match):
        read_idx(content, "x", 3)


def test_split_shape_and_normalisation(folder):
    data = FashionMNISTData(str(folder), batch_size=10, flip=False)
    data.prepare_data()
    data.setup("fit")
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    assert [len(loader.dataset) for loader in loaders] == [10, 5000, 20]
    images, labels = data.on_after_batch_transfer(next(iter(loaders[2])), 0)
    assert (images.shape, images.dtype, labels.dtype) == ((10, 1, 28, 28), torch.float32, torch.int64)
    expected = (torch.arange(10) / 255 - data.mean[0]) / data.std[0]
    torch.testing.assert_close(images[:, 0, 5, 7], expected)
    assert labels.tolist() == list(range(10))


def test_every_training_picture_comes_once(folder):
    data = FashionMNISTData(str(folder), batch_size=5, flip=False)
    data.setup("fit")
    seen = torch.cat([images[:, 0, 0, 0] for images, _ in data.train_dataloader()])
    assert sorted(seen.tolist()) == list(range(10))


def test_fewer_pictures_than_a_batch_are_one_batch(folder):
    data = FashionMNISTData(str(folder), batch_size=4, num_train=9, num_labelled=3, flip=False)
    data.setup("fit")
    sizes = {name: [len(images) for images, _ in loader] for name, loader in data.train_dataloader().items()}
    assert sizes == {"labelled": [3], "unlabelled": [4]}


def test_few_labels_and_the_other_pictures_with_their_numbers(folder):
    data = FashionMNISTData(str(folder), batch_size=3, num_train=9, num_labelled=3, flip=False)
    data.setup("fit")
    loaders = data.train_dataloader()
    assert {name: len(loader.dataset) for name, loader in loaders.items()} == {"labelled": 3, "unlabelled": 6}
    batch = data.on_after_batch_transfer({name: next(iter(loader)) for name, loader in loaders.items()}, 0)
    pixels = {
        name: ((images * data.std[0] + data.mean[0]) * 255).round()[:, 0, 0, 0] for name, (images, _) in batch.items()
    }
    assert sorted(pixels["labelled"].tolist()) == [0, 1, 2]
    assert torch.equal(pixels["labelled"].long() % 10, batch["labelled"][1])
    assert torch.equal(pixels["unlabelled"].long() - 3, batch["unlabelled"][1])


def test_shift_closed_form():
    picture = torch.arange(1, 7).reshape(1, 1, 2, 3)
    offsets = torch.tensor([[0, 0], [1, 0], [-1, 0], [0, 2], [0, -1], [1, 1]])
    assert shift_pictures(picture.expand(6, 2, 2, 3), offsets)[:, 1].tolist() == [
        [[1, 2, 3], [4, 5, 6]],
        [[0, 0, 0], [1, 2, 3]],
        [[4, 5, 6], [0, 0, 0]],
        [[0, 0, 1], [0, 0, 4]],
        [[2, 3, 0], [5, 6, 0]],
        [[0, 0, 0], [0, 1, 2]],
    ]


def test_augments_training_batches_alone_and_by_seed(folder):
    data = FashionMNISTData(str(folder), flip=True, shift=2)
    batch = (torch.randint(0, 256, (64, 1, 28, 28), dtype=torch.uint8), torch.arange(64))
    plain, _ = data.on_after_batch_transfer(batch, 0)
    data.trainer = SimpleNamespace(training=True)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(data.on_after_batch_transfer(batch, 0)[0])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    # 64 pictures, 2 ways round, 25 places: about 64 / 50 stay as they are
    assert sum(torch.equal(a, b) for a, b in zip(plain, drawn[0], strict=True)) < 8
    data.trainer = SimpleNamespace(training=False)
    assert torch.equal(data.on_after_batch_transfer(batch, 0)[0], plain)


@pytest.mark.parametrize(
    ("settings", "match"),
    [({"num_train": 0}, "num_train"), ({"shift": -1}, "shift"), ({"num_labelled": 0}, "num_labelled")],
)
def test_rejects_numbers_out_of_range(settings, match):
    with pytest.raises(ValueError, match=match):
        FashionMNISTData(**settings)


def test_a_missing_file_is_named_and_a_damaged_one_refused(folder):
    (folder / "t10k-images-idx3-ubyte").rename(folder / "aside")
    with pytest.raises(FileNotFoundError, match=r"Expected \['t10k-images-idx3-ubyte'\]"):
        find_files(str(folder))
    packed = gzip.compress(bytes(1000))
    for damaged in (packed[:-9], b"<html>", packed[:12] + b"\xff" * 20):
        (folder / "t10k-images-idx3-ubyte.gz").write_bytes(damaged)
        with pytest.raises(ValueError, match="Expected a whole gzip file"):
            find_files(str(folder))


def test_nowhere_says_all_three_ways(tmp_path, monkeypatch):
    def no_connection(*_, **__):
        raise OSError("no connection")

    monkeypatch.setattr(idx_files, "DEBIAN", tmp_path / "none")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(idx_files.urllib.request, "urlopen", no_connection)
    with pytest.raises(FileNotFoundError, match=r"no connection.*\(1\).*apt-get.*\(2\).*`root`.*\(3\)"):
        find_files()
    with pytest.raises(FileNotFoundError, match=r"Expected .* in .*nowhere"):
        find_files(str(tmp_path / "nowhere"))


def test_fetched_once_and_verified(tmp_path, monkeypatch):
    content = {name: name.encode() for name in SHA256}
    asked = []

    def serve(address, timeout):
        asked.append(address)
        return io.BytesIO(gzip.compress(content[address.rsplit("/", 1)[1].removesuffix(".gz")]))

    monkeypatch.setattr(idx_files, "DEBIAN", tmp_path / "none")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(idx_files.urllib.request, "urlopen", serve)
    with pytest.raises(ValueError, match="SHA-256"):
        find_files()
    monkeypatch.setattr(idx_files, "SHA256", {name: hashlib.sha256(c).hexdigest() for name, c in content.items()})
    assert find_files() == content
    assert find_files() == content
    assert len(asked) == 1 + 4


@needs_files
def test_the_real_files_have_the_stated_checksums_and_statistics():
    found = find_files()
    assert {name: hashlib.sha256(content).hexdigest() for name, content in found.items()} == SHA256
    data = FashionMNISTData()
    data.setup("fit")
    pixels = data.train_dataloader().dataset.images.float() / 255
    assert pixels.mean().item() == pytest.approx(data.mean[0], abs=5e-4)
    assert pixels.std().item() == pytest.approx(data.std[0], abs=5e-4)


def test_classifier_shapes_and_loss():
    model = ImageClassifier(width=4)
    images = torch.randn(3, 1, 28, 28)
    assert model.features(images).shape == (3, 16)
    torch.testing.assert_close(model(images), model.head(model.features(images)))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 40])
def test_schedule_of_any_length_peaks_once_and_ends_low(steps):
    model = ImageClassifier(width=2, learning_rate=0.1)
    model.trainer = SimpleNamespace(estimated_stepping_batches=steps)
    made = model.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert max(rates) <= 0.1
    if steps == 40:
        # a rise over the first quarter from a 25th of the peak, a fall to a 250,000th of it
        assert rates.index(max(rates)) == 9
        assert rates[0] == pytest.approx(0.1 / 25)
        assert rates[9] == pytest.approx(0.1)
        assert rates[-1] == pytest.approx(0.1 / 25 / 1e4)


@pytest.mark.parametrize("make", [lambda: ImageClassifier(width=2), LaneDetector, TrafficDetector])
def test_rejects_a_run_of_unknown_length(make):
    model = make()
    model.trainer = SimpleNamespace(estimated_stepping_batches=float("inf"))
    with pytest.raises(MisconfigurationException, match="max_steps"):
        model.configure_optimizers()


def test_pictures_of_length_one(folder):
    """All but the first, which is black, are the same direction here; a thousand at once are held out."""
    data = UnitFashionMNISTData(str(folder), batch_size=5)
    data.setup("fit")
    held = data.val_dataloader()
    assert (data.train_dataloader().batch_size, held.batch_size) == (5, 1000)
    images, _ = data.on_after_batch_transfer(next(iter(held)), 0)
    assert images.shape == (1000, 1, 28, 28)
    black = torch.arange(10, 1010) % 256 == 0  # the first 10 are to train on
    torch.testing.assert_close(images[~black], torch.full_like(images[~black], 1 / 28))
    assert not images[black].any()


def test_two_layers_closed_form():
    network = TwoLayerClassifier(4, power=1.0, classes=2)
    images = torch.rand(3, 1, 28, 28)
    weights, signs = network.hidden.weight.detach(), network.signs
    expected = [
        [
            sum(sign * max(0.0, float(w @ x.flatten())) for w, sign in zip(weights, row, strict=True)) / 4
            for row in signs
        ]
        for x in images
    ]
    torch.testing.assert_close(network(images).detach(), torch.tensor(expected))
    assert set(signs.flatten().tolist()) <= {-1.0, 1.0}
    assert [name for name, _ in network.named_parameters()] == ["hidden.weight"]


def test_scalings_move_outputs_as_fast():
    """Of a step down the sum of the outputs; the weights move sqrt(m) times further at p = 1."""
    images = torch.rand(5, 1, 28, 28) / 28
    moved_by, far = [], []
    for power in (0.5, 1.0):
        torch.manual_seed(0)
        network = TwoLayerClassifier(256, power)
        before, start = network(images).detach(), network.hidden.weight.detach().clone()
        optimizer = network.configure_optimizers()
        optimizer.param_groups[0]["lr"] *= 1e-4  # so that no rectifier changes sides
        network(images).sum().backward()
        optimizer.step()
        moved_by.append((network(images).detach() - before).sum())
        far.append((network.hidden.weight.detach() - start).norm())
    assert moved_by[0] < 0
    torch.testing.assert_close(moved_by[1], moved_by[0], rtol=1e-3, atol=0)
    torch.testing.assert_close(far[1] / far[0], torch.tensor(16.0), rtol=1e-4, atol=0)
