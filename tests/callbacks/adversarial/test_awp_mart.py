"""Methods that look further than the inputs: AWP and MART, and SAM around them."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lightning_robust import AdversarialCallback
from lightning_robust.callbacks.adversarial import AWP, MART
from lightning_robust.functional.attacks import fgsm, pgd
from lightning_robust.functional.mart import mart_losses
from lightning_robust.functional.weight_perturbation import perturbed_weights

from ...boring import Boring, make_trainer

EPS = 0.1


class LinearClassifier(pl.LightningModule):
    """One step of SGD on one batch shows its gradient; with two classes that of the inputs has one sign everywhere."""

    def __init__(self, optimizer=torch.optim.SGD):
        super().__init__()
        torch.manual_seed(3)
        self.layer, self.optimizer = nn.Linear(12, 2), optimizer
        self.seen = []

    def forward(self, images):
        return self.layer(images.flatten(1))

    def training_step(self, batch, batch_idx):
        if self.training and torch.is_grad_enabled():
            self.seen.append(self.layer.weight.detach().clone())
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return self.optimizer(self.parameters(), lr=0.5)

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(1)
        images = 0.3 + 0.4 * torch.rand(8, 3, 2, 2, generator=generator)
        return DataLoader(TensorDataset(images, torch.arange(8) % 2), 8)


def fitted(folder, module, **settings):
    """The weight and bias before and after a step, and the batch."""
    callback = AdversarialCallback(eps=EPS, val_eps=[], **settings)
    (batch,) = module.train_dataloader()
    before = [each.detach().clone() for each in module.layer.parameters()]
    make_trainer(folder, [callback], max_epochs=1, limit_val_batches=0).fit(module)
    return before, [each.detach().clone() for each in module.layer.parameters()], batch


def at(weights, images, labels, each=False):
    logits = nn.functional.linear(images.flatten(1), *weights)
    return cross_entropy(logits, labels, reduction="none" if each else "mean")


def gradients(weights, images, labels):
    leaves = [each.clone().requires_grad_() for each in weights]
    return torch.autograd.grad(at(leaves, images, labels), leaves)


def attacked(weights, images, labels):
    """The corner of the ball."""
    return fgsm(lambda x: at(weights, x, labels, each=True), images, EPS, bounds=(0, 1))


CORNER = {"steps": 1, "step_size": 2 * EPS, "attack_precision": "32"}
"""From anywhere in the ball a step of 2 eps reaches its corner."""


def test_awp_is_the_gradient_at_perturbed_weights(tmp_path):
    """By hand: x' at w, v of gamma |w| along the gradient there, the step's gradient at w + v, applied to w."""
    module = LinearClassifier()
    before, after, (images, labels) = fitted(tmp_path, module, method="awp", gamma=0.3, **CORNER)
    bad = attacked(before, images, labels)
    raised = perturbed_weights([before[0]], [gradients(before, bad, labels)[0]], 0.3)[0]
    expected = gradients([raised, before[1]], bad, labels)
    for start, end, gradient in zip(before, after, expected, strict=True):
        torch.testing.assert_close(end, start - 0.5 * gradient, rtol=1e-5, atol=1e-6)
    plain = gradients(before, bad, labels)
    assert (plain[0] - expected[0]).norm() > 0.05 * plain[0].norm()
    # the last step of training saw the perturbed weights
    torch.testing.assert_close(module.seen[-1], raised)


def test_mart_is_its_formula(tmp_path):
    """The attack climbs the cross entropy; then one step on both terms."""
    before, after, (images, labels) = fitted(
        tmp_path, LinearClassifier(), method="mart", beta=2.0, steps=1, step_size=2 * EPS
    )
    bad = attacked(before, images, labels)
    leaves = [each.clone().requires_grad_() for each in before]
    clean, perturbed = (nn.functional.linear(each.flatten(1), *leaves) for each in (images, bad))
    boosted, divergence = mart_losses(clean, perturbed, labels)
    expected = torch.autograd.grad(boosted.mean() + 2 * divergence.mean(), leaves)
    for start, end, gradient in zip(before, after, expected, strict=True):
        torch.testing.assert_close(end, start - 0.5 * gradient, rtol=1e-5, atol=1e-6)


class Watched(Boring):
    """Keeps its weights as they are where each hook runs, and can fail at each of them."""

    def __init__(self, fails=None):
        super().__init__()
        self.fails, self.own, self.looked = fails, [], False

    def _look(self, where):
        if self.fails == where:
            raise RuntimeError(f"fails in {where}")

    def on_train_batch_start(self, batch, batch_idx):
        self.own = [each.detach().clone() for each in self.parameters()]

    def training_step(self, batch, batch_idx):
        if self.training and self.net[0].training:
            self._look("step")
        loss = super().training_step(batch, batch_idx)
        if self.fails == "backward" and self.training and self.net[0].training:
            loss.register_hook(lambda gradient: self._look("backward"))
        return loss

    def on_before_optimizer_step(self, optimizer):
        assert all(torch.equal(own, each) for own, each in zip(self.own, self.parameters(), strict=True))
        self.looked = True


def test_awp_weights_are_put_back_before_the_step_to_the_bit(tmp_path):
    module = Watched()
    callback = AdversarialCallback("awp", eps=EPS, steps=2, gamma=0.1, val_eps=[])
    make_trainer(tmp_path, [callback], max_epochs=1).fit(module)
    assert module.looked
    assert callback.attack.kept == []


@pytest.mark.parametrize("place", ["step", "backward"])
def test_awp_weights_are_put_back_after_an_exception(tmp_path, place):
    module = Watched(fails=place)
    before = [each.detach().clone() for each in module.parameters()]
    with pytest.raises(RuntimeError, match=f"fails in {place}"):
        make_trainer(tmp_path, [AdversarialCallback("awp", eps=EPS, steps=2, val_eps=[])]).fit(module)
    assert all(torch.equal(own, each) for own, each in zip(before, module.parameters(), strict=True))


def test_awp_leaves_the_scales_of_a_normalisation(tmp_path):
    """That of a LayerNorm over channels and places has three dimensions, as a weight may have."""
    callback, moved = AdversarialCallback("awp", eps=EPS, steps=1, gamma=0.1, val_eps=[]), set()

    class Normalised(Boring):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.LayerNorm([3, 8, 8])

        def forward(self, images):
            return super().forward(self.norm(images))

        def training_step(self, batch, batch_idx):
            if callback.attack.kept:
                kept = {id(weight) for weight, _ in callback.attack.kept}
                moved.update(name for name, each in self.named_parameters() if id(each) in kept)
            return super().training_step(batch, batch_idx)

    make_trainer(tmp_path, [callback], max_epochs=1).fit(Normalised())
    assert moved == {"net.0.weight", "net.5.weight"}


def test_awp_keeps_no_batchnorm_statistics_of_its_own_pass(tmp_path):
    """They are those of as many training steps as there are."""
    module = Boring()
    make_trainer(tmp_path, [AdversarialCallback("awp", eps=EPS, steps=2, val_eps=[])], max_epochs=2).fit(module)
    assert module.net[1].num_batches_tracked == 2 * 4


def test_awp_accumulates_gradients_at_perturbed_weights(tmp_path):
    """Two backward passes a step: the weights are their own before the second batch and before the step."""
    module = Watched()
    callback = AdversarialCallback("awp", eps=EPS, steps=1, val_eps=[])
    make_trainer(tmp_path, [callback], max_epochs=1, accumulate_grad_batches=2).fit(module)
    assert module.looked


def test_rejects_what_they_cannot_train(tmp_path):
    class Manual(Boring):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def attack_loss(self, batch):
            return self._loss(batch)

    with pytest.raises(MisconfigurationException, match="automatic optimisation with AWP"):
        make_trainer(tmp_path, [AdversarialCallback("awp", val_eps=[])]).fit(Manual())
    for method in ("awp", "mart"):
        with pytest.raises(ValueError, match=f"no `ratio` with method='{method}'"):
            AdversarialCallback(method, ratio=0.5)
    for gamma in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match="`gamma` between 0 and 1"):
            AWP(gamma=gamma)
    assert (MART().beta, MART().steps) == (5.0, 7)


class SAM(torch.optim.SGD):
    """Sharpness-aware minimisation (Foret et al. 2020) by calling Lightning's closure twice, as the card shows it."""

    def __init__(self, params, lr, rho=0.05):
        super().__init__(params, lr)
        self.rho = rho

    @torch.no_grad()
    def step(self, closure):
        with torch.enable_grad():
            loss = closure()
        weights = [each for group in self.param_groups for each in group["params"] if each.grad is not None]
        norm = torch.stack([each.grad.norm() for each in weights]).norm()
        own = [each.clone() for each in weights]
        for each in weights:
            each.add_(each.grad, alpha=self.rho / float(norm))
        with torch.enable_grad():
            closure()
        for each, value in zip(weights, own, strict=True):
            each.copy_(value)
        super().step()
        return loss


