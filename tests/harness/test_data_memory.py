"""Training loses no sample to what reads beside it."""

import itertools

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Sampler, SequentialSampler, Subset

from lightning_robust import SWACallback
from lightning_robust.harness.batches import combined, copied, training_loaders
from lightning_robust.harness.data_memory import unread
from lightning_robust.harness.quiet import isolated_rng

from ..boring import Boring, Pictures, make_trainer


class Stream(IterableDataset):
    """Goes on where the last reader stopped; without an end."""

    def __init__(self, pictures=64):
        self.pictures, self.position, self.given = Pictures(pictures), 0, []

    def __iter__(self):
        while True:
            index = self.position % len(self.pictures)
            self.position += 1
            self.given.append(index)
            yield self.pictures[index]


class Opened(Stream):
    """As a file that was opened once."""

    def __init__(self):
        super().__init__()
        self.lines = itertools.cycle(self.pictures)

    def __iter__(self):
        return self.lines


class Pointer(Sampler):
    """Begins where it stopped."""

    def __init__(self, count):
        self.count, self.start = count, 0

    def __iter__(self):
        for _ in range(self.count):
            self.start = (self.start + 1) % self.count
            yield self.start

    def __len__(self):
        return self.count


class Sub(DataLoader):
    """A user's own class of loader."""


def read(loader, batches=3):
    return [float(batch[0].sum()) for batch in itertools.islice(iter(loader), batches)]


@pytest.mark.parametrize(
    "loader",
    [
        lambda: DataLoader(Stream(), 8),
        lambda: Sub(Pictures(64), 8, sampler=Pointer(64)),
        lambda: Sub(Subset(ConcatDataset([Pictures(32), Pictures(32)]), range(40)), 8, sampler=Pointer(40)),
        lambda: DataLoader(Stream(), batch_size=None),
    ],
    ids=["stream", "sampler", "nested", "unbatched stream"],
)
def test_what_is_read_inside_comes_again(loader):
    loader = loader()
    first = read(loader)
    with unread(loader):
        inside = read(copied(loader))
    assert read(loader) == inside
    assert first != inside


def test_containers_in_a_stream_are_put_back():
    stream = Stream()
    with unread(DataLoader(stream, 8)):
        read(DataLoader(stream, 8))
        assert len(stream.given) == 24
    assert (stream.given, stream.position) == ([], 0)


def test_rejects_a_stream_that_only_goes_forward():
    with (
        pytest.raises(MisconfigurationException, match=r"`Opened.lines` is a cycle.*Open it in `__iter__`"),
        unread(DataLoader(Opened(), 8)),
    ):
        pass
    with unread(DataLoader(Opened(), 8, num_workers=1)):
        pass


def test_rejects_an_iterator_in_place_of_a_loader():
    with pytest.raises(ValueError, match=r"begin anew, but got a generator, of which every batch taken is lost"):
        copied(x for x in [1, 2])


class Batches(pl.Callback):
    """The batches that training gets."""

    def __init__(self):
        self.sums = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.sums.append(float(batch[0].sum()))


def fit(folder, loader, *callbacks, **settings):
    pl.seed_everything(1)
    batches = Batches()
    make_trainer(folder, [batches, *callbacks], **settings).fit(Boring(), loader, DataLoader(Pictures(16), 16))
    return batches.sums


@pytest.mark.parametrize("kind", ["stream", "persistent workers", "unbatched"])
def test_a_refresh_takes_nothing_from_training(tmp_path, kind):
    """SWA refreshes BatchNorm at each of many validations; training gets what it gets without."""

    def loader():
        if kind == "persistent workers":
            return Sub(Pictures(64), 8, num_workers=1, persistent_workers=True)
        if kind == "unbatched":
            pictures = Pictures(64)
            batches = [(pictures.images[i : i + 8], pictures.labels[i : i + 8]) for i in range(0, 64, 8)]
            return DataLoader(batches, batch_size=None)
        return DataLoader(Stream(), 8)

    settings = {"max_epochs": -1, "max_steps": 8, "val_check_interval": 4}
    if kind != "stream":
        settings = {"max_epochs": 1, "val_check_interval": 4}
    plain = fit(tmp_path, loader(), **settings)
    averaged = fit(tmp_path, loader(), SWACallback(start=0, every=1), **settings)
    assert averaged == plain
    assert len(plain) == 8


def test_a_refresh_of_an_endless_stream_ends(tmp_path):
    """It takes as many batches as lie between two validations, here 4 of 8 pictures."""
    counted = []

    class Counted(Stream):
        def __iter__(self):
            for picture in super().__iter__():
                counted.append(1)
                yield picture

    fit(
        tmp_path, DataLoader(Counted(), 8), SWACallback(start=0, every=4, compare_raw=False),
        max_epochs=-1, max_steps=4, val_check_interval=4,
    )  # fmt: skip
    in_training, in_refresh = 4 * 8, 4 * 8
    assert len(counted) <= in_training + 8 + in_refresh + 8


def test_copies_keep_what_a_loader_was_given():
    """Pinning, prefetching, the generator, and that nothing is collated into batches."""
    generator = torch.Generator()
    loader = Sub(
        Pictures(8), batch_size=None, num_workers=1, persistent_workers=True, prefetch_factor=3, generator=generator
    )
    twin = copied(loader)
    assert (twin.batch_size, twin.prefetch_factor, twin.generator, type(twin)) == (None, 3, generator, Sub)
    assert next(iter(twin))[0].shape == (3, 8, 8)
    assert loader._iterator is None


def test_training_loaders_are_those_of_lightning(tmp_path):
    class Ask(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            self.batches = sum(1 for _ in combined(training_loaders(trainer, pl_module)))

    ask = Ask()
    make_trainer(tmp_path, [ask], max_epochs=1).fit(Boring())
    assert ask.batches == 4


def test_loaders_that_are_combined_are_put_back_as_any_other():
    """Their generators, and those of copies, which keep the mode."""
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(Pictures(8), 4, shuffle=True, generator=generator)
    loaders = CombinedLoader({"a": loader, "b": DataLoader(Pictures(4), 4)}, "max_size")
    before = generator.get_state()
    with isolated_rng(loaders):
        batches = [batch for batch, _, _ in combined(loaders)]
    assert torch.equal(generator.get_state(), before)
    assert [batch["b"] is None for batch in batches] == [False, True]


class Knowing(Pictures):
    """A data set and its sampler know each other."""

    def __init__(self):
        super().__init__(8)
        self.sampler = SequentialSampler(self)


def test_data_that_know_each_other_are_looked_at_once():
    with unread(DataLoader(Knowing(), 4)):
        pass
