"""A small ResNet on CIFAR-10 as SGD, SWA, EMA, a soup, SWALP and adversarial training leave it, from one start.

``landscape.py`` and ``quantised_averages.py`` measure these weights. What was trained is kept in a folder that both may
share, and not trained again. 18,000 JPEG pictures (``cifar.py``) brought down to 24 x 24, five epochs of SGD whose rate
rises to 0.15 and falls to zero; every row goes on from there, for four epochs: with a rate that rises to 0.05 and falls
to zero (SGD, EMA, adversarial) or stays there from the second epoch on (SWA, SWALP, and their raw weights). The soup is
greedy, of four fine-tunings of two epochs with other rates and seeds, judged on 2,000 other training pictures.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from cifar import SIZE, Batch, CifarData, SmallResNet, kept_array, kept_weights, read_files
from lightning.pytorch import seed_everything
from pixel_paths import RESIZERS, by_pillow
from rows import MIXED, quiet_trainer, slug

from lightning_robust import AdversarialCallback, SWACallback
from lightning_robust.functional.averaging import State
from lightning_robust.functional.batchnorm import refresh_batchnorm
from lightning_robust.functional.soups import greedy_soup
from lightning_robust.functional.weights import state_on_cpu

PER_CLASS, HELD_OUT = 2_000, 200
"""Training pictures of a class; the last so many of them are not trained on."""
EPOCHS, MORE, PEAK = 5, 4, 0.05
"""Epochs of the start, of what goes on from it, and the peak of its rate."""
RATES = (0.01, 0.02, 0.05, 0.1)
"""Peaks of the fine-tunings that the soup is made of."""
EPS = "2/255"
CONSTANT = {"start": 1, "lr": PEAK, "bn_samples": 5_000}
EMA = {"kind": "ema", "start": 0, "every": 1, "half_life": "0.5 epochs", "bn_samples": 5_000}
START = "the start"
RUNS: dict[str, tuple[str, ...]] = {
    START: (START,),
    "falling rate": ("SGD", "EMA"),
    "constant rate": ("SGD, constant rate", "SWA"),
    "8 bits": ("SGD, constant rate, 8 bits", "SWALP, 8 bits"),
    "soup": ("greedy soup",),
    "adversarial": ("FGSM-RS",),
}
"""Run -> the weights that come of it: raw and averaged where there are two."""
ROWS = {name: run for run, names in RUNS.items() for name in names}
"""Weights -> the run that they come of."""


class KeepRaw(pl.Callback):
    """Keeps the weights that training leaves, before an average takes their place; stands before it."""

    state: State

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy them."""
        self.state = state_on_cpu(pl_module)


def data_of(
    archive: Path, out: Path, per_class: int | None = None, held_out: int | None = None
) -> tuple[CifarData, Batch]:
    """Pictures to train on and to test on, and the held-out ones, normalised, with their labels.

    Args:
        archive: Of the pictures.
        out: Where decoded ones are kept.
        per_class: Training pictures of a class.
        held_out: How many of them are not trained on, the last ones.
    """
    per_class = PER_CLASS if per_class is None else per_class
    held_out = HELD_OUT if held_out is None else held_out

    def decoded(part: str, limit: int | None) -> np.ndarray:
        files = read_files(archive, part, limit)[0]
        return np.stack([RESIZERS["Pillow BILINEAR"](by_pillow(content), (SIZE, SIZE)) for content in files])

    sets = {}
    for part, limit in (("train", per_class), ("test", None)):
        name = f"{part}_{limit or 'all'}"
        pictures = kept_array(out / "sets" / f"{name}.npy", lambda part=part, limit=limit: decoded(part, limit))
        labels = kept_array(
            out / "sets" / f"{name}_labels.npy", lambda part=part, limit=limit: read_files(archive, part, limit)[1]
        )
        sets[part] = pictures, labels
    pictures, labels = sets["train"]
    place = np.arange(len(labels)) - np.searchsorted(labels, labels)
    held = place >= np.bincount(labels)[labels] - held_out
    data = CifarData((pictures[~held], labels[~held]), sets["test"])
    return data, tensors(data, pictures[held], labels[held])


