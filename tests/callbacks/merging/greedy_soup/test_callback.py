"""Soups on a module with one weight, where everything is a closed form, and on BatchNorm."""

import enum
import functools
import hashlib
import json
from argparse import Namespace
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_robust import (
    AdversarialCallback,
    DeploymentParityCallback,
    GreedySoupCallback,
    NoEffectWarning,
    SWACallback,
)
from lightning_robust.callbacks.merging.greedy_soup import pantry
from lightning_robust.callbacks.merging.greedy_soup.recipes import Held
from lightning_robust.cli import RobustCLI
from lightning_robust.functional.coefficients import learned_soup

from ....boring import Boring, OnlyInSteps, make_trainer
from ..modules import Adapted, LazyScalar, late


class Scalar(pl.LightningModule):
    """One weight w; the validation loss is (w - 1)^2, training moves w by the epoch's data."""

    def __init__(self, path=(0.0, 0.0, 0.0, 0.0)):
        super().__init__()
        self.save_hyperparameters()
        self.w = nn.Parameter(torch.tensor([[0.0]]))

    def forward(self, x):
        return x * self.w

    def training_step(self, batch, batch_idx):
        return (self.w - 1).square().sum()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", (self.w - 1).square().sum())

    def on_train_batch_end(self, *_):
        with torch.no_grad():
            self.w.fill_(self.hparams.path[self.current_epoch])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)

    def train_dataloader(self):
        return DataLoader(torch.zeros(1, 1))

    val_dataloader = train_dataloader


PATH = [3.0, 0.5, 1.8, -4.0]  # losses 4, 0.25, 0.64, 25


def run(folder, soup, *callbacks, module=None, **settings):
    pl.seed_everything(1)
    trainer = make_trainer(folder, [*callbacks, soup], **({"max_epochs": 4, "enable_checkpointing": True} | settings))
    module = module or Scalar(PATH)
    trainer.fit(module)
    return trainer, module


def judged(**settings):
    return GreedySoupCallback(**({"monitor": "val/loss", "mode": "min", "bn_refresh": False} | settings))


def write(folder, values, **extra):
    paths = []
    for index, value in enumerate(values):
        paths.append(folder / f"{index}.ckpt")
        torch.save({"state_dict": {"w": torch.tensor([[value]]), **extra}}, paths[-1])
    return paths


def test_greedy_closed_form(tmp_path):
    """0.5 first; with 1.8 the mean is 1.15, loss 0.0225; with 3 it would be 1.77, with -4 0.325: both refused."""
    soup = judged(ingredients="epochs", dirpath=str(tmp_path / "soup"))
    trainer, module = run(tmp_path, soup)
    assert soup.soup.ingredients == [1, 2]
    assert module.w.item() == pytest.approx(1.15)
    metrics = trainer.callback_metrics
    assert metrics["soup/score"].item() == pytest.approx(0.0225, rel=1e-5)
    assert (metrics["soup/best_ingredient"].item(), metrics["soup/ingredients"].item()) == (0.25, 2)
    assert soup.soup.evaluations == 3


@pytest.mark.parametrize("recipe", ["uniform", "stock"])
def test_other_recipes_closed_form(tmp_path, recipe):
    """From 0 all steps are parallel, so that Model Stock's ratio is 1 and both are the mean."""
    path = [3.0, 0.5, 2.1, 0.2]
    _, module = run(tmp_path, judged(recipe=recipe, ingredients="epochs"), module=Scalar(path))
    assert module.w.item() == pytest.approx(sum(path) / 4)


