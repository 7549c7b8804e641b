import itertools
import math
import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_robust import DatapathCallback
from lightning_robust.callbacks.datapath.activations import find_points, gated
from lightning_robust.callbacks.datapath.figure import datapath_figures
from lightning_robust.callbacks.datapath.measure import Datapath
from lightning_robust.callbacks.datapath.paths import Paths
from lightning_robust.callbacks.datapath.report import datapath_scalars, datapath_tables
from lightning_robust.callbacks.datapath.words import describe_datapath, judge, tell_channels
from lightning_robust.deployment.pixels.corruptions import Corruption
from lightning_robust.functional.datapath import LayerDivergence
from lightning_robust.functional.gates import CriticalChannels, Overlap
from tests.boring import Boring, Pictures, make_trainer

FRAGILE = 5


class Net(pl.LightningModule):
    """Any network, judged by cross entropy."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def fragile():
    """Five channels tell bright pictures from dark ones; the sixth sees only a checkerboard, a hundred times over.

    A clean picture is even, so that the sixth is at zero; an attack of 0.02 draws the board.
    """
    conv, head = nn.Conv2d(1, 6, 2, stride=2), nn.Linear(6, 2)
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    with torch.no_grad():
        conv.weight.copy_(torch.ones(6, 1, 2, 2) * torch.linspace(0.2, 0.3, 6).reshape(6, 1, 1, 1))
        conv.weight[FRAGILE, 0] = 100 * board
        conv.bias.zero_()
        head.weight.zero_()
        head.weight[1] = 2.0
        head.bias.copy_(torch.tensor([0.0, -2.0 * conv.weight[:FRAGILE].sum() * 0.5]))
    return Net(nn.Sequential(conv, nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head))


def even_pictures():
    brightness = torch.tensor([0.3, 0.7]).repeat(16)
    return TensorDataset(brightness.reshape(-1, 1, 1, 1).expand(32, 1, 8, 8).clone(), (brightness > 0.5).long())


def measure(module, data, folder, loaded=8, **settings):
    """What a lone validation finds."""
    datapath = DatapathCallback(**({"on_failure": "raise", "num_paths": 0} | settings))
    make_trainer(folder, [datapath]).validate(module, DataLoader(data, loaded), verbose=False)
    return datapath.datapaths


def test_a_corruption_is_followed_through_the_layers(tmp_path):
    """The change of the first layer is that of a convolution of the corrupted pictures, and of the inputs theirs."""
    torch.manual_seed(0)
    module = Net(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 4))).eval()
    found = measure(module, Pictures(16), tmp_path, loaded=16, under=["low_light", "fog@5", "jpeg"], num_samples=16)
    assert [each.condition for each in found] == ["low_light@3", "fog@5", "jpeg_90"]
    images = Pictures(16).images
    foggy = Corruption("fog", 5)(images)
    with torch.no_grad():
        before, after = module.net[0](images), module.net[0](foggy)
    assert found[1].start == pytest.approx(((foggy - images).norm() / images.norm()).item(), rel=1e-4)
    assert found[1].values[0] == pytest.approx(((after - before).norm() / before.norm()).item(), rel=1e-4)
    with pytest.raises(ValueError, match="severity from 1 to 5"):
        DatapathCallback(under="fog@7")


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_vectors_are_attacked_in_their_own_units(tmp_path, attack, scale):
    """A linear network: the best point is eps along the sign of the weights, which moves the only layer by so much."""
    torch.manual_seed(0)
    module = Net(nn.Sequential(nn.Linear(6, 2))).eval()
    values = (torch.rand(32, 6) - 0.5) * scale
    data = TensorDataset(values, torch.zeros(32, dtype=torch.long))
    (found,) = measure(module, data, tmp_path, under=attack, eps=0.05, steps=20)
    weight = module.net[0].weight.detach()
    # class 0 is pushed down against class 1
    moved = 0.05 * (weight @ (weight[1] - weight[0]).sign()).norm() * math.sqrt(32)
    assert found.values == [pytest.approx((moved / module.net(values).norm()).item(), rel=1e-4)]
    assert found.start == pytest.approx((0.05 * math.sqrt(32 * 6) / values.norm()).item(), rel=1e-4)


@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_the_fragile_channel_is_found_and_without_it_the_prediction_is_back(tmp_path, attack):
    module, data = fragile().eval(), even_pictures()
    (found,) = measure(module, data, tmp_path, under=attack, eps=0.02, num_paths=32)
    layer = found.layers[0]
    assert layer.name == "net.0"
    assert layer.levels.argmax() == FRAGILE
    assert layer.carriers(0.8) == [FRAGILE]
    assert layer.moved[FRAGILE] / layer.moved.sum() > 0.999
    assert found.paths.changed.all()
    # random signs hardly draw a board
    assert layer.relative > 1.5 * layer.control
    assert (found.parting, found.depth(found.parting)) == (0, 0)
    # it is what being taken for bright rests on, and never what a right prediction does
    assert found.paths.perturbed.sets[0][found.paths.perturbed.classes == 1, FRAGILE].all()
    assert not found.paths.clean.sets[0][:, FRAGILE].any()
    assert "In `net.0`, 1 of 6 channels carry 80% of the change." in describe_datapath(found)
    assert tell_channels(found).startswith("Channel 5 of net.0 changes most")
    assert datapath_tables(found)["layers"][1][0][4].startswith("5, ")
    images, labels = data.tensors
    images = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(module.training_step((images, labels), 0), images)
    attacked = images.detach() + 0.02 * gradient.sign()
    points = find_points(module, lambda: module(attacked), 32)[:1]
    right = []
    for closed in range(6):
        gates = torch.ones(1, 6)
        gates[0, closed] = 0
        with gated(module, points, [gates]), torch.no_grad():
            right.append((module(attacked).argmax(1) == labels).float().mean().item())
    assert right == [0, 0, 0, 0, 0, 1]


class Rotation(nn.Module):
    """A layer that keeps all lengths."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linalg.qr(torch.randn(64, 64)).Q)

    def forward(self, x):
        return x @ self.weight


