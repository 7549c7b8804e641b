"""LazyTrainingCallback against what is known of small networks, and on what users bring along."""

import math
import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_robust import LazyTrainingCallback, NoEffectWarning
from lightning_robust.callbacks.lazy_training.figure import Measurement, laziness_figures, longest_step
from lightning_robust.callbacks.lazy_training.measure import first_floating
from lightning_robust.callbacks.lazy_training.report import laziness_table
from lightning_robust.structures import tensors_in

from ...boring import Boring, make_trainer


class Small(pl.LightningModule):
    """A classifier or regression of 6 numbers with any network."""

    def __init__(self, net, loss=nn.functional.cross_entropy, lr=0.1):
        super().__init__()
        self.net, self.loss, self.lr = net, loss, lr

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        outputs = self(batch[0])
        return self.loss(self.chosen(outputs), batch[1])

    def chosen(self, outputs):
        return outputs["logits"][0] if isinstance(outputs, dict) else outputs

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


def data(targets=None, count=32):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(count, 6, generator=generator)
    return DataLoader(TensorDataset(inputs, inputs[:, :3].argmax(1) if targets is None else targets(inputs)), 16)


def lazy_callback(*args, **settings):
    """Which does not judge: six numbers are so few that the step is most of an input."""
    return LazyTrainingCallback(*args, **({"lazy_below": 0.0, "on_failure": "raise"} | settings))


def fit(folder, module, callback=None, train=None, val=None, **settings):
    pl.seed_everything(1)
    callback = callback or lazy_callback()
    trainer = make_trainer(folder, [callback], **settings)
    trainer.fit(module, train or data(), val)
    return callback, trainer


def last(callback):
    return callback.history[-1].numbers


def mlp():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def test_linear_network_has_no_gap_and_no_signs(tmp_path):
    """Nothing to rectify; one layer with a bias is linear in its weights, to the rounding of fp32."""
    module = Small(nn.Linear(6, 3))
    start = {name: tensor.detach().clone() for name, tensor in module.named_parameters()}
    callback, _ = fit(tmp_path, module, val=data(), max_epochs=3)
    numbers = last(callback)
    assert numbers["linearization_gap"] < 1e-5
    assert not any(tag.startswith("sign_changes") for tag in numbers)
    moved, length = (
        math.hypot(*(tensor.norm().item() for tensor in tensors))
        for tensors in ([p.detach() - start[n] for n, p in module.named_parameters()], start.values())
    )
    assert numbers["movement"] == pytest.approx(moved / length, rel=1e-5)
    assert numbers["movement/net"] == numbers["movement"]


def test_movement_grows_with_the_learning_rate_and_is_zero_without(tmp_path):
    found = [last(fit(tmp_path, Small(mlp(), lr=lr), val=data())[0]) for lr in (0.0, 0.01, 1.0)]
    assert found[0]["movement"] == found[0]["sign_changes"] == found[0]["neuron_movement"] == 0
    assert "linearization_gap" not in found[0]
    assert 0 < found[1]["movement"] < found[2]["movement"]
    assert 0 < found[1]["linearization_gap"] < found[2]["linearization_gap"]


def test_a_wide_network_at_a_large_scale_is_lazier(tmp_path):
    """alpha * (f - f0) with a learning rate over alpha**2 (Chizat et al. 2019): the larger alpha, the less moves."""

    class Scaled(nn.Module):
        def __init__(self, alpha):
            super().__init__()
            torch.manual_seed(0)
            self.net, self.alpha = mlp(), alpha
            self.first = [p.detach().clone() for p in self.net.parameters()]

        def forward(self, inputs):
            start = dict(zip(dict(self.net.named_parameters()), self.first, strict=True))
            return self.alpha * (self.net(inputs) - torch.func.functional_call(self.net, start, (inputs,)))

    found = []
    for alpha in (1.0, 100.0):
        lazy = lazy_callback(kernel_samples=16)
        fit(tmp_path, Small(Scaled(alpha), lr=0.5 / alpha**2), lazy, val=data(), max_epochs=20)
        found.append(last(lazy))
    assert found[1]["movement"] < found[0]["movement"] / 20
    assert found[1]["linearization_gap"] < found[0]["linearization_gap"] / 5
    assert found[1]["kernel_alignment"] > 0.999 > found[0]["kernel_alignment"]