@pytest.mark.parametrize(
    ("recipe", "cooked"),
    # uniform: the mean; stock: from 0, all tensors are parallel, cosines are 1, 1, -1 ...: mean 0, ratio 0
    [("uniform", sum(PATH) / 4), ("stock", 0.0)],
)
def test_a_worse_soup_gives_way_to_its_best_ingredient(tmp_path, recipe, cooked):
    soup = judged(recipe=recipe, ingredients="epochs", dirpath=str(tmp_path / "soup"))
    with pytest.warns(UserWarning, match=rf"the {recipe} soup .* is worse than epoch=1-step=2 \(0\.25\)"):
        _, module = run(tmp_path, soup)
    assert soup.soup.state["w"].item() == pytest.approx(cooked, abs=1e-6)
    assert module.w.item() == torch.load(soup.path, weights_only=True)["state_dict"]["w"].item() == 0.5
    assert json.loads((tmp_path / "soup" / "soup.json").read_text())["holds"] == "epoch=1-step=2"


@pytest.mark.parametrize("recipe", ["greedy", "uniform", "learned"])
def test_no_recipe_returns_worse_weights_than_it_was_given(tmp_path, recipe):
    """Trained to 1, the optimum, beside files that are worse alone and together."""
    write(tmp_path, [4.0, 5.0])
    with pytest.warns(UserWarning, match=r"is worse than the weights as trained \(0\), which the module holds"):
        _, module = run(
            tmp_path, judged(recipe=recipe, ingredients=str(tmp_path / "*.ckpt")), module=Scalar([1.0]), max_epochs=1
        )
    assert module.w.item() == 1.0


def test_learned_reaches_the_optimum(tmp_path):
    class Long(Scalar):
        def val_dataloader(self):
            return DataLoader(torch.zeros(400, 1))

    _, module = run(tmp_path, judged(recipe="learned", ingredients="epochs"), module=Long(PATH))
    assert module.w.item() == pytest.approx(1.0, abs=0.02)