def test_where_no_direction_grows_nothing_parts(tmp_path):
    """In a chain of rotations every perturbation keeps the size it has in the inputs, attack and noise alike."""
    torch.manual_seed(0)
    module = Net(nn.Sequential(nn.Flatten(), *[Rotation() for _ in range(5)]))
    images = torch.rand(16, 1, 8, 8) * 0.8 + 0.1
    (found,) = measure(module, TensorDataset(images, torch.arange(16)), tmp_path, under="fgsm", eps=0.05)
    size = 0.05 * math.sqrt(16 * 64) / images.norm().item()
    for layer in found.layers:
        assert layer.relative == pytest.approx(size, rel=1e-4)
        assert layer.control == pytest.approx(size, rel=1e-4)
    assert found.start == pytest.approx(size, rel=1e-4)
    assert (found.parting, found.depth(found.parting)) == (None, 1)
    assert "keeps its size" in describe_datapath(found)


def test_the_same_in_parts_of_any_size(tmp_path):
    found = {}
    for batch_size, part in itertools.product((7, 16), (3, 64)):
        settings = {"under": "gamma", "num_samples": 25, "mean": 0.0, "std": 1.0, "layers": ["net.0", "net.5"]}
        torch.manual_seed(0)
        each = measure(Boring().eval(), Pictures(), tmp_path, batch_size, batch_size=part, **settings)
        assert {one.samples for one in each} == {25}
        found[batch_size, part] = torch.tensor([layer.relative for one in each for layer in one.layers])
    for values in found.values():
        assert torch.allclose(values, found[7, 3], rtol=1e-5)


def test_precision_is_measured_without_control_and_as_rounding_by_hand(tmp_path):
    torch.manual_seed(0)
    module = Net(nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 4)))
    fp16, bf16 = measure(module, Pictures(), tmp_path, under=["fp16", "bf16"])
    images = Pictures().images.flatten(1)
    layer = module.net[1]
    clean = layer(images)
    for found, dtype in ((fp16, torch.float16), (bf16, torch.bfloat16)):
        x, weight, bias = (each.to(dtype).float() for each in (images, layer.weight, layer.bias))
        rounded = (x @ weight.T + bias).to(dtype).float()
        assert found.layers[0].relative == pytest.approx(((rounded - clean).norm() / clean.norm()).item(), rel=1e-3)
        assert found.controls is None
        assert not any("/noise/" in tag for tag in datapath_scalars(found))
    # three bits less
    assert 4 < bf16.layers[0].relative / fp16.layers[0].relative < 16


def fit(folder, callbacks, module=None, **settings):
    pl.seed_everything(1)
    module = module or Boring()
    trainer = make_trainer(folder, callbacks, **settings)
    trainer.fit(module)
    return trainer, module