def test_sam_takes_the_gradient_of_an_attack_at_its_own_weights(tmp_path):
    """By hand: x' at w, rho along the gradient there, x'' and the gradient at those weights, applied to w."""
    module = LinearClassifier(lambda parameters, lr: SAM(parameters, lr, rho=0.5))
    before, after, (images, labels) = fitted(tmp_path, module, method="pgd", **CORNER)
    first = gradients(before, attacked(before, images, labels), labels)
    norm = torch.stack([each.norm() for each in first]).norm()
    raised = [weight + 0.5 * gradient / norm for weight, gradient in zip(before, first, strict=True)]
    expected = gradients(raised, attacked(raised, images, labels), labels)
    for start, end, gradient in zip(before, after, expected, strict=True):
        torch.testing.assert_close(end, start - 0.5 * gradient, rtol=1e-5, atol=1e-6)
    assert (expected[0] - first[0]).norm() > 0.05 * first[0].norm()


def test_the_corner_is_what_pgd_reaches():
    """What the closed forms here stand on."""
    module = LinearClassifier()
    ((images, labels),) = module.train_dataloader()
    weights = [each.detach() for each in module.layer.parameters()]
    found = pgd(lambda x: at(weights, x, labels, each=True), images, EPS, steps=1, step_size=2 * EPS, bounds=(0, 1))
    assert torch.equal(found, attacked(weights, images, labels))