class Classifier(pl.LightningModule):
    """Linear, never trained; its outputs are ``form`` of the logits."""

    def __init__(self, form="tensor"):
        super().__init__()
        self.layer, self.form = nn.Linear(4, 3, bias=False), form

    def forward(self, x):
        return self.layer(x) if self.form == "tensor" else {"logits": self.layer(x)}

    def training_step(self, batch, batch_idx):
        outputs = self(batch[0])
        return nn.functional.cross_entropy(outputs["logits"] if isinstance(outputs, dict) else outputs, batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(0)
        inputs = torch.rand(64, 4, generator=generator)
        return DataLoader(TensorDataset(inputs, inputs[:, :3].argmax(1)), 16)

    val_dataloader = train_dataloader


@pytest.mark.filterwarnings("ignore:.*the learned soup")
@pytest.mark.parametrize(
    ("form", "method"),
    [("tensor", None), ("tensor", "pgd"), ("tensor", "free"), ("tensor", "trades"), ("dict", None), ("dict", "pgd")],
)
def test_learned_soup_takes_the_modules_own_loss_with_a_temperature_of_its_outputs(tmp_path, form, method):
    """Also beside adversarial training; outputs that are no tensor have no temperature."""
    torch.manual_seed(0)
    states = [{"layer.weight": torch.eye(3, 4) + k * torch.randn(3, 4)} for k in (0.1, 0.5, 1.0)]
    for index, state in enumerate(states):
        torch.save(state, tmp_path / f"{index}.ckpt")
    module = Classifier(form)

    def loss(state, batch, beta):
        scale = beta if form == "tensor" else 1.0
        return nn.functional.cross_entropy(scale * batch[0] @ state["layer.weight"].T, batch[1])

    expected = learned_soup(states, loss, module.val_dataloader)
    soup = judged(recipe="learned", ingredients=str(tmp_path / "*.ckpt"))
    steps = {} if method in (None, "trades") else {"steps": 2}
    attack = [] if method is None else [AdversarialCallback(method, eps=0.3, bounds="none", val_eps=[], **steps)]
    run(tmp_path, soup, *attack, module=module, max_epochs=1)
    assert soup.soup.beta == pytest.approx(expected.beta, rel=1e-5)
    assert (soup.soup.beta == 1.0) == (form == "dict")
    found = soup.soup.coefficients["layer.weight"]
    torch.testing.assert_close(found, expected.coefficients["layer.weight"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["paths", "glob", "safetensors"])
def test_files(tmp_path, form):
    paths = write(tmp_path, PATH)
    if form == "safetensors":
        for path in paths:
            save_file({"w": torch.load(path)["state_dict"]["w"]}, path.with_suffix(".safetensors"))
    named = {"paths": [str(path) for path in paths], "glob": str(tmp_path / "*.ckpt")}
    soup = judged(ingredients=named.get(form, str(tmp_path / "*.safetensors")), dirpath=str(tmp_path / "out"))
    _, module = run(tmp_path, soup, max_epochs=1)
    assert soup.soup.ingredients == [1, 2]
    assert module.w.item() == pytest.approx(1.15)
    # four ingredients and three additions
    content = json.loads((tmp_path / "out" / "soup.json").read_text())
    assert content["order"] == [1, 2]
    assert [entry["accepted"] for entry in content["ingredients"]] == [False, True, True, False]
    first = content["ingredients"][0]
    assert first["sha256"] == hashlib.sha256(Path(first["path"]).read_bytes()).hexdigest()
    assert [entry["score"] for entry in content["ingredients"]] == pytest.approx([4, 0.25, 0.64, 25], rel=1e-5)


def test_checkpoints_of_the_run_are_not_measured_again_and_read_once(tmp_path, monkeypatch):
    opened = []
    real = pantry.read_state
    monkeypatch.setattr(pantry, "read_state", lambda path: opened.append(path) or real(path))
    keeper = ModelCheckpoint(tmp_path, monitor="val/loss", save_top_k=3)
    soup = judged(report_barriers=False)
    trainer, module = run(tmp_path, soup, keeper)
    assert len(opened) == len(set(opened)) == 3
    assert soup.soup.evaluations == 2
    assert module.w.item() == pytest.approx(1.15)
    # "best" now means the soup
    (tested,) = trainer.validate(module, ckpt_path="best", verbose=False, weights_only=True)
    assert tested["val/loss"] == pytest.approx(0.0225, rel=1e-5)
    assert keeper.best_model_path == soup.path


def test_a_checkpoint_callback_without_a_metric_has_no_ingredients(tmp_path):
    """It keeps every epoch, and no list of them: this callback keeps its own, or says what is missing."""
    keeper = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    soup = judged()
    _, module = run(tmp_path, soup, keeper)
    assert len(soup.soup.scores) == 4
    assert module.w.item() == pytest.approx(1.15)
    with pytest.raises(ValueError, match=r"Expected a ModelCheckpoint with a `monitor` .* ingredients='epochs'"):
        run(tmp_path, judged(ingredients="checkpoints"), ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1))


def test_top_k_epochs_are_kept(tmp_path):
    soup = judged(ingredients="epochs", top_k=2, dirpath=str(tmp_path / "soup"))
    run(tmp_path, soup)
    assert sorted(path.name for path in (tmp_path / "soup").glob("epoch*")) == [
        "epoch=1-step=2.ckpt",
        "epoch=2-step=3.ckpt",
    ]


def test_the_file_is_what_was_returned_and_loads_in_lightning(tmp_path):
    soup = GreedySoupCallback(monitor="val/loss", mode="min", ingredients="epochs")
    trainer, module = run(tmp_path, soup, module=Boring())
    score = float(trainer.callback_metrics["soup/score"])
    loaded = Boring.load_from_checkpoint(soup.path)
    for name, tensor in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    (measured,) = trainer.validate(loaded, verbose=False)
    assert measured["val/loss"] == pytest.approx(score, rel=1e-5)
    assert soup.soup.score <= min(soup.soup.scores)


def test_batchnorm_of_mixtures_is_refreshed(tmp_path, monkeypatch):
    """Even where the mixture is not the best of what there is."""
    keep = "lightning_robust.callbacks.merging.greedy_soup.callback.best_of"
    monkeypatch.setattr(keep, lambda soup, *_: Held("the soup", soup.state, True, soup.score))
    soup = GreedySoupCallback("uniform", monitor="val/loss", mode="min", ingredients="epochs")
    _, module = run(tmp_path, soup, module=Boring())
    images = torch.cat([batch[0] for batch in module.train_dataloader()])
    with torch.no_grad():
        inputs = module.net[0](images)
    torch.testing.assert_close(module.net[1].running_var, inputs.var((0, 2, 3)), rtol=1e-5, atol=1e-6)


def test_the_soup_that_deploys_best(tmp_path):
    parity = DeploymentParityCallback(["torch-bf16"], perturbations="none", num_samples=4)
    monitor = "parity/torch-bf16/rel_l2"
    soup = GreedySoupCallback(monitor=monitor, mode="min", ingredients="epochs", bn_refresh=False)
    trainer, module = run(tmp_path, soup, parity, module=Boring())
    assert soup.soup.score <= min(soup.soup.scores)
    trainer.validate(module, verbose=False)
    assert float(trainer.callback_metrics[monitor]) == pytest.approx(soup.soup.score, rel=1e-3)


@pytest.mark.filterwarnings("ignore:.*the greedy soup .* is worse than the weights as trained")
def test_the_ingredient_that_spoils_the_soup_is_named(tmp_path, caplog):
    """Independent weights have a cosine near 0 with the others and the highest barrier."""
    torch.manual_seed(0)
    base = Boring().state_dict()
    for index in range(3):
        noise = {k: v + 0.01 * torch.randn_like(v) if v.is_floating_point() else v for k, v in base.items()}
        torch.save(noise, tmp_path / f"near{index}.ckpt")
    torch.manual_seed(99)
    stranger = {k: 30 * v if "5.weight" in k else v for k, v in Boring().state_dict().items()}
    torch.save(stranger, tmp_path / "stranger.ckpt")
    soup = GreedySoupCallback(monitor="val/loss", mode="min", ingredients=str(tmp_path / "*.ckpt"))
    with caplog.at_level("INFO", "lightning.pytorch"):
        run(tmp_path, soup, module=Boring(), max_epochs=1)
    (line,) = [record.message for record in caplog.records if "fits worst" in record.message]
    assert "stranger" in line
    assert "shares no initialisation" in line


@pytest.mark.filterwarnings("ignore:.*worse than")
@pytest.mark.parametrize("recipe", ["uniform", "stock"])
def test_all_ingredients_of_other_starts_are_named_also_where_the_start_is_known(tmp_path, caplog, recipe):
    """Two near the start of the fit and two drawn anew; from a known start their angles would say nothing."""
    paths = [tmp_path / f"{name}.ckpt" for name in ("near0", "near1", "far0", "far1")]
    pl.seed_everything(1)
    start = Boring().state_dict()
    for index, path in enumerate(paths):
        torch.manual_seed(50 + index)
        state = start if path.stem.startswith("near") else Boring().state_dict()
        torch.save({k: v + 0.01 * torch.randn_like(v) if v.is_floating_point() else v for k, v in state.items()}, path)
    base = {"base": str(paths[0])} if recipe == "stock" else {}
    soup = GreedySoupCallback(recipe, monitor="val/loss", mode="min", ingredients=str(tmp_path / "*.ckpt"), **base)
    with caplog.at_level("INFO", "lightning.pytorch"):
        run(tmp_path, soup, module=Boring(), max_epochs=1)
    (line,) = [record.message for record in caplog.records if "no initialisation" in record.message]
    names = ["far0", "far1", "near0", "near1"]
    best = names[min(range(4), key=soup.soup.scores.__getitem__)]
    strangers, known = line.split("; ")[-1].split(" share no initialisation with the best, ")
    assert f"{best}.ckpt" in known
    for name in names:
        shares = name == best or {name, best} == {"near0", "near1"}
        assert (f"{name}.ckpt" in strangers) is not shares, name


def test_stock_goes_from_the_base_that_is_named(tmp_path):
    """From 2 on, the steps to 3 and 4 are parallel: ratio 1, the mean; from 3.5 opposite: ratio 0, the base."""
    paths = write(tmp_path, [3.0, 4.0, 2.0, 3.5])
    for base, expected in ((paths[2], 3.5), (paths[3], 3.5), (None, 3.5)):
        soup = judged(recipe="stock", ingredients=[str(path) for path in paths[:2]], base=base and str(base))
        with pytest.warns(UserWarning, match="the stock soup .* is worse than"):
            run(tmp_path, soup, module=Scalar([1.0]), max_epochs=1)
        assert soup.soup.state["w"].item() == pytest.approx(expected)
        assert soup.soup.coefficients["w"].item() == (0 if base == paths[3] else 1)
    with pytest.raises(ValueError, match="Expected `base` with the recipe stock alone, but got it with greedy"):
        judged(base="start.ckpt")
    torch.save({"w": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"Expected w of shape \(1, 1\) in .*other.pt, but got \(2,\)"):
        run(tmp_path, judged(recipe="stock", base=str(tmp_path / "other.pt")), module=Scalar(PATH))


@pytest.mark.filterwarnings("ignore:.*worse than")
def test_stock_warns_of_a_base_that_nothing_was_fine_tuned_from(tmp_path):
    for index in range(2):
        torch.manual_seed(7)
        state = Boring().state_dict()
        torch.manual_seed(index)
        noise = {k: v + 0.01 * torch.randn_like(v) if v.is_floating_point() else v for k, v in state.items()}
        torch.save(noise, tmp_path / f"{index}.ckpt")
    soup = GreedySoupCallback("stock", monitor="val/loss", mode="min", ingredients=str(tmp_path / "*.ckpt"))
    with pytest.warns(UserWarning, match="the initial weights are not what .*0.ckpt was fine-tuned from .* as `base`"):
        run(tmp_path, soup, module=Boring(), max_epochs=1)


def test_table_and_figure_reach_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, "run")
    run(tmp_path, judged(ingredients="epochs"), logger=logger)
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert "soup/overview" in events.Tags()["images"]
    assert {"soup/score", "soup/ingredients"} <= set(events.Tags()["scalars"])
    (text,) = events.Tensors("soup/ingredients/text_summary")
    assert "| epoch=1-step=2 | 0.25 | 1 |" in " ".join(text.tensor_proto.string_val[0].decode().split())


def test_a_nan_ingredient_is_left_out(tmp_path):
    write(tmp_path, [0.5, float("nan"), 1.8])
    soup = judged(ingredients=str(tmp_path / "*.ckpt"))
    with pytest.warns(UserWarning, match="1.ckpt is left out"):
        _, module = run(tmp_path, soup, max_epochs=1)
    assert module.w.item() == pytest.approx(1.15)


def test_the_metric_may_have_the_name_that_lightning_forks(tmp_path):
    class Forked(Scalar):
        def validation_step(self, batch, batch_idx):
            self.log("val/loss", (self.w - 1).square().sum(), on_step=True, on_epoch=True)

    soup = judged(monitor="val/loss_epoch", ingredients="epochs")
    _, module = run(tmp_path, soup, module=Forked(PATH))
    assert module.w.item() == pytest.approx(1.15)


@pytest.mark.filterwarnings("ignore:.*is left out")
def test_no_usable_ingredient_leaves_the_weights_as_trained(tmp_path):
    write(tmp_path, [float("nan")])
    with pytest.warns(UserWarning, match=r"stay as trained\. ValueError.*none has"):
        _, module = run(tmp_path, judged(ingredients=str(tmp_path / "*.ckpt")), max_epochs=1)
    assert module.w.item() == 3.0


def test_one_ingredient_alone_is_said(tmp_path):
    with pytest.warns(NoEffectWarning, match="there was no other"):
        run(tmp_path, judged(ingredients="epochs", top_k=1))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda f: torch.save({"v": torch.zeros(1)}, f / "a.ckpt"), r"lacks w and has v besides"),
        (lambda f: torch.save({"w": torch.zeros(3)}, f / "a.ckpt"), r"Expected w of shape \(1, 1\)"),
        (lambda f: (f / "a.ckpt").write_bytes(b"PK\x03\x04 broken"), "Expected a whole file"),
        (lambda f: None, "nothing matches"),
    ],
)
def test_bad_files_are_refused_before_training(tmp_path, make, complaint):
    make(tmp_path)
    module = Scalar(PATH)
    with pytest.raises(ValueError, match=complaint):
        run(tmp_path, judged(ingredients=str(tmp_path / "*.ckpt")), module=module)
    assert module.w.item() == 0.0