def test_every_epoch_is_bit_identical_to_none(tmp_path):
    """Weights, statistics and random numbers, with dropout and BatchNorm in the network."""
    _, plain = fit(tmp_path, [])
    rng = torch.get_rng_state()
    watching = DatapathCallback(["pgd", "fp16", "brightness"], every_n_epochs=1, num_paths=4, on_failure="raise")
    trainer, module = fit(tmp_path, [watching])
    assert torch.equal(rng, torch.get_rng_state())
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, module.state_dict()[name]), name
    conditions = {tag.split("/")[1] for tag in trainer.callback_metrics if tag.startswith("datapath/")}
    assert {"pgd", "fp16"} < conditions
    for part in (plain, module):
        assert not any(each._forward_hooks or each._forward_pre_hooks for each in part.modules())


def test_every_n_epochs_and_the_end(tmp_path, monkeypatch):
    seen = []
    watching = DatapathCallback(every_n_epochs=2)
    monkeypatch.setattr(watching, "_measure_and_log", lambda trainer, _, in_loop: seen.append(trainer.current_epoch))
    fit(tmp_path, [watching], max_epochs=5, num_sanity_val_steps=1)
    assert seen == [1, 3, 5]


def test_a_failure_warns_and_training_goes_on(tmp_path):
    """Pixels of 0 to 1 that are said to be normalised; the other condition is measured all the same."""
    wrong = {"mean": 0.9, "std": 0.2, "num_paths": 0}
    with pytest.warns(
        UserWarning, match="DatapathCallback: nothing was measured under pgd. ValueError: Expected pixels"
    ):
        trainer, _ = fit(tmp_path, [watching := DatapathCallback(["pgd", "fp16"], **wrong)])
    assert trainer.global_step == 8
    assert [found.condition for found in watching.datapaths] == ["fp16"]
    with pytest.raises(ValueError, match="Expected pixels"):
        fit(tmp_path, [DatapathCallback("pgd", on_failure="raise", **wrong)])


def test_a_figure_that_cannot_be_drawn_costs_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_robust.callbacks.datapath.report.datapath_figures", lambda *_: {"x": lambda: 1 / 0})
    with pytest.warns(UserWarning, match="not all is shown. ZeroDivisionError"):
        trainer, _ = fit(tmp_path, [DatapathCallback(num_paths=0)], logger=CSVLogger(tmp_path))
    assert "datapath/pgd/parting_depth" in trainer.callback_metrics


def test_without_validation_batches_it_says_so(tmp_path):
    with pytest.warns(UserWarning, match="Expected validation batches to compare activations on"):
        fit(tmp_path, [DatapathCallback()], limit_val_batches=0)


def test_rejects_arguments():
    for settings in ({"steps": 0}, {"num_samples": 0}, {"every_n_epochs": 0}, {"num_paths": -1}):
        with pytest.raises(ValueError, match=f"Expected `{next(iter(settings))}` of at least"):
            DatapathCallback(**settings)
    with pytest.raises(ValueError, match="Expected `factor` above 1"):
        DatapathCallback(factor=1.0)
    with pytest.raises(ValueError, match="at least one condition"):
        DatapathCallback([])
    with pytest.raises(ValueError, match=r"but got 'jepg'. Did you mean 'jpeg_"):
        DatapathCallback("jepg")
    with pytest.raises(ValueError, match="Expected `eps`"):
        DatapathCallback(eps=-1)


def test_rejects_layers_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"'net.9' matches none. Near ones are 'net"):
        fit(tmp_path, [DatapathCallback(layers=["net.9"])])


def test_tasks_other_than_classification_have_no_critical_channels(tmp_path):
    class Regression(Boring):
        def _loss(self, batch):
            return nn.functional.mse_loss(self(batch[0]), batch[0].mean((2, 3))[:, :1].expand(-1, 4))

        def forward(self, images):
            return {"out": self.net(images), "note": "a dict"}["out"][:, None]

        def validation_step(self, batch, batch_idx):
            pass

    module = Regression()
    module.training_step = lambda batch, batch_idx: module(batch[0]).square().mean()
    (found,) = measure(module, Pictures(), tmp_path, num_paths=8)
    assert found.paths is None
    assert all(layer.relative > 0 for layer in found.layers)


def test_files_where_the_logger_has_no_pictures(tmp_path):
    logger = CSVLogger(tmp_path, version=0)
    fit(tmp_path, [DatapathCallback("fgsm", num_paths=4)], logger=logger)
    found = {path.name.split("-")[0] for path in (tmp_path / "lightning_logs/version_0/figures/datapath").rglob("*.*")}
    assert found == {"growth", "channels", "paths", "layers", "common_channels"}
    text = next((tmp_path / "lightning_logs/version_0/figures/datapath").rglob("layers*.csv")).read_text()
    assert text.splitlines()[1].startswith("net.0,")


