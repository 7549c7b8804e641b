"""What the weights are when training begins: of each method, once, in resumed fits, beside other techniques."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_robust import InitialiseCallback, LazyTrainingCallback, NoEffectWarning
from lightning_robust.functional import drawn_layers
from tests.boring import Boring, Pictures, make_trainer


class Start(pl.Callback):
    """Keeps what the first step begins from."""

    def on_train_start(self, trainer, pl_module):
        self.state = {name: value.clone() for name, value in pl_module.state_dict().items()}


def start_of(tmp_path, callback, module=None, **settings):
    pl.seed_everything(5)
    module, start = module or Boring(), Start()
    trainer = make_trainer(tmp_path, [callback, start], **({"max_epochs": 1} | settings))
    trainer.fit(module)
    return start.state, trainer, module


def test_orthogonal_rows_and_untouched_biases(tmp_path):
    pl.seed_everything(5)
    built = Boring()
    state, _, _ = start_of(tmp_path, InitialiseCallback("orthogonal", gain=2.0))
    for name in drawn_layers(built):
        matrix = state[f"{name}.weight"].flatten(1)
        matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        torch.testing.assert_close(matrix @ matrix.T, 4 * torch.eye(len(matrix)), atol=1e-5, rtol=0)
    drawn = {f"{name}.weight" for name in drawn_layers(built)}
    for name, value in built.state_dict().items():
        assert torch.equal(value, state[name]) == (name not in drawn), name


def test_the_run_draws_as_without_it(tmp_path):
    """Scaling by 1 leaves a training bit for bit what it was: the callback takes nothing from the random numbers."""
    _, _, plain = start_of(tmp_path, Start())
    _, _, scaled = start_of(tmp_path, InitialiseCallback("small", scale=1.0))
    assert all(torch.equal(value, scaled.state_dict()[name]) for name, value in plain.state_dict().items())


class Split(pl.LightningDataModule):
    """Splits its data by the global random numbers, as many do."""

    def __init__(self):
        super().__init__()
        self.setups = []

    def setup(self, stage):
        self.setups.append(stage)
        self.parts = torch.utils.data.random_split(Pictures(32), [24, 8])

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.parts[0], 8)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(self.parts[1], 8)


def test_data_is_set_up_once(tmp_path):
    """LSUV looks at a batch before training; the split is that of a run without it."""
    splits = []
    for method in ("kaiming", "lsuv"):
        pl.seed_everything(5)
        data = Split()
        make_trainer(tmp_path, [InitialiseCallback(method)], max_epochs=1).fit(Boring(), data)
        assert data.setups == ["fit"]
        splits.append(data.parts[1].indices)
    assert splits[0] == splits[1]


def test_seed_of_the_run_decides(tmp_path):
    first, _, _ = start_of(tmp_path, InitialiseCallback("kaiming"))
    again, _, _ = start_of(tmp_path, InitialiseCallback("kaiming"))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    pl.seed_everything(6)
    start = Start()
    make_trainer(tmp_path, [InitialiseCallback("kaiming"), start], max_epochs=1).fit(Boring())
    assert not torch.equal(first["net.0.weight"], start.state["net.0.weight"])


def test_small_excludes_the_head(tmp_path):
    pl.seed_everything(5)
    built = Boring().state_dict()
    state, _, module = start_of(tmp_path, InitialiseCallback("small", scale=0.5, exclude=["net.5"]))
    last = [*drawn_layers(module)][-1]
    assert last == "net.5"
    assert torch.equal(state[f"{last}.weight"], built[f"{last}.weight"])
    assert torch.equal(state["net.0.weight"], 0.5 * built["net.0.weight"])


def test_lsuv_on_the_first_training_batch(tmp_path):
    """The outputs on the batch that training begins with have unit variance; BatchNorm has seen nothing."""
    state, _, _ = start_of(tmp_path, InitialiseCallback("lsuv", tolerance=0.05))
    assert torch.equal(state["net.1.running_mean"], torch.zeros_like(state["net.1.running_mean"]))
    fresh = Boring()
    fresh.load_state_dict(state)
    pl.seed_everything(5)
    batch = next(iter(Boring().train_dataloader()))
    seen = []
    for layer in drawn_layers(fresh).values():
        layer.register_forward_hook(lambda layer, args, output: seen.append(output.var().item()))
    with torch.no_grad():
        fresh.eval()(batch[0])
    assert len(seen) >= 2
    # the order of the pictures differs, so that the variances do by the draw of the batch
    assert seen == pytest.approx([1.0] * len(seen), abs=0.25)


def test_pretrained_takes_what_fits_and_names_the_rest(tmp_path, capsys, caplog):
    donor = Boring()
    states = {f"{name}": value for name, value in donor.state_dict().items() if not name.startswith("net.5")}
    torch.save({"state_dict": states}, tmp_path / "trunk.ckpt")
    caplog.set_level("INFO")
    state, _, _ = start_of(tmp_path, InitialiseCallback("pretrained", checkpoint=str(tmp_path / "trunk.ckpt")))
    assert all(torch.equal(value, state[name]) for name, value in states.items())
    assert "net.5.weight, net.5.bias stay as they were built" in caplog.text


def test_resumed_and_second_fits_keep_their_weights(tmp_path):
    """A fit from a checkpoint, whether or not the callback was in it, and a second fit begin from what they have."""
    callback, start = InitialiseCallback("orthogonal"), Start()
    pl.seed_everything(5)
    module = Boring()
    trainer = make_trainer(tmp_path, [callback, start], max_epochs=1)
    trainer.fit(module)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    trained = {name: value.clone() for name, value in module.state_dict().items()}
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module)
    assert all(torch.equal(value, start.state[name]) for name, value in trained.items())
    for saved in (True, False):
        content = torch.load(tmp_path / "one.ckpt", weights_only=True)
        if not saved:
            content["callbacks"] = {}
            torch.save(content, tmp_path / "one.ckpt")
        start = Start()
        resumed = make_trainer(tmp_path, [InitialiseCallback("orthogonal"), start], max_epochs=2)
        resumed.fit(Boring(), ckpt_path=tmp_path / "one.ckpt")
        assert all(torch.equal(value, start.state[name]) for name, value in trained.items())


def test_lazy_training_counts_from_the_new_weights(tmp_path):
    lazy = LazyTrainingCallback(num_samples=8)
    start = Start()
    pl.seed_everything(5)
    make_trainer(tmp_path, [InitialiseCallback("kaiming"), lazy, start], max_epochs=1).fit(Boring())
    assert torch.equal(lazy._start["net.0.weight"], start.state["net.0.weight"])


def test_rejects_a_place_behind_others(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"got it behind LazyTrainingCallback\. Put it first"):
        make_trainer(tmp_path, [LazyTrainingCallback(), InitialiseCallback("kaiming")]).fit(Boring())


class Normed(Boring):
    """All weights frozen."""

    def __init__(self):
        super().__init__()
        self.requires_grad_(False)
        self.offset = nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + self.offset


def test_says_so_where_there_is_nothing_to_draw(tmp_path):
    with pytest.warns(NoEffectWarning, match="no linear layer or convolution in Normed"):
        start_of(tmp_path, InitialiseCallback("kaiming"), Normed())


def test_rejects_lazy_layers(tmp_path):
    class Late(Boring):
        def __init__(self):
            super().__init__()
            self.late = nn.LazyLinear(1)

    with pytest.raises(MisconfigurationException, match="got lazy layers"):
        start_of(tmp_path, InitialiseCallback("kaiming"), Late())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "xavier"}, "Expected `method` out of kaiming, orthogonal"),
        ({"method": "lsuv", "gain": 1.0}, "no `gain` with method='lsuv'.* choose kaiming or orthogonal"),
        ({"method": "small", "scale": 0.0}, "Expected `scale` above 0, but got 0.0"),
        ({"method": "pretrained"}, "Expected `checkpoint`, the file to begin from"),
        ({"method": "kaiming", "input_key": "image"}, "no `input_key` with method='kaiming'"),
    ],
)
def test_rejects_arguments(settings, message):
    with pytest.raises(ValueError, match=message):
        InitialiseCallback(**settings)


def test_rejects_a_missing_file():
    with pytest.raises(FileNotFoundError, match=r"Expected a checkpoint at nowhere\.ckpt"):
        InitialiseCallback("pretrained", checkpoint="nowhere.ckpt")