class Objects(Scalar):
    """A module whose hyperparameters are not all plain values."""

    def __init__(self, path, thing=None):
        super(Scalar, self).__init__()
        self.save_hyperparameters()
        self.w = nn.Parameter(torch.tensor([[0.0]]))


class Colour(enum.Enum):
    RED = 1


OBJECTS = [Path("data"), nn.Linear(1, 1), functools.partial(max, 1), Boring, Namespace(a=Path("b")), Colour.RED]


@pytest.mark.filterwarnings("ignore:Attribute 'thing' is an instance of `nn.Module`")
@pytest.mark.parametrize("thing", OBJECTS, ids=lambda thing: type(thing).__name__)
def test_hyperparameters_that_are_objects_do_no_harm(tmp_path, thing):
    """Ingredients are this callback's own epochs though a ModelCheckpoint keeps three, whose files cannot be read."""
    keeper = ModelCheckpoint(tmp_path, monitor="val/loss", save_top_k=3)
    soup = judged()
    with pytest.warns(UserWarning, match=r"holds no hyperparameters that are objects.*\['thing'\]"):
        _, module = run(tmp_path, soup, keeper, module=Objects(PATH, thing))
    assert module.w.item() == pytest.approx(1.15)
    files = [soup.path, *map(str, Path(soup.path).parent.glob("epoch*.ckpt"))]
    assert len(files) == 5
    for file in files:
        content = torch.load(file, weights_only=True)
        assert (list(content["state_dict"]), content["hyper_parameters"]) == (["w"], {"path": PATH})
    assert Objects.load_from_checkpoint(soup.path, thing=thing).w.item() == module.w.item()