def tensors(data: CifarData, pictures: np.ndarray, labels: np.ndarray) -> Batch:
    """Normalised pictures and labels of arrays."""
    return data.normalise(torch.from_numpy(pictures).permute(0, 3, 1, 2)), torch.from_numpy(labels).long()


@torch.no_grad()
def accuracy(run: Callable[[torch.Tensor], torch.Tensor], batch: Batch, size: int = 500) -> float:
    """The share that a network or an engine has right.

    Raises:
        ValueError: If there are no pictures.
    """
    images, labels = batch
    if not len(labels):
        raise ValueError("Expected pictures to measure the accuracy on, but got none.")
    right = sum(int((run(x).argmax(1) == y).sum()) for x, y in zip(images.split(size), labels.split(size), strict=True))
    return right / len(labels)


def weights_of(name: str, seed: int, archive: Path, out: Path) -> State:
    """Weights by the name of their row; trained at the first call."""
    return _of_run(ROWS[name], seed, archive, out)["states"][name]


def seconds_of(name: str, seed: int, archive: Path, out: Path) -> float:
    """Seconds of one core that their run took, without the start."""
    return _of_run(ROWS[name], seed, archive, out)["cpu_seconds"]


def _of_run(run: str, seed: int, archive: Path, out: Path) -> dict[str, Any]:
    def made() -> dict[str, Any]:
        begin = None if run == START else weights_of(START, seed, archive, out)
        data, held_out = data_of(archive, out)
        began = time.process_time()
        states = dict(zip(RUNS[run], _trained(run, seed, begin, data, held_out), strict=True))
        return {"states": states, "cpu_seconds": time.process_time() - began}

    return kept_weights(out / "weights" / slug(run) / f"{seed}.pt", made)


def _trained(run: str, seed: int, begin: State | None, data: CifarData, held_out: Batch) -> list[State]:
    """The states of a run."""
    if begin is None:
        return [fitted(seed, None, data, EPOCHS, 0.15)[0]]
    if run == "soup":
        return [_soup(seed, begin, data, held_out)]
    techniques: dict[str, pl.Callback] = {
        "falling rate": SWACallback(**EMA),
        "constant rate": SWACallback(**CONSTANT),
        "8 bits": SWACallback(word_length=8, **CONSTANT),
        "adversarial": AdversarialCallback(method="fgsm_rs", eps=EPS, val_eps=[]),
    }
    return list(fitted(seed, begin, data, MORE, PEAK, techniques[run]))[: len(RUNS[run])]


def fitted(
    seed: int,
    begin: State | None,
    data: CifarData,
    epochs: int,
    rate: float,
    *techniques: pl.Callback,
    precision: str = MIXED,
    **architecture: Any,
) -> tuple[State, State]:
    """Raw weights and those that the fit returns; ``architecture`` is of the network."""
    seed_everything(seed, verbose=False)
    module, raw = SmallResNet(learning_rate=rate, **architecture), KeepRaw()
    if begin is not None:
        module.load_state_dict(begin)
    trainer = quiet_trainer([raw, *techniques], max_epochs=epochs, precision=precision, limit_val_batches=0)
    trainer.fit(module, data)
    return raw.state, state_on_cpu(module)


def _soup(seed: int, begin: State, data: CifarData, held_out: Batch) -> State:
    """Greedy, with statistics from training pictures for each mixture, as they are judged and returned."""
    ingredients = [fitted(100 * (seed + 1) + n, begin, data, 2, rate)[0] for n, rate in enumerate(RATES)]
    module, some = SmallResNet().eval(), data.train
    numbers = np.random.default_rng(seed).permutation(len(some))[:5_000]
    batches = [data.normalise(some[list(chunk)][0]) for chunk in np.array_split(numbers, 10)]

    def refreshed(state: State) -> SmallResNet:
        module.load_state_dict(state)
        refresh_batchnorm(module, lambda: batches)
        return module

    soup = greedy_soup(ingredients, lambda state: accuracy(refreshed(state), held_out))
    print(f"greedy soup of seed {seed}: ingredients {soup.ingredients}, held-out {soup.scores}", flush=True)
    return state_on_cpu(refreshed(dict(soup.state)))
