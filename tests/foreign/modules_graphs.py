"""Modules around torch_geometric, written as its examples write them."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from .guest import BATCH, TRAIN, VAL, Guest

pytest.importorskip("torch_geometric")

from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCNConv, global_mean_pool


class GraphClassifier(pl.LightningModule):
    """As torch_geometric's Lightning examples: batches are ``Batch`` objects, their size is told to ``log``."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm, self.conv2 = GCNConv(4, 8), nn.BatchNorm1d(8), GCNConv(8, 8)
        self.classifier = nn.Linear(8, 2)

    def forward(self, x, edge_index, batch):
        x = self.norm(self.conv1(x, edge_index)).relu()
        x = self.conv2(x, edge_index).relu()
        return self.classifier(global_mean_pool(x, batch))

    def training_step(self, data, batch_idx):
        y_hat = self(data.x, data.edge_index, data.batch)
        loss = nn.functional.cross_entropy(y_hat, data.y)
        self.log("train_acc", (y_hat.argmax(-1) == data.y).float().mean(), batch_size=data.num_graphs)
        return loss

    def validation_step(self, data, batch_idx):
        y_hat = self(data.x, data.edge_index, data.batch)
        self.log("val_loss", nn.functional.cross_entropy(y_hat, data.y), batch_size=data.num_graphs)
        self.log("val_acc", (y_hat.argmax(-1) == data.y).float().mean(), batch_size=data.num_graphs)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


class NodeRegression(pl.LightningModule):
    """A target for each node; ``forward`` takes the whole ``Batch``, as PyG's introduction by example does."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = GCNConv(4, 8), GCNConv(8, 1)

    def forward(self, data):
        x, edge_index = data.x, data.edge_index
        x = self.conv1(x, edge_index).relu()
        return self.conv2(x, edge_index).squeeze(-1)

    def training_step(self, data):
        return nn.functional.mse_loss(self(data), data.target)

    def validation_step(self, data, i):
        self.log("val_loss", nn.functional.mse_loss(self(data), data.target), batch_size=data.num_nodes)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def graph(index):
    generator = torch.Generator().manual_seed(index)
    nodes = 3 + index % 4
    x = torch.randn(nodes, 4, generator=generator) + index % 2
    edges = torch.stack([torch.arange(nodes), (torch.arange(nodes) + 1) % nodes])
    edges = torch.cat([edges, edges.flip(0)], 1)
    return Data(x=x, edge_index=edges, y=torch.tensor([index % 2]), target=x.sum(1).tanh())


def graphs(count, first):
    return DataLoader([graph(index) for index in range(first, first + count)], batch_size=BATCH)


def classifier():
    return GraphClassifier(), graphs(TRAIN, 0), graphs(VAL, 100)


def regression():
    return NodeRegression(), graphs(TRAIN, 0), graphs(VAL, 100)


GUESTS = [
    Guest(
        "graph_classifier",
        classifier,
        "numbers",
        ("x",),
        classes="y",
        forward=lambda m, b: m(b.x, b.edge_index, b.batch),
    ),
    Guest("node_regression", regression, "numbers", ("x",), forward=lambda m, b: m(b)),
]