def test_files_that_cannot_be_read_are_refused_before_training(tmp_path):
    keeper = ModelCheckpoint(tmp_path, "own")
    run(tmp_path, judged(ingredients="epochs", dirpath=str(tmp_path / "soup")), keeper, module=Objects(PATH))
    module = Objects(PATH, Path("data"))
    with pytest.raises(ValueError, match=r"`hyper_parameters` would hold objects: \['thing'\].*ingredients='epochs'"):
        run(tmp_path, judged(ingredients="checkpoints"), module=module)
    trainer = make_trainer(tmp_path, max_epochs=0)
    trainer.fit(module)
    trainer.save_checkpoint(tmp_path / "foreign.ckpt", weights_only=True)
    with pytest.raises(ValueError, match=r"holds pathlib\..*`hyper_parameters`.*ignore=\[\.\.\.\]"):
        run(tmp_path, judged(ingredients=str(tmp_path / "foreign.ckpt")), module=module)
    assert module.w.item() == 0.0


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
def test_layers_that_a_module_builds_late_are_there_when_files_are_checked(tmp_path, hook):
    paths = write(tmp_path, PATH)
    soup = judged(ingredients=[str(path) for path in paths])
    _, module = run(tmp_path, soup, module=late(Scalar, hook, PATH), max_epochs=1)
    assert module.w.item() == pytest.approx(1.15)
    torch.save({"v": torch.zeros(1, 1)}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="lacks w and has v besides"):
        run(tmp_path, judged(ingredients=str(tmp_path / "other.ckpt")), module=late(Scalar, hook, PATH))


