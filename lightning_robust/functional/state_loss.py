"""The loss as a function of weights: ``landscape.py`` draws it, ``sharpness.py`` measures how much it curves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_robust.functional.averaging import State
from lightning_robust.functional.batchnorm import batchnorm_layers, evaluating, refresh_batchnorm
from lightning_robust.functional.weights import Weights, call_with
from lightning_robust.number_types import has_mean
from lightning_robust.suggest import did_you_mean

StateLoss = Callable[[State], Tensor | Iterable[Tensor]]
"""The loss of some weights: a number, or the losses of the samples, batch by batch, whose mean is the loss."""
Statistics = Literal["refresh", "batch"]


def batch_losses(loss: StateLoss, state: State) -> Iterator[Tensor]:
    """The losses of the samples, batch by batch, each as a vector; a number is one batch of one sample.

    Raises:
        ValueError: If there is no batch, or one without samples.

    Example:
        >>> list(batch_losses(lambda state: state["w"].sum(), {"w": torch.ones(2)}))
        [tensor([2.])]
    """
    result = loss(state)
    count = 0
    for count, losses in enumerate([result] if isinstance(result, Tensor) else result, 1):
        if not losses.numel():
            raise ValueError(f"Expected samples in every batch, but batch {count - 1} has none. Leave it out.")
        yield losses.reshape(-1)
    if not count:
        raise ValueError("Expected batches to measure the loss on, but got none. Give at least one batch.")


@torch.no_grad()
def mean_loss(loss: StateLoss, state: State) -> float:
    """The mean loss of all samples, summed in fp64; it may be NaN or infinite.

    Raises:
        ValueError: If there is no batch, or one without samples.

    Example:
        >>> mean_loss(lambda state: [state["w"] * torch.tensor([1.0, 2.0]), state["w"]], {"w": torch.tensor(3.0)})
        4.0
    """
    total, count = 0.0, 0
    for losses in batch_losses(loss, state):
        total, count = total + losses.double().sum().item(), count + losses.numel()
    return total / count


def require_finite_weights(state: Mapping[str, Tensor], name: str = "the weights") -> None:
    """Refuse weights that hold NaN or infinity.

    Raises:
        ValueError: Naming the first such tensor; ``name`` says whose it is.

    Example:
        >>> require_finite_weights({"w": torch.tensor([1.0, torch.nan])}, "the start")
        Traceback (most recent call last):
        ValueError: Expected finite numbers in the start, but 1 of 2 in w are not. Take weights from before that.
    """
    for key, tensor in state.items():
        wrong = int((~torch.isfinite(tensor)).sum()) if has_mean(tensor) else 0
        if wrong:
            raise ValueError(
                f"Expected finite numbers in {name}, but {wrong} of {tensor.numel()} in {key} are not. "
                "Take weights from before that."
            )


def module_loss(
    module: nn.Module,
    batches: Callable[[], Iterable[Any]],
    criterion: Callable[[Any, Any], Tensor],
    *,
    batchnorm: Statistics = "refresh",
) -> StateLoss:
    """The loss of a module on data as a function of its weights; the module itself keeps its own.

    Everything is in evaluation mode, without dropout. Running statistics of BatchNorm belong to the weights that they
    were collected with: those of a state are not used, and other weights never meet them.

    Args:
        module: The module.
        batches: Called for an iterable over the data, once or twice for each set of weights; the same data each time.
        criterion: ``criterion(module, batch)`` gives the loss of each sample ``(batch,)``, or of the whole batch, in
            which case all batches count alike.
        batchnorm: ``"refresh"`` takes statistics from all batches for each set of weights, in one pass
            (:func:`~lightning_robust.functional.batchnorm.refresh_batchnorm`), and holds them fixed: the loss of the
            network as it would be deployed, whose derivatives leave the statistics aside. ``"batch"`` normalises by the
            statistics of each batch, through which derivatives go: the loss that is trained.

    Returns:
        Of a state: the losses of its samples, batch by batch. What a state does not name is the module's own.

    Raises:
        ValueError: For an unknown ``batchnorm``; of a state: if it names a tensor that the module does not have or has
            in another shape, or if there is no batch.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> loss = module_loss(layer, lambda: [torch.tensor([[1.0], [3.0]])], lambda m, x: m(x).flatten())
        >>> mean_loss(loss, {"weight": torch.tensor([[5.0]])})
        10.0
    """
    if batchnorm not in ("refresh", "batch"):
        raise ValueError(f"Expected `batchnorm` to be 'refresh' or 'batch', but got {batchnorm!r}.")
    layers = batchnorm_layers(module)
    whole = _Judged(module, criterion)

    def loss(state: State) -> Iterator[Tensor]:
        _require_fitting(module, state)
        tensors = dict(state)
        if batchnorm == "refresh" and layers:
            tensors |= _refreshed(module, state, batches, criterion)
        given = {f"module.{name}": tensor for name, tensor in tensors.items()}
        for batch in batches():
            with evaluating(module, layers if batchnorm == "batch" else ()):
                losses: Tensor = call_with(whole, given, (batch,))
            yield losses

    return loss


class _Judged(nn.Module):
    """A module behind its criterion, which may call any method of it."""

    def __init__(self, module: nn.Module, criterion: Callable[[Any, Any], Tensor]) -> None:
        super().__init__()
        self.module, self.criterion = module, criterion

    def forward(self, batch: Any) -> Tensor:
        return self.criterion(self.module, batch)


def _refreshed(
    module: nn.Module, state: State, batches: Callable[[], Iterable[Any]], criterion: Callable[[Any, Any], Tensor]
) -> State:
    """The buffers that the module has with these weights, statistics taken from the batches."""
    weights = Weights(module)
    named = dict(zip(weights.names, weights.tensors(), strict=True))
    values = [state.get(name, live).detach().clone() for name, live in named.items()]
    with weights.exchanged(values):
        refresh_batchnorm(module, batches, forward=lambda batch: criterion(module, batch))
        weights.read_buffers(values)
    buffers = {name for name, _ in module.named_buffers()}
    return {name: value for name, value in zip(named, values, strict=True) if name in buffers}


def _require_fitting(module: nn.Module, state: State) -> None:
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    tied = module.state_dict()
    for name, tensor in state.items():
        mine = own.get(name, tied.get(name))
        if mine is None:
            hint = did_you_mean(name, list(own))
            raise ValueError(f"Expected names of tensors of {type(module).__name__}, but got {name!r}.{hint}")
        if mine.shape != tensor.shape:
            raise ValueError(
                f"Expected {name} of shape {tuple(mine.shape)}, as {type(module).__name__} has it, but got "
                f"{tuple(tensor.shape)}. Give weights of one architecture."
            )
