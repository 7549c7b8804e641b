"""Every technique of the suite for two epochs of two steps on a device in mixed precision, a part of ``gpu_day.py``.

The techniques and their settings are the table that the contract tests run over, and beside it every method of
AdversarialCallback: whatever joins there is trained here too. A diagnostic has to leave the weights that plain training
leaves, bit for bit, dropout included.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from text import Reader, sentences
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_robust import AdversarialCallback, NoEffectWarning
from lightning_robust.callbacks.adversarial.short_form import METHODS, argument_names

PRECISIONS = ("16-mixed", "bf16-mixed")
EPOCHS = STEPS = 2
Numbers = dict[str, Any]


class Row(NamedTuple):
    """What there is to train."""

    callbacks: list[pl.Callback]
    module: pl.LightningModule
    loader: Any = None
    diagnostic: bool = False


class Watch(pl.Callback):
    """The loss of every step, and the devices of what the steps were given."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.devices: set[str] = set()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        """Look."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            self.losses.append(float(loss))
        self.devices |= {parameter.device.type for parameter in pl_module.parameters()}


def techniques() -> dict[str, Callable[[], Row]]:
    """Plain training, and every technique, by name."""
    from tests.boring import Boring
    from tests.test_contract import CALLBACKS, OBJECTIVES

    rows: dict[str, Callable[[], Row]] = {"plain": lambda: Row([], Boring())}
    for technique in (*CALLBACKS, *OBJECTIVES):
        name = f"{technique.key} ({technique.make.__name__.lstrip('_')})"
        rows[name] = lambda technique=technique: Row(*technique.parts(), diagnostic=technique.diagnostic)
    for method, attack in METHODS.items():
        reads = "embedding" in argument_names(attack)
        if not reads:
            rows[f"method {method}"] = lambda method=method: Row([AdversarialCallback(method, eps=0.1)], Boring())
        if reads or method == "pgd":
            rows[f"method {method} on an embedding"] = lambda method=method: _reading(method)
    return rows


def _reading(method: Any) -> Row:
    loader = DataLoader(TensorDataset(*sentences(32, 0)), 16)
    return Row([AdversarialCallback(method, eps=0.1, embedding="embedding")], Reader(), loader)


def train(name: str, precision: Any, device: str) -> Numbers:
    """Whether losses, metrics and weights are finite, whether the weights moved, and what was warned of."""
    row, watch, said = _fit(name, precision, device)
    weights = row.module.state_dict()
    metrics = {name: float(value) for name, value in row.module.trainer.callback_metrics.items()}
    odd = [name for name, value in (metrics | _numbered(watch.losses)).items() if not math.isfinite(value)]
    odd += [name for name, tensor in weights.items() if not bool(torch.isfinite(tensor).all())]
    faults = [f"not finite: {', '.join(odd)}"] * bool(odd)
    if watch.devices != {device.partition(":")[0]}:
        faults.append(f"ran on {', '.join(sorted(watch.devices)) or 'nothing'}")
    if row.diagnostic and _digest(weights) != _plain(precision, device):
        faults.append("the weights are not those of plain training")
    if name == "plain" and _digest(weights) != _plain(precision, device):
        said.append("plain training is not the same twice, so that no diagnostic can be")
    numbers = {"steps": row.module.trainer.global_step, "losses": watch.losses, "note": "; ".join(faults + said)}
    return {"status": "failed" if faults else "ok", **numbers}


def _fit(name: str, precision: Any, device: str) -> tuple[Row, Watch, list[str]]:
    """Train; what was trained, what was seen, and what was warned of."""
    from tests.boring import make_trainer

    pl.seed_everything(1, verbose=False)
    row, watch = techniques()[name](), Watch()
    settings = {"precision": precision, "accelerator": "gpu" if device.startswith("cuda") else "cpu", "devices": 1}
    limits = {"max_epochs": EPOCHS, "limit_train_batches": STEPS, "limit_val_batches": 1}
    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(record=True) as said,
        contextlib.redirect_stdout(io.StringIO()),
        _deterministic(),
    ):
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", NoEffectWarning)
        trainer = make_trainer(folder, [*row.callbacks, watch], **settings, **limits)
        trainer.fit(row.module, row.loader)
    return row, watch, sorted({str(warning.message).splitlines()[0] for warning in said})


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Let cuDNN take kernels that give the same twice."""
    before, torch.backends.cudnn.deterministic = torch.backends.cudnn.deterministic, True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


@functools.cache
def _plain(precision: str, device: str) -> str:
    return _digest(_fit("plain", precision, device)[0].module.state_dict())


def _digest(weights: dict[str, Tensor]) -> str:
    values = b"".join(tensor.cpu().numpy().tobytes() for tensor in weights.values())
    return hashlib.sha256(values).hexdigest()


def _numbered(losses: list[float]) -> dict[str, float]:
    """The losses by name; training without any is as bad as one that is not finite."""
    return {f"loss of step {index}": loss for index, loss in enumerate(losses)} or {"loss": math.nan}
