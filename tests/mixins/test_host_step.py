"""Equal inputs go through the host once, whatever the number of losses."""

import pytest
import torch
from torch import nn

from lightning_robust import RegMixupMixin
from lightning_robust.mixins.host_step import HostStep

from ..boring import Boring, Pictures

IMAGES, LABELS = Pictures(8).images, Pictures(8).labels


class Host(RegMixupMixin, Boring):
    """Notes the size of every pass, on the class, which no quiet run puts back."""

    def __init__(self):
        super().__init__()
        type(self).passes = ()

    def forward(self, images, *, scale=1.0):
        type(self).passes = (*self.passes, len(images))
        return self.net(scale * images)


def host_step(host=None, batch=(IMAGES, LABELS), step=None):
    host = host or Host()
    host.log = lambda *_, **__: None
    return host, HostStep(host, step or (lambda batch, index: host._loss(batch)), batch, batch, 0)


def test_losses_of_the_hosts_own_inputs_cost_no_pass():
    host, step = host_step()
    loss = step.run()
    first, second = step.losses_of(IMAGES, [LABELS, LABELS.flip(0)])
    assert host.passes == (8,)
    assert torch.equal(first, loss)
    assert not torch.equal(second, loss)
    assert step.has_passed(IMAGES)
    assert not step.has_passed(IMAGES.clone())


def test_extra_inputs_join_the_first_pass():
    host, step = host_step()
    host.eval()
    flipped = IMAGES.flip(3)
    step.extras.append(flipped)
    loss = step.run()
    (extra,) = step.losses_of(flipped, [LABELS])
    assert host.passes == (16,)
    for found, images in ((loss, IMAGES), (extra, IMAGES.flip(3))):
        expected = nn.functional.cross_entropy(host.net(images), LABELS)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("samples", "sizes"), [(8, (12, 12)), (7, (12, 9)), (1, (3,))])
def test_extra_inputs_share_several_passes(samples, sizes):
    """Each pass has a part of the samples, all versions of it; the outputs come back in their order."""
    images = IMAGES[:samples]
    host, step = host_step(batch=(images, LABELS[:samples]))
    host.eval()
    versions = [images, images.flip(3), images.flip(2)]
    step.extras += versions[1:]
    step.passes = 2
    step.run()
    assert host.passes == sizes
    for version in versions:
        torch.testing.assert_close(step.outputs_of(version), host.net(version), rtol=1e-5, atol=1e-6)
    assert host.passes == sizes
    step.outputs_of(images.clone())
    assert host.passes == (*sizes, samples)


def test_forward_takes_the_kept_logits():
    """What `forward` returns of inputs that have passed through `logits` costs no pass, and is what it would be."""

    class Doubling(Host):
        def logits(self, images):
            return Host.forward(self, images)

        def forward(self, images):
            return 2 * self.logits(images)

        def _loss(self, batch):
            return nn.functional.cross_entropy(self.logits(batch[0]), batch[1])

    host, step = host_step(Doubling())
    host.eval()
    step.run()
    torch.testing.assert_close(step.forward_of(IMAGES), 2 * host.net(IMAGES))
    assert torch.equal(step.forward_of(IMAGES), 2 * step.outputs_of(IMAGES))
    assert host.passes == (8,)


def test_a_batch_without_known_targets_has_a_loss_of_other_inputs_too():
    host = Host().eval()
    host.input_key = "image"
    batch = {"image": IMAGES, "twin": IMAGES.flip(3)}
    _, step = host_step(host, batch, lambda given, index: (host(given["image"]) - host(given["twin"])).square().mean())
    assert step.find_targets() is None
    expected = (host.net(IMAGES.flip(2)) - host.net(IMAGES.flip(3))).square().mean()
    torch.testing.assert_close(step.loss_of(IMAGES.flip(2)), expected)


def test_other_tensors_and_arguments_have_passes_of_their_own():
    def twice(batch, index):
        host(batch[0], scale=2.0)
        host(batch[0])
        return host._loss(batch)

    host = Host()
    _, step = host_step(host, step=twice)
    step.run()
    assert host.passes == (8, 8, 8)  # keywords, then the inputs, then the inputs again in the same step
    step.losses_of(IMAGES, [LABELS])
    assert host.passes == (8, 8, 8, 8)  # of the keywords alone: both passes of the inputs are known
    assert "forward" not in vars(host)


def test_keyword_calls_pass_through():
    """As ``forward(**batch)`` of a text model."""
    host = Host()
    _, step = host_step(host, step=lambda batch, index: host(images=batch[0]).sum())
    assert torch.isfinite(step.run())
    assert not step.has_passed(IMAGES)


def test_rejects_inputs_that_are_no_tensor():
    with pytest.raises(TypeError, match="Expected a tensor at input_key=0, but got str"):
        host_step(batch=("text", LABELS))


def test_no_labels_no_step():
    _, step = host_step(batch=None)
    assert step.run() is None
