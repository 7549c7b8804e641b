"""Networks of pytorch-forecasting with their own data sets and loaders."""

import functools
import warnings

import pytest
import torch

from .guest import BATCH, Guest

pytest.importorskip("pytorch_forecasting")

import pandas as pd
from pytorch_forecasting import NBeats, TemporalFusionTransformer, TimeSeriesDataSet
from pytorch_forecasting.metrics import QuantileLoss


@functools.cache
def _frame():
    time = torch.arange(12)
    frames = []
    for series in range(4):
        values = torch.sin(time * (0.5 + 0.1 * series)) + series + 2
        frames.append(pd.DataFrame({"series": str(series), "time_idx": time.numpy(), "value": values.numpy()}))
    return pd.concat(frames, ignore_index=True)


def _loaders(**settings):
    common = {
        "time_idx": "time_idx",
        "target": "value",
        "group_ids": ["series"],
        "max_encoder_length": 4,
        "max_prediction_length": 2,
        "time_varying_unknown_reals": ["value"],
    }
    training = TimeSeriesDataSet(_frame()[lambda x: x.time_idx <= 6], **(common | settings))
    validation = TimeSeriesDataSet.from_dataset(training, _frame(), min_prediction_idx=10)
    return (
        training,
        training.to_dataloader(train=True, batch_size=BATCH, num_workers=0, shuffle=False),
        validation.to_dataloader(train=False, batch_size=BATCH - 1, num_workers=0),
    )


def nbeats():
    data, train, val = _loaders()
    module = NBeats.from_dataset(
        data,
        learning_rate=0.01,
        log_interval=-1,
        num_blocks=[1, 1],
        num_block_layers=[1, 1],
        widths=[8, 8],
        backcast_loss_ratio=0.1,
    )
    return module, train, val


def tft():
    data, train, val = _loaders(
        time_varying_known_reals=["time_idx"], static_categoricals=["series"], add_relative_time_idx=True
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = TemporalFusionTransformer.from_dataset(
            data,
            learning_rate=0.01,
            log_interval=-1,
            hidden_size=4,
            attention_head_size=1,
            hidden_continuous_size=2,
            dropout=0.1,
            output_size=3,
            loss=QuantileLoss([0.1, 0.5, 0.9]),
        )
    return module, train, val


GUESTS = [
    Guest("nbeats", nbeats, "numbers", ("0.encoder_cont",), forward=lambda m, b: m(b[0])),
    Guest("tft", tft, "numbers", ("0.encoder_cont",), forward=lambda m, b: m(b[0])),
]