def test_single_step_of_a_linear_classifier_by_hand(tmp_path):
    """The step along the gradient of the cross entropy, computed here from the definition."""
    module = Small(nn.Linear(6, 3))
    lazy = lazy_callback([1.0, 3.0], eps=0.25, bounds="none")
    fit(tmp_path, module, lazy, val=data(), max_epochs=30)
    inputs, targets = next(iter(data()))
    leaf = inputs.clone().requires_grad_()
    nn.functional.cross_entropy(module(leaf), targets).backward()
    right = module(inputs).argmax(1) == targets
    for beta in (1.0, 3.0):
        radius = beta * inputs.norm(dim=1, keepdim=True) / math.sqrt(6)
        moved = inputs + radius * leaf.grad / leaf.grad.norm(dim=1, keepdim=True)
        changed = (module(moved).argmax(1) != targets) & right
        assert last(lazy)[f"single_step@{beta:g}"] == pytest.approx(changed.sum().item() / right.sum().item())
    changed = (module(inputs + 0.25 * leaf.grad.sign()).argmax(1) != targets) & right
    assert last(lazy)["fgsm"] == pytest.approx(changed.sum().item() / right.sum().item())
    assert 0 < last(lazy)["single_step@1"] < last(lazy)["single_step@3"]


def test_other_tasks_log_the_growth_of_the_loss(tmp_path):
    def squared(outputs, targets):
        return nn.functional.mse_loss(outputs[:, 0], targets)

    regression = data(lambda inputs: inputs.sum(1))
    callback, _ = fit(tmp_path, Small(mlp(), squared), train=regression, val=regression)
    tags = {tag for tag in last(callback) if tag.startswith(("single", "fgsm"))}
    assert tags == {"single_step_loss@0.5", "single_step_loss@1", "single_step_loss@2", "fgsm_loss"}
    assert 0 < last(callback)["single_step_loss@0.5"] < last(callback)["single_step_loss@2"]


class Odd(nn.Module):
    """Tied weights, a layer used twice, functional rectifiers, and a dict of outputs that begins with integers."""

    def __init__(self):
        super().__init__()
        self.first, self.twice = nn.Linear(6, 6), nn.Linear(6, 6)
        self.twice.weight = self.first.weight
        self.head = nn.Linear(6, 3)

    def forward(self, inputs):
        hidden = self.twice(self.twice(self.first(inputs).relu()).relu()).relu()
        logits = self.head(hidden)
        return {"count": torch.arange(3), "logits": (logits, logits.softmax(1))}


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed", "64-true"])
def test_odd_networks_in_every_precision(tmp_path, precision):
    callback, _ = fit(tmp_path, Small(Odd()), val=data(), precision=precision)
    numbers = last(callback)
    assert {"movement/net.first", "movement/net.twice", "movement/net.head"} <= numbers.keys()
    assert {
        "sign_changes/net.first",
        "sign_changes/net.twice",
        "linearization_gap",
        "single_step@1",
        "fgsm",
    } <= numbers.keys()
    assert callback._start.keys() == {"net.first.weight", "net.first.bias", "net.twice.bias", *_head()}


def _head():
    return {"net.head.weight", "net.head.bias"}


def test_recurrent_networks_are_seen_through(tmp_path):
    """Their weights are kept in a list beside the parameters, which must not hide other values from the measurement."""

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.LSTM(2, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, inputs):
            return self.head(self.cell(inputs.unflatten(1, (3, 2)))[0][:, -1])

    numbers = last(fit(tmp_path, Small(Last()), val=data(), max_epochs=2)[0])
    assert 0 < numbers["linearization_gap"] < 1
    assert numbers["movement/net.cell"] > 0


def test_compiled_networks_measure_as_plain_ones(tmp_path):
    """They run eagerly while they are measured; the names of the layers are the same."""
    torch.manual_seed(0)
    plain, part = Small(mlp()), Small(mlp())
    part.load_state_dict(plain.state_dict())
    part.net = torch.compile(part.net, backend="eager")
    found = [last(fit(tmp_path, module, val=data())[0]) for module in (plain, part)]
    assert found[0].keys() == found[1].keys()
    assert all(found[1][tag] == pytest.approx(value, rel=1e-4) for tag, value in found[0].items())
    assert found[0]["linearization_gap"] > 0


class _NoForwardMode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (x > 0)


def test_without_forward_mode_the_gap_is_a_difference(tmp_path):
    class Own(nn.Module):
        def forward(self, inputs):
            return _NoForwardMode.apply(inputs)

    gaps = []
    for rectifier in (nn.ReLU(), Own()):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 16), rectifier, nn.Linear(16, 3))
        gaps.append(last(fit(tmp_path, Small(net), val=data(), max_epochs=4)[0])["linearization_gap"])
    assert gaps[1] == pytest.approx(gaps[0], rel=0.05)