def large(layers=64, width=512, classifier=True):
    """As of a deep network."""
    generator = torch.Generator().manual_seed(0)
    energy = torch.rand(3, layers, width, generator=generator, dtype=torch.float64)
    found = [LayerDivergence(f"stages.{i}.conv", *energy[:, i]) for i in range(layers)]
    classes = torch.tensor([0, 0, 1])
    sides = [
        CriticalChannels(
            each, torch.ones(3), torch.ones(3), list(torch.rand(layers, 3, width, generator=generator) < 0.3)
        )
        for each in (classes, 1 - classes)
    ]
    overlaps = [Overlap(0.9 - 0.01 * i, 0.6, 0.5, 0.01 * i) for i in range(layers)]
    paths = Paths(list(range(layers)), *sides, overlaps) if classifier else None
    return Datapath("pgd", 3, found, 1.5, 0.5, paths)


@pytest.mark.parametrize("classifier", [True, False])
def test_figures_of_a_deep_network_are_bounded(classifier):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = {end: draw() for end, draw in datapath_figures(large(classifier=classifier)).items()}
    assert list(figures) == ["growth", "channels", *(["paths"] if classifier else [])]
    for figure in figures.values():
        assert figure.get_figwidth() <= 7
        assert figure.get_figheight() <= 10
    # 64 layers x 512 channels are 32,768
    assert figures["channels"].axes[0].images[0].get_array().shape == (24, 6)
    (line,) = [line for line in figures["growth"].axes[0].lines if line.get_label() == "under the PGD attack"]
    assert line.get_xdata().tolist() == pytest.approx([100 * value for value in large().values])


def test_figures_and_tables_survive_what_is_not_finite():
    broken = [LayerDivergence("a", torch.ones(2), torch.tensor([math.inf, 1.0]))]
    dead = [LayerDivergence("a", torch.zeros(2), torch.zeros(2), torch.zeros(2))]
    for layers, count in ((broken, 2), (dead, 0)):
        found = Datapath("fp16", 1, layers, 1.5)
        figures = datapath_figures(found)
        assert len(figures) == count
        for draw in figures.values():
            draw().savefig("/dev/null", format="png")
        assert datapath_tables(found)["layers"][1]
        assert all(math.isfinite(value) for value in datapath_scalars(found).values())
    assert describe_datapath(Datapath("fp16", 1, dead, 1.5)) == "Fp16 rounding changes nothing: good."
    assert judge(Datapath("fp16", 1, broken, 1.5)) == "Fp16 rounding overflows: look at a"


def course(changes, start=0.2, condition="pgd"):
    """Layers that move by these shares."""
    layers = [
        LayerDivergence(f"l{i}", torch.ones(1), torch.tensor([c**2], dtype=torch.double)) for i, c in enumerate(changes)
    ]
    return Datapath(condition, 1, layers, 1.5, start)


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        (course([0.1, 0.04]), "The PGD attack fades from 20 % of the input to 4 % at l1: good"),
        # 0.25 -> 0.6 is the largest step: 2.4 times
        (course([0.25, 0.6, 0.8]), "The PGD attack grows from 20 % of the input to 80 % at l2: look at l1 (2.4 x)"),
        (course([0.3, 0.22]), "The PGD attack keeps its size, from 20 % of the input to 22 % at l1"),
        (course([2e-4, 9e-4], None, "fp16"), "Fp16 rounding changes l1 by 0.09 % only: good"),
        (
            course([2e-3, 9e-2], None, "bf16"),
            "Bf16 rounding grows from 0.2 % after the first layer to 9 % at l1: look at l1 (45 x)",
        ),
    ],
)
def test_what_is_good_and_what_is_bad_in_one_sentence(result, sentence):
    assert judge(result) == sentence
    assert describe_datapath(result).startswith(f"{sentence}.")


def test_diverging_and_merging_layers():
    found = large()
    # 0.9 - 0.01 i < 0.6 from layer 31 on; 0.01 i > 0.5 from layer 51 on
    assert (found.paths.diverging, found.paths.merging) == (31, 51)
    assert datapath_scalars(found)["datapath/pgd/diverging_depth"] == pytest.approx(31 / 64)
    assert datapath_scalars(found)["datapath/pgd/changed"] == 1
    said = "3 of 3 predictions change: from stages.51.conv on they rest on the wrong class's channels."
    assert said in describe_datapath(found)
