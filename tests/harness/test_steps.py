"""A user's step gets from us what it gets from Lightning's own loops, whatever its signature."""

import functools

import pytest
from torch.utils.data import DataLoader

from lightning_robust.harness.steps import call_step

from ..boring import Boring, Pictures, make_trainer


def decorated(step):
    @functools.wraps(step)
    def wrapper(*args, **kwargs):
        return step(*args, **kwargs)

    return wrapper


class Host(Boring):
    """Notes what each step is called with, but for its batch; the loaders are two where the signature knows that."""

    calls = ()
    loaders = 1

    def note(self, batch, *rest, **named):
        self.calls = (*self.calls, (rest, named))
        return self._loss(batch)

    def val_dataloader(self):
        loaders = [DataLoader(Pictures(32), batch_size=16) for _ in range(self.loaders)]
        return loaders if self.loaders > 1 else loaders[0]

    test_dataloader = predict_dataloader = val_dataloader


class Index(Host):
    def training_step(self, batch, i):
        return self.note(batch, i)


class Underscore(Host):
    def training_step(self, batch, _):
        return self.note(batch, _)


class Anything(Host):
    def training_step(self, *args):
        return self.note(*args)


class Alone(Host):
    def training_step(self, batch):
        return self.note(batch)


class Defaults(Host):
    def training_step(self, batch, batch_idx=7, unused=3):
        return self.note(batch, batch_idx, unused)


class KeywordsToo(Host):
    def training_step(self, batch, **named):
        return self.note(batch, **named)


class Decorated(Host):
    @decorated
    def training_step(self, batch):
        return self.note(batch)


class DecoratedIndex(Host):
    @decorated
    def training_step(self, batch, number):
        return self.note(batch, number)


class Loaders(Host):
    loaders = 2

    def training_step(self, batch, i, dataloader_idx=0):
        return self.note(batch, i, dataloader_idx)


class AnythingOfLoaders(Host):
    loaders = 2

    def training_step(self, batch, *args, dataloader_idx=None):
        return self.note(batch, *args)


HOSTS = [
    Index,
    Underscore,
    Anything,
    Alone,
    Defaults,
    KeywordsToo,
    Decorated,
    DecoratedIndex,
    Loaders,
    AnythingOfLoaders,
]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_matches_lightning(tmp_path, host, stage):
    """The reference is the Trainer itself: two batches of each loader through its own loop."""
    name = {"fit": "training_step", "validate": "validation_step"}.get(stage, f"{stage}_step")

    class Module(host):
        pass

    if stage != "fit":
        setattr(Module, name, host.training_step)
    module = Module()
    settings = {"limit_train_batches": 2, "limit_val_batches": 0} if stage == "fit" else {}
    trainer = make_trainer(tmp_path, max_epochs=1, **settings)
    getattr(trainer, stage)(module)
    expected, module.calls = module.calls, ()

    loaders = 1 if stage == "fit" else host.loaders
    batch = next(iter(module.train_dataloader()))
    for loader in range(loaders):
        for index in range(2):
            call_step(getattr(module, name), batch, index, loader if loaders > 1 else None)
    assert module.calls == expected
    assert len(expected) == 2 * loaders


def test_fails_as_lightning_does(tmp_path):
    """A step of keywords alone is called by position, which it does not take."""

    class Keywords(Boring):
        def training_step(self, **named):
            return self._loss(named["batch"])

    module = Keywords()
    with pytest.raises(TypeError, match="takes 1 positional argument but 2 were given"):
        make_trainer(tmp_path, max_epochs=1).fit(module)
    with pytest.raises(TypeError, match="takes 1 positional argument but 2 were given"):
        call_step(module.training_step, None)
