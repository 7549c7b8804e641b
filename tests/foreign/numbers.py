"""What each technique's logged numbers must be, from computations by hand."""

import math

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_robust.functional import drawn_layers

from . import by_hand
from .runner import fit, loader_of, plain_run, state_of, untrained, validated

EPS = 0.05
CLOSE = {"rel": 2e-4, "abs": 1e-5}
"""fp32 sums in another order."""


def has_batchnorm(guest):
    return any(isinstance(part, _BatchNorm) for part in untrained(guest).modules())


def clean(metrics):
    """The module's own metrics of a validation."""
    return {k: v for k, v in metrics.items() if k.startswith("val")}


def check_validated(run):
    """What the last validation logged is what a fresh Trainer finds of the module that the fit returned."""
    assert clean(run.tape.validations[-1]) == pytest.approx(clean(validated(run.guest, run.state, run.val)), **CLOSE)


def check_unchanged(run):
    """Weights and validations are those of the fit without the technique, bit for bit."""
    alone = plain_run(run.guest)
    for name, tensor in run.state.items():
        assert torch.equal(tensor, alone.state[name]), name
    for mine, others in zip(run.tape.validations, alone.tape.validations, strict=True):
        assert clean(mine) == clean(others)


def check_robust_validation(run):
    """Every metric under FGSM, of batches attacked by hand."""
    attacked = loader_of(by_hand.fgsm(run.guest, run.state, batch, EPS) for batch in run.val)
    for name, value in clean(validated(run.guest, run.state, attacked)).items():
        assert run.logged[f"adversarial/{name.replace('/', '_')}@{EPS:g}"] == pytest.approx(value, rel=1e-3, abs=1e-4)
    assert run.logged[f"adversarial/val_loss@{EPS:g}"] >= run.logged["val_loss"]


def check_attacked(run):
    """A loss under attack that is above the clean one, and at most an attack a step."""
    assert run.logged[f"adversarial/val_loss@{EPS:g}"] > run.logged["val_loss"]
    assert run.logged["adversarial/eps"] == pytest.approx(EPS)
    assert run.logged["adversarial/passes"] >= 1


def check_fgsm_training(run):
    """The first step is a plain one on a batch that was attacked by hand."""
    check_attacked(run)
    assert run.logged["adversarial/passes"] == 1

    def attacked(module, train, val):
        return module, loader_of(by_hand.fgsm(run.guest, state_of(module), batch, EPS) for batch in train), val

    _assert_first_step(run, fit(run.guest, change=attacked, max_steps=1).tape.snapshots[0])


def check_embedding(run):
    assert run.logged["adversarial/eps"] == pytest.approx(EPS)
    assert run.logged["adversarial/passes"] == 2


def check_freelb(run):
    """Two passes train, and the first of them also moves the perturbation."""
    assert run.logged["adversarial/eps"] == pytest.approx(EPS)
    assert run.logged["adversarial/passes"] == 1


def check_fgm_training(run):
    """The first step is a plain one with the embedding moved along its gradient, sample by sample."""
    assert run.logged["adversarial/passes"] == 1
    path = run.guest.embedding

    def moved(module, train, val):
        batches = list(train)
        twin = by_hand.silenced(run.guest, state_of(module))
        outputs = []
        hook = twin.get_submodule(path).register_forward_hook(lambda m, args, output: outputs.append(output))
        gradients = torch.autograd.grad(by_hand.loss_of(twin, batches[0]), outputs)
        hook.remove()
        length = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()[:, None, None]
        steps = iter([EPS * g / length for g in gradients])
        module.get_submodule(path).register_forward_hook(lambda m, args, output: output + next(steps))
        return module, loader_of(batches), val

    one = fit(run.guest, change=moved, max_steps=1, num_sanity_val_steps=0, limit_val_batches=0).tape.snapshots[0]
    _assert_first_step(run, one)


def _assert_first_step(run, by_hand_state):
    """The weights after one step are those by hand, ten times nearer than those of a step without the technique."""
    names = [name for name, tensor in by_hand_state.items() if tensor.is_floating_point()]
    mine, hand, alone = (
        torch.cat([state[name].flatten().double() for name in names])
        for state in (run.tape.snapshots[0], by_hand_state, plain_run(run.guest).tape.snapshots[0])
    )
    assert (mine - hand).norm() < 0.1 * (mine - alone).norm()


def _parameters(run):
    return dict(run.module.named_parameters())


def check_uniform(run):
    """The mean of the snapshots, and the raw weights validated beside it."""
    epochs = run.callback.every == "epoch"
    snapshots = run.tape.snapshots[1::2] if epochs else run.tape.snapshots
    assert run.logged["swa/snapshots"] == len(snapshots)
    average = by_hand.mean_of(snapshots)
    for name, tensor in _parameters(run).items():
        assert torch.allclose(tensor.double(), average[name], rtol=1e-5, atol=1e-7), name
    _check_raw(run)


def check_ema(run):
    """The closed form: weights count half after two steps, the first snapshots more, as without a start."""
    decays = [0.5 ** ((run.tape.steps[-1] - step) / 2) for step in run.tape.steps]
    total = sum(decays)
    for name, tensor in _parameters(run).items():
        mean = sum(d * s[name].double() for d, s in zip(decays, run.tape.snapshots, strict=True)) / total
        assert torch.allclose(tensor.double(), mean, rtol=1e-5, atol=1e-7), name
    _check_raw(run)


def _check_raw(run):
    """``swa/raw/`` is a validation of the weights that training ended with."""
    raw = validated(run.guest, run.tape.snapshots[-1], run.val)
    for name, value in clean(raw).items():
        assert run.logged[f"swa/raw/{name}"] == pytest.approx(value, **CLOSE)


