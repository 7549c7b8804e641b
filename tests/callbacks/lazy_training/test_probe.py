"""The probe of lazy training: the first rows of the first batch, whatever comes later."""

import torch

from lightning_robust.callbacks.lazy_training.probe import Probe


def test_only_the_first_batch_counts_and_is_copied():
    probe, images = Probe(2), torch.arange(3.0)
    probe.keep((images, "text"))
    images.zero_()
    probe.keep((torch.ones(3), "later"))
    assert probe.batch[0].tolist() == [0, 1]
    assert probe.batch[1] == "text"


def test_loaded_tensors_take_the_place_of_those_of_the_batch():
    first, resumed = Probe(2), Probe(2)
    first.keep({"x": torch.arange(4.0), "y": torch.arange(4)})
    resumed.load(first.tensors())
    assert [t.tolist() for t in resumed.tensors()] == [[0, 1], [0, 1]]
    resumed.keep({"x": torch.zeros(4), "y": torch.zeros(4).long()})
    assert resumed.batch["x"].tolist() == [0, 1]