def test_batchnorm_statistics_and_generators_are_as_without_it(tmp_path):
    states = []
    for callbacks in ([], [LazyTrainingCallback(kernel_samples=2, on_failure="raise")]):
        pl.seed_everything(1)
        module = Boring()
        make_trainer(tmp_path, callbacks).fit(module)
        states.append((module.state_dict(), torch.get_rng_state()))
    assert all(torch.equal(states[0][0][name], states[1][0][name]) for name in states[0][0])
    assert torch.equal(states[0][1], states[1][1])


def test_measures_training_batches_without_validation(tmp_path):
    callback, trainer = fit(tmp_path, Small(mlp()), val=data(), limit_val_batches=0, max_epochs=3)
    assert [point.step for point in callback.history] == [2, 4, 6]
    assert trainer.callback_metrics["lazy/movement"] == pytest.approx(last(callback)["movement"])


@pytest.mark.parametrize(("every", "expected"), [(1, [2, 4, 6, 8, 10]), (2, [2, 4, 8, 10]), (7, [2, 10])])
def test_every_n_epochs_measures_the_first_and_the_last(tmp_path, every, expected):
    lazy = lazy_callback(every_n_epochs=every)
    fit(tmp_path, Small(mlp()), lazy, val=data(), max_epochs=5)
    assert [point.step for point in lazy.history] == expected


def test_an_early_end_is_measured(tmp_path):
    lazy = lazy_callback(every_n_epochs=2)
    _, trainer = fit(tmp_path, Small(mlp()), lazy, val=data(), max_epochs=-1, max_steps=5)
    assert lazy.history[-1].step == trainer.global_step == 5
    assert trainer.callback_metrics["lazy/movement"] == pytest.approx(last(lazy)["movement"])