def check_soup(run):
    assert run.logged["soup/score"] == pytest.approx(validated(run.guest, run.state, run.val)["val_loss"], **CLOSE)
    assert run.logged["soup/score"] <= run.logged["soup/best_ingredient"] + 1e-6
    best = min(each["val_loss"] for each in run.tape.validations)
    assert run.logged["soup/best_ingredient"] == pytest.approx(best, **CLOSE)


def check_wise_ft(run):
    assert run.logged["wise_ft/in_distribution"] == pytest.approx(
        validated(run.guest, run.state, run.val)["val_loss"], **CLOSE
    )
    alpha = run.logged["wise_ft/alpha"]
    start, end = _with_products(run.tape.start), _with_products(run.tape.snapshots[-1])
    for name, tensor in _with_products(run.state).items():
        if name in dict(run.module.named_parameters()) or name.endswith("product"):
            mean = (1 - alpha) * start[name].double() + alpha * end[name].double()
            assert torch.allclose(tensor.double(), mean, rtol=1e-5, atol=1e-6), name


def _with_products(state):
    """The weights, with the product of an adapter's factors in place of both."""
    products = {
        name.replace("lora_A", "") + ".product": state[name.replace("lora_A", "lora_B")].double() @ tensor.double()
        for name, tensor in state.items()
        if "lora_A" in name
    }
    return {name: tensor for name, tensor in state.items() if "lora_" not in name} | products


def check_criticality(run):
    assert run.logged["criticality/trained"] == pytest.approx(
        validated(run.guest, run.state, run.val)["val_loss"], **CLOSE
    )


def check_initialised(run):
    """Training began from orthogonal rows or columns, times one number for each layer."""
    layers = drawn_layers(untrained(run.guest))
    assert layers
    for name in layers:
        matrix = run.tape.start[f"{name}.weight"].flatten(1)
        gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
        torch.testing.assert_close(gram / gram.diagonal().mean(), torch.eye(len(gram)), atol=1e-4, rtol=0)


def check_lazy(run):
    """The movement of all weights, and what FGSM does to the first validation batch."""
    names = [n for n, p in run.module.named_parameters() if p.is_floating_point()]
    assert run.logged["lazy/movement"] == pytest.approx(by_hand.movement(run.tape.start, run.state, names), rel=1e-4)
    if run.guest.kind == "tokens":
        return
    batch = next(iter(run.val))
    attacked = by_hand.fgsm(run.guest, run.state, batch, EPS)
    if run.guest.classes is not None and len(by_hand.get(batch, run.guest.classes).shape) == 1:
        right = by_hand.get(batch, run.guest.classes)
        before, after = (_logits(run, each).argmax(1) for each in (batch, attacked))
        expected = ((before == right) & (after != right)).sum() / (before == right).sum()
        tag = "lazy/fgsm"
    else:
        before, after = (_loss(run, each) for each in (batch, attacked))
        expected, tag = (after - before) / abs(before), "lazy/fgsm_loss"
    assert math.isnan(expected) or run.logged[tag] == pytest.approx(float(expected), rel=1e-3, abs=1e-5)
    assert any(tag.startswith("lazy/single_step") for tag in run.logged) or math.isnan(expected)


def _logits(run, batch):
    return by_hand.outputs(run.guest, by_hand.silenced(run.guest, run.state), batch)[0]


def _loss(run, batch):
    """In a module of its own each time, since a training step may fill a queue."""
    return by_hand.loss_of(by_hand.silenced(run.guest, run.state), batch).item()


def check_datapath(run):
    """The divergence of the attacked inputs and of the last layer, by hand."""
    if run.guest.kind == "tokens":
        assert any(tag.startswith("datapath/bf16/divergence/") for tag in run.logged)
        return
    batches = list(run.val)
    attacked = [by_hand.fgsm(run.guest, run.state, batch, EPS) for batch in batches]
    module = by_hand.silenced(run.guest, run.state)
    stem = "datapath/fgsm/divergence/"
    path = [tag.removeprefix(stem) for tag in run.logged if tag.startswith(stem) and "#" not in tag][-1]
    clean, moved = (by_hand.activations(run.guest, module, path, each) for each in (batches, attacked))
    assert run.logged[stem + path] == pytest.approx(by_hand.divergence(clean, moved), rel=1e-3)
    assert run.logged["datapath/fgsm/inputs"] > 0


def check_parity(run):
    """The distance of bf16 outputs to fp64 ones on the first samples, by hand; half precision is emulated beside it."""
    assert math.isfinite(run.logged["parity/emulated-fp16/rel_l2"])
    batch = by_hand.first_rows(next(iter(run.val)), 2)
    exact, rounded = (_outputs_in(dtype, run, batch) for dtype in (torch.float64, torch.bfloat16))
    expected = [
        (d.double() - r).norm() / _spread(r) for r, d in zip(exact, rounded, strict=True) if r.dtype == torch.float64
    ]
    assert run.logged["parity/torch-bf16/rel_l2"] == pytest.approx(max(expected).item(), rel=1e-3)


def _spread(reference):
    """The distance from the mean; the length of a reference that spreads over fewer than 64 steps of fp16."""
    spread = (reference - reference.mean()).norm()
    return spread if spread > 64 * 2.0**-11 * reference.norm() else reference.norm()


def _outputs_in(dtype, run, batch):
    module = by_hand.silenced(run.guest, run.state).to(dtype)
    with torch.no_grad():
        return by_hand.outputs(run.guest, module, by_hand.cast(batch, dtype))