@pytest.mark.filterwarnings("ignore:.*the stock soup")
def test_stock_soup_of_a_lazy_module_starts_from_its_first_weights(tmp_path):
    soup = judged(recipe="stock", ingredients="epochs")
    run(tmp_path, soup, module=LazyScalar())
    assert soup.state_dict()["base"]["net.weight"].shape == (1, 1)


@pytest.mark.filterwarnings("ignore:.*worse than")
def test_batchnorm_that_cannot_be_refreshed_keeps_the_mean_of_its_statistics(tmp_path):
    soup = GreedySoupCallback("uniform", monitor="val/loss", mode="min", ingredients="epochs")
    with pytest.warns(UserWarning, match="BatchNorm statistics could not be refreshed, and their averages") as caught:
        run(tmp_path, soup, module=OnlyInSteps())
    assert sum("could not be refreshed" in str(warning.message) for warning in caught) == 1
    files = [torch.load(path, weights_only=True)["state_dict"] for path in Path(soup.path).parent.glob("epoch*.ckpt")]
    mean = torch.stack([file["net.1.running_mean"] for file in files]).mean(0)
    torch.testing.assert_close(soup.soup.state["net.1.running_mean"], mean)


def test_adapters_are_refused_before_training(tmp_path):
    module = Adapted()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(ValueError, match=r"both factors of an adapter.*merge_and_unload"):
        run(tmp_path, judged(ingredients="epochs"), module=module)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    paths = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = {name: tensor + torch.randn_like(tensor) for name, tensor in before.items()}
        paths.append(str(tmp_path / f"{seed}.ckpt"))
        torch.save(state, paths[-1])
    with pytest.raises(ValueError, match=r"both factors differ between the ingredients.*merge_and_unload"):
        run(tmp_path, judged(ingredients=paths), module=module)