def test_the_probe_is_the_first_validation_batch_and_survives_a_resume(tmp_path):
    lazy, trainer = fit(tmp_path, Small(mlp()), lazy_callback(num_samples=5), val=data(), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    assert torch.equal(tensors_in(lazy._probe.batch)[0], data().dataset.tensors[0][:5])
    other = DataLoader(TensorDataset(torch.rand(32, 6), torch.zeros(32).long()), 16)
    resumed = lazy_callback(num_samples=5)
    trainer = make_trainer(tmp_path, [resumed], max_epochs=3)
    trainer.fit(Small(mlp()), data(), other, ckpt_path=tmp_path / "stopped.ckpt", weights_only=True)
    assert torch.equal(tensors_in(resumed._probe.batch)[0], tensors_in(lazy._probe.batch)[0])
    assert [point.step for point in resumed.history] == [2, 4, 6]
    assert all(torch.equal(resumed._start[name], tensor) for name, tensor in lazy._start.items())


def test_a_second_fit_begins_anew(tmp_path):
    module = Small(mlp())
    first, _ = fit(tmp_path, module, val=data())
    start = dict(first._start)
    fit(tmp_path, module, first, val=data())
    assert len(first.history) == 2
    assert not torch.equal(first._start["net.0.weight"], start["net.0.weight"])


def test_what_cannot_be_measured_is_left_out_with_one_warning(tmp_path):
    """Indices cannot be moved; everything else is measured, and training goes on."""
    indices = DataLoader(TensorDataset(torch.randint(9, (32, 4)), torch.arange(32) % 3), 16)
    net = nn.Sequential(nn.Embedding(9, 5), nn.Flatten(), nn.Linear(20, 3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        callback, trainer = fit(tmp_path, Small(net), lazy_callback(on_failure="warn"), indices, indices, max_epochs=3)
    told = [str(w.message) for w in caught if "LazyTrainingCallback" in str(w.message)]
    assert len(told) == 2
    assert "could not measure FGSM" in told[1]
    assert "Expected one floating-point input of Small to perturb" in told[0]
    assert trainer.global_step == 6
    assert {"movement", "linearization_gap"} <= last(callback).keys()
    assert "fgsm" not in last(callback)


def test_a_wrong_key_is_an_error_in_the_first_batch(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"LazyTrainingCallback: Expected the batch to have a part 7"):
        fit(tmp_path, Small(mlp()), lazy_callback(input_key=7, on_failure="warn"), val=data())


def test_failures_raise_if_wanted(tmp_path):
    indices = DataLoader(TensorDataset(torch.randint(9, (32, 4)), torch.arange(32) % 3), 16)
    net = nn.Sequential(nn.Embedding(9, 5), nn.Flatten(), nn.Linear(20, 3))
    with pytest.raises(RuntimeError, match="could not measure single gradient step"):
        fit(tmp_path, Small(net), lazy_callback(), indices, indices)


@pytest.mark.filterwarnings("ignore:Total length of `DataLoader` across ranks is zero")
def test_an_empty_validation_loader_leaves_the_movement(tmp_path):
    empty = DataLoader(TensorDataset(torch.zeros(0, 6), torch.zeros(0).long()), 16)
    with pytest.warns(UserWarning, match="could not measure outputs and attacks. No batch was seen"):
        callback, _ = fit(tmp_path, Small(mlp()), lazy_callback(on_failure="warn"), val=empty)
    assert {tag.partition("/")[0] for tag in last(callback)} == {"movement", "neuron_movement"}


def test_says_when_nothing_was_measured(tmp_path):
    class Growing(Small):
        def on_train_start(self):
            self.late = nn.Linear(1, 1)

    with pytest.warns(NoEffectWarning, match="measured nothing"), pytest.warns(UserWarning, match="came or went"):
        fit(tmp_path, Growing(mlp()), LazyTrainingCallback(), val=data())


def test_warns_when_lazy_and_vulnerable_and_only_then(tmp_path):
    """The same run with thresholds on either side of what is measured."""
    lazy, _ = fit(tmp_path, Small(mlp(), lr=0.01), lazy_callback([8.0]), val=data())
    movement, share = last(lazy)["movement"], last(lazy)["single_step@8"]
    assert share > 0.1
    below, above = LazyTrainingCallback([8.0], lazy_below=2 * movement, vulnerable_above=share / 2), None
    with pytest.warns(UserWarning, match=r"lazy and the network is easily fooled.*`adversarial`.*larger learning rate"):
        fit(tmp_path, Small(mlp(), lr=0.01), below, val=data())
    for thresholds in ((movement / 2, share / 2), (2 * movement, share)):
        above = LazyTrainingCallback([8.0], lazy_below=thresholds[0], vulnerable_above=thresholds[1])
        fit(tmp_path, Small(mlp(), lr=0.01), above, val=data())


@pytest.mark.parametrize(
    "settings", [{"betas": []}, {"betas": [0.0]}, {"num_samples": 0}, {"every_n_epochs": 0}, {"kernel_samples": -1}]
)
def test_rejects_numbers_out_of_range(settings):
    with pytest.raises(ValueError, match="Expected `"):
        LazyTrainingCallback(**settings)


def test_first_floating_says_what_it_wanted():
    assert first_floating({"a": torch.arange(2), "b": [torch.ones(1).bfloat16()]}).dtype == torch.float32
    with pytest.raises(TypeError, match="Expected `forward` to return a floating-point tensor"):
        first_floating(torch.arange(2))


def test_table_has_a_line_for_each_layer_and_the_whole():
    numbers = {"movement": 0.5, "movement/a": 0.25, "neuron_movement/a": 3.0, "sign_changes/a": 0.125}
    columns, rows = laziness_table(numbers)
    assert rows == [["a", "0.25", "3", "0.125"], ["whole network", "0.5", "", ""]]
    assert len(columns) == 4


def drawn(history):
    return {tag.removeprefix("lazy/"): draw().axes[0] for tag, draw in laziness_figures(history, 0.15, 0.5).items()}


def test_figures_draw_what_was_measured():
    numbers = {"sign_changes": 0.2, "kernel_alignment": 0.75, "single_step@2": 0.7, "fgsm": 0.4}
    points = [Measurement(n, {"movement": 0.1 * n, **numbers}) for n in (1, 2)]
    panels = drawn(points)
    # the cosine is drawn as a distance; the last line is the threshold
    lines = [line.get_xydata().tolist() for line in panels["distance_from_start"].lines[:-1]]
    assert lines == [[[1, 0.1], [2, 0.2]], [[1, 0.2], [2, 0.2]], [[1, 0.25], [2, 0.25]]]
    assert panels["distance_from_start"].figure.get_suptitle() == "The weights moved by 20 % of their length: not lazy"
    labels = panels["fooled_by_one_step"].get_legend_handles_labels()[1]
    assert labels == ["step of 2 |x| / √d", "FGSM"]
    assert panels["both"].lines[0].get_xydata().tolist() == [[0.1, 0.7], [0.2, 0.7]]
    assert panels["both"].figure.get_suptitle() == "Not lazy, but easily fooled"
    assert drawn(points[:1])["both"].figure.get_suptitle().startswith("Lazy and easily fooled")
    assert longest_step({"single_step_loss@1": 3.0}) is None
    growth = [Measurement(1, {"movement": 0.1, "single_step_loss@1": 3.0, "single_step_loss@2": 9.0})]
    assert drawn(growth)["both"].collections[0].get_offsets().tolist() == [[0.1, 9.0]]
    assert list(drawn([Measurement(1, {"movement": 0.0})])) == ["distance_from_start"]
