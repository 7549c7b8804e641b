"""Layers of modules, tied ones and groups among them."""

import pytest
import torch
from torch import nn

from lightning_robust.layers import find_layers, whole


class Tied(nn.Module):
    """Embedding and decoder share a matrix; the root has a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.embedding = nn.Embedding(5, 3)
        self.body = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.same = self.body[0]
        self.decoder = nn.Linear(3, 5)
        self.decoder.weight = self.embedding.weight
        self.alias = nn.Linear(3, 5, bias=False)
        self.alias.weight = self.embedding.weight
        self.body[1].register_buffer("scratch", torch.zeros(1), persistent=False)


def test_layers_are_modules_with_parameters_of_their_own():
    layers = {layer.name: layer for layer in find_layers(Tied())}
    assert list(layers) == ["(root)", "embedding", "body.0", "body.1", "decoder"]
    assert layers["decoder"].parameters == ("embedding.weight", "decoder.bias")
    assert layers["body.1"].parameters == ("body.1.weight", "body.1.bias")
    assert layers["body.1"].buffers == ("body.1.running_mean", "body.1.running_var", "body.1.num_batches_tracked")
    assert len(whole(Tied()).tensors) == 10


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (["body", r"body\.1"], {"body": 4, r"body\.1": 2}),
        ({"ends": "embedding|decoder", "all": ".*"}, {"ends": 2, "all": 7}),
    ],
)
def test_groups_take_all_that_is_inside(groups, expected):
    assert {layer.name: len(layer.parameters) for layer in find_layers(Tied(), groups)} == expected


def test_rejects_names_of_nothing_and_names_the_near_ones():
    with pytest.raises(ValueError, match=r"'bodi' matches none\. Near ones are 'body'"):
        find_layers(Tied(), ["bodi"])
    with pytest.raises(ValueError, match="Expected regular expressions"):
        find_layers(Tied(), ["("])
