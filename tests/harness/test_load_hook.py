"""A module's hook for loading checkpoints, which migrates all weights that callbacks keep and not only the module's."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_robust import LayerCriticalityCallback, SWACallback, WiSEFTCallback
from lightning_robust.harness.load_hook import WeightKeeper

from ..boring import Boring, make_trainer


class Older(Boring):
    """Writes a tensor that later versions do not have."""

    def __init__(self):
        super().__init__()
        self.net[4].p = 0.0
        self.register_buffer("unused", torch.ones(2))
        self.register_buffer("scale", torch.ones(()))


class Newer(Boring):
    """Calls its layers otherwise, has lost one tensor, and sets another."""

    calls = 0

    def __init__(self, change=True):
        super().__init__()
        self.net[4].p = 0.0
        self.body = self.net
        del self.net
        self.change = change
        self.register_buffer("scale", torch.ones(()))

    def forward(self, images):
        return self.body(images)

    def on_load_checkpoint(self, checkpoint):
        self.calls += 1
        checkpoint.pop("written by lightning", None)
        if "unused" in checkpoint["state_dict"]:
            state = checkpoint["state_dict"]
            del state["unused"]
            for name in list(state):
                if name.startswith("net."):
                    state[name.replace("net.", "body.")] = state.pop(name)
            state["scale"] = state["scale"] + 6


def train(folder, module, *callbacks, ckpt_path=None, epochs=2):
    pl.seed_everything(1)
    module = module() if isinstance(module, type) else module
    trainer = make_trainer(folder, callbacks, max_epochs=epochs, enable_checkpointing=True)
    trainer.fit(module, ckpt_path=ckpt_path)
    return module


def renamed(state):
    return {name.replace("net.", "body."): tensor for name, tensor in state.items() if name != "unused"}


KINDS = {
    "uniform": {"start": 0, "every": "epoch"},
    "ema": {"kind": "ema", "start": 0, "every": 1, "half_life": 3, "also": {"last2": {"kind": "lawa", "window": 2}}},
    "late": {"start": 3},
}


@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore::lightning_robust.NoEffectWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_migrated_run_goes_on_as_if_it_had_not_been_interrupted(tmp_path, kind):
    callbacks = [SWACallback(bn_refresh=False, **KINDS[kind]) for _ in range(3)]
    whole = train(tmp_path, Older, callbacks[0], epochs=5)
    train(tmp_path, Older, callbacks[1], ModelCheckpoint(tmp_path, "older"))
    module = train(tmp_path, Newer, callbacks[2], ckpt_path=tmp_path / "older.ckpt", epochs=5)
    assert "on_load_checkpoint" not in vars(module)
    expected, found = renamed(whole.state_dict()), module.state_dict()
    assert found.keys() == expected.keys()
    for name in found.keys() - {"scale"}:
        assert torch.equal(found[name], expected[name]), name
    # 7 in the raw weights and in the averages of two snapshots, which go on with it
    assert found["scale"].item() == 7.0
    for name, average in callbacks[2]._averages.items():
        others = callbacks[0]._averages[name].values
        for one, other in zip(average.values[:6], others[:6], strict=True):
            assert torch.equal(one, other), name


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("callbacks", [[], ["swa"]], ids=["plain", "swa"])
def test_a_buffer_that_the_hook_sets_is_set_with_and_without_averages(tmp_path, callbacks):
    def of_run():
        return [SWACallback("ema", start=0, every=1, half_life=3) for _ in callbacks]

    train(tmp_path, Older(), *of_run(), ModelCheckpoint(tmp_path, "older"))
    module = train(tmp_path, Newer(), *of_run(), ckpt_path=tmp_path / "older.ckpt", epochs=3)
    assert module.scale.item() == 7.0


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_starts_that_other_callbacks_keep_are_migrated(tmp_path):
    def of_run():
        wise_ft = WiSEFTCallback(monitor="val/loss", mode="min", epsilon=9.0)
        return LayerCriticalityCallback("val/loss", "min", draws=1, on_failure="raise"), wise_ft

    module = Older()
    start = copy.deepcopy(module.state_dict())
    train(tmp_path, module, *of_run(), ModelCheckpoint(tmp_path, "older"))
    criticality, wise_ft = of_run()
    train(tmp_path, Newer(), criticality, wise_ft, ckpt_path=tmp_path / "older.ckpt", epochs=3)
    for kept in (wise_ft.state_dict()["start"], criticality.state_dict()["states"][0]):
        for name, tensor in renamed(start).items():
            torch.testing.assert_close(kept[name], tensor + 6 * (name == "scale"), msg=name)


def test_a_file_that_does_not_fit_leaves_the_module_as_it_was(tmp_path):
    train(tmp_path, Older, SWACallback(start=0, bn_refresh=False), ModelCheckpoint(tmp_path, "older"))
    module = Boring()
    with pytest.raises(RuntimeError, match="unused"):
        train(tmp_path, module, SWACallback(start=0, bn_refresh=False), ckpt_path=tmp_path / "older.ckpt", epochs=3)
    assert "on_load_checkpoint" not in vars(module)


class Keeps(WeightKeeper):
    def edit_weights(self, pl_module, checkpoint, edit):
        checkpoint["mine"] = edit(checkpoint["mine"])


def test_a_hook_that_edits_no_weights_runs_once(tmp_path):
    module, keeps = Newer(), Keeps()
    trainer = make_trainer(tmp_path, [keeps])
    keeps.setup(trainer, module, "fit")
    keeps.setup(trainer, module, "fit")
    checkpoint = {"state_dict": {"w": torch.ones(1)}, "mine": {"w": torch.ones(1)}}
    module.on_load_checkpoint(checkpoint)
    assert module.calls == 1
    keeps.on_fit_start(trainer, module)
    keeps.on_fit_start(trainer, module)
    assert "on_load_checkpoint" not in vars(module)


def test_edits_in_place_and_of_other_entries_reach_every_set_once(tmp_path):
    class InPlace(nn.Module):
        def on_load_checkpoint(self, checkpoint):
            checkpoint["state_dict"]["w"].mul_(2)
            checkpoint["state_dict"]["v"] = torch.full((1,), float(checkpoint.pop("version")))

    module = InPlace()
    shared = torch.ones(1)
    checkpoint = {"state_dict": {"w": shared, "v": torch.zeros(1)}, "mine": {"w": torch.full((1,), 5.0)}, "version": 3}
    keeps = Keeps()
    keeps.setup(make_trainer(tmp_path, [keeps]), module, "fit")
    module.on_load_checkpoint(checkpoint)
    assert {name: tensor.item() for name, tensor in checkpoint["mine"].items()} == {"w": 10.0, "v": 3.0}
    assert checkpoint["state_dict"]["w"].item() == 2.0