def test_bad_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"at least one path or glob in `ingredients`, but got \[\]"):
        GreedySoupCallback(ingredients=[])
    with pytest.raises(ValueError, match="`recipe`"):
        GreedySoupCallback("tomato")
    with pytest.raises(MisconfigurationException, match="Set `monitor`"):
        run(tmp_path, GreedySoupCallback(ingredients="epochs"), enable_checkpointing=False)
    with pytest.raises(MisconfigurationException, match=r"'val/acc'.*val/loss"):
        run(tmp_path, judged(monitor="val/acc", ingredients="epochs"))
    with pytest.raises(MisconfigurationException, match="Expected SWACallback before GreedySoupCallback"):
        make_trainer(tmp_path, [judged(), SWACallback()], enable_checkpointing=True).fit(Scalar(PATH))


def test_the_command_line_cooks_finished_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pl.seed_everything(1)
    trainer = make_trainer(
        tmp_path, [ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)], max_epochs=3, enable_checkpointing=True
    )
    trainer.fit(Boring())
    settings = ["--trainer.logger=false", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    ingredients = [f"--ingredients={tmp_path}/epoch=*.ckpt", "--monitor=val/loss", "--mode=min", "--dirpath=out"]
    cli = RobustCLI(args=["soup", "--seed_everything=0", "--model=tests.boring.Boring", *settings, *ingredients])
    content = json.loads((tmp_path / "out" / "soup.json").read_text())
    assert len(content["ingredients"]) == 3
    assert float(cli.trainer.callback_metrics["val/loss"]) == pytest.approx(content["score"], rel=1e-5)
    (measured,) = make_trainer(tmp_path).validate(Boring.load_from_checkpoint("out/soup.ckpt"), verbose=False)
    assert measured["val/loss"] == pytest.approx(content["score"], rel=1e-5)
