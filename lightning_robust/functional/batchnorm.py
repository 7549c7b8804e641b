"""Exact statistics for the BatchNorm layers of networks whose weights were averaged."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from lightning_robust.torch_names import AnyBatchNorm


@dataclass
class _Moments:
    """Number, mean and sum of squared deviations of each channel, in fp64, merged batch by batch (Chan et al. 1979)."""

    count: float = 0.0
    mean: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def add(self, inputs: Tensor) -> None:
        if inputs.numel() == 0:  # as of a head without proposals
            return
        dims = [0, *range(2, inputs.ndim)]
        count = inputs.numel() / inputs.shape[1]
        # Apple's GPUs have no fp64
        wide = inputs.detach().float() if inputs.device.type == "mps" else inputs.detach().double()
        variance, mean = torch.var_mean(wide, dims, correction=0)
        delta, total = mean - self.mean, self.count + count
        self.squares = self.squares + variance * count + delta**2 * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total

    def reduced(self, reduce: Callable[[Tensor], Tensor] | None, layer: AnyBatchNorm) -> _Moments:
        """The moments of a layer of all ranks together; ``reduce`` sums a tensor over them."""
        if reduce is None:
            return self
        device = next(layer.buffers()).device  # also where no batch of this rank has reached the layer
        wide = torch.float32 if device.type == "mps" else torch.float64
        parts = (torch.as_tensor(part, dtype=wide, device=device) for part in (self.mean, self.squares))
        mean, squares = (part.expand(layer.num_features) for part in parts)
        count = mean.new_tensor([self.count])
        flat = reduce(torch.cat([count, mean * count, squares]))
        total, size = flat[0], mean.numel()
        pooled = flat[1 : 1 + size] / total.clamp(min=1)
        between = reduce(count * (mean - pooled) ** 2)
        return _Moments(total.item(), pooled, flat[1 + size :] + between)


def _run_alone(work: Callable[[], None]) -> None:
    work()


@dataclass(frozen=True)
class Ranks:
    """Several processes, each with its own batches.

    Args:
        sum: Sums a tensor over them; None for a single process.
        attempt: Calls what reads the batches; where it fails on one rank, it raises on all, so that none waits in
            ``sum``.

    Example:
        >>> both = Ranks(lambda tensor: 2 * tensor)  # another process with the same batches
        >>> layer = nn.BatchNorm1d(1)
        >>> refresh_batchnorm(layer, lambda: [torch.tensor([[0.0], [2.0]])], ranks=both)
        1
        >>> round(layer.running_var.item(), 4)
        1.3333
    """

    sum: Callable[[Tensor], Tensor] | None = None
    attempt: Callable[[Callable[[], None]], None] = _run_alone


_ALONE = Ranks()


class _ReachedError(Exception):
    """Ends a forward pass at the layer whose inputs are collected."""


@torch.no_grad()
def refresh_batchnorm(
    module: nn.Module,
    batches: Callable[[], Iterable[Any]],
    *,
    forward: Callable[[Any], Any] | None = None,
    layers: Collection[nn.Module] | None = None,
    layerwise: bool = False,
    ranks: Ranks = _ALONE,
) -> int:
    r"""Set the running statistics of BatchNorm layers to those of the data, exactly.

    With batches of :math:`n_b` values, means :math:`\mu_b` and variances :math:`\sigma_b^2` in a channel, :math:`N` in
    all:

    .. math:: \mu = \tfrac1N \sum_b n_b \mu_b, \qquad
              \sigma^2 = \tfrac1{N-1} \sum_b n_b \left(\sigma_b^2 + (\mu_b - \mu)^2\right)

    that is, the variance within and between batches, weighted by size, as one pass over all data in one batch would
    give it. ``torch.optim.swa_utils.update_bn`` takes the unweighted mean of the variances within batches instead.

    All other layers are in evaluation mode (no dropout). No gradient is computed and no parameter changes; modes and
    settings are restored, also after an error, in which case the statistics are left as they were.

    Args:
        module: The module.
        batches: Called for an iterable over the data, once a pass; the same data each time.
        forward: Called with each batch; the module itself by default.
        layers: The BatchNorm layers to refresh; by default all that keep running statistics.
        layerwise: Make one pass for each layer, with its predecessors refreshed and in evaluation mode: exact at any
            depth and for any batch size. A pass ends at its layer, so ``n`` layers cost about ``n / 2`` passes over the
            data, and a layer that is called several times takes its statistics from the first call. By default one
            pass serves all layers and all calls, and predecessors normalise by the statistics of the batch, as in
            training: exact for the first layer, customary for deeper ones.
        ranks: The processes whose batches count together; by default this one alone.

    Returns:
        The number of layers refreshed.

    Raises:
        ValueError: If there is no batch.

    Example:
        >>> layer = nn.BatchNorm1d(1)
        >>> refresh_batchnorm(layer, lambda: [torch.tensor([[0.0]]), torch.tensor([[2.0], [4.0]])])
        1
        >>> layer.running_mean, layer.running_var
        (tensor([2.]), tensor([4.]))
    """
    chosen = [layer for layer in batchnorm_layers(module) if layers is None or layer in layers]
    if not chosen:
        return 0
    run = module if forward is None else forward
    with _all_or_nothing(chosen), evaluating(module, [] if layerwise else chosen):
        if not layerwise:
            moments = _collect(chosen, batches, run, ranks, stop=False)
        else:
            moments = {}
            for layer in _in_order_of_calls(chosen, batches, run, ranks):
                moments |= _collect([layer], batches, run, ranks, stop=True)
                # later layers see it normalise by the variance over n, as it does in training
                _set_statistics(layer, moments[layer], correction=0)
    for layer, collected in moments.items():
        _set_statistics(layer, collected, correction=1)
    return len(chosen)


def batchnorm_layers(module: nn.Module) -> list[AnyBatchNorm]:
    """The BatchNorm layers that keep running statistics, in the order of ``modules()``.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(3, track_running_stats=False))
        >>> batchnorm_layers(net) == [net[0]]
        True
    """
    return [part for part in module.modules() if isinstance(part, AnyBatchNorm) and part.running_mean is not None]


def _collect(
    layers: list[AnyBatchNorm],
    batches: Callable[[], Iterable[Any]],
    run: Callable[[Any], Any],
    ranks: Ranks,
    *,
    stop: bool,
) -> dict[AnyBatchNorm, _Moments]:
    """The moments of the inputs of each layer that sees any, in one pass over the data."""
    moments: dict[nn.Module, _Moments] = {layer: _Moments() for layer in layers}

    def watch(layer: nn.Module, args: tuple[Any, ...]) -> None:
        inputs: Tensor = args[0]
        moments[layer].add(inputs)
        if stop:
            raise _ReachedError
        # a single value cannot be normalised by itself
        layer.training = inputs.numel() > inputs.shape[1]

    passes = 0

    def read() -> None:
        nonlocal passes
        with _hooked(layers, watch):
            for batch in batches():
                passes += 1
                with suppress(_ReachedError):
                    run(batch)

    ranks.attempt(read)
    # in the same order on every rank, whatever layers its own batches have reached
    total = {layer: moments[layer].reduced(ranks.sum, layer) for layer in layers}
    seen = {layer: part for layer, part in total.items() if part.count}
    if not seen and not passes:
        raise ValueError(
            "Expected batches to take BatchNorm statistics from, but got none. Give a loader with at least one batch."
        )
    if not seen:
        raise ValueError(
            f"Expected the forward pass to go through BatchNorm, but it used none of {len(layers)} layers that keep "
            "statistics, which stay as they are. Leave out the refresh, or give a `forward` that uses them."
        )
    return seen


def _set_statistics(layer: AnyBatchNorm, moments: _Moments, *, correction: int) -> None:
    """Mean and variance, the latter over ``n - correction``."""
    if layer.running_mean is not None and layer.running_var is not None:
        layer.running_mean.copy_(torch.as_tensor(moments.mean))
        layer.running_var.copy_(torch.as_tensor(moments.squares) / max(moments.count - correction, 1))


def _in_order_of_calls(
    layers: list[AnyBatchNorm], batches: Callable[[], Iterable[Any]], run: Callable[[Any], Any], ranks: Ranks
) -> list[AnyBatchNorm]:
    """The layers in the order in which a forward pass reaches them."""
    seen: dict[nn.Module, None] = {}

    def read() -> None:
        with _hooked(layers, lambda layer, _: seen.setdefault(layer)):
            for batch in islice(batches(), 1):
                run(batch)

    ranks.attempt(read)
    return [layer for layer in seen if isinstance(layer, AnyBatchNorm)]


@contextmanager
def _hooked(layers: Iterable[nn.Module], hook: Callable[[nn.Module, tuple[Any, ...]], Any]) -> Iterator[None]:
    handles = [layer.register_forward_pre_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _all_or_nothing(layers: list[AnyBatchNorm]) -> Iterator[None]:
    buffers = [buffer for layer in layers for buffer in (layer.running_mean, layer.running_var) if buffer is not None]
    copies = [(buffer, buffer.clone()) for buffer in buffers]
    try:
        yield
    except BaseException:
        for buffer, before in copies:
            buffer.copy_(before)
        raise


@contextmanager
def evaluating(module: nn.Module, layers: Collection[AnyBatchNorm] = ()) -> Iterator[None]:
    """Evaluation mode everywhere but in ``layers``, which normalise by the batch and keep no statistics of it.

    Example:
        >>> layer = nn.BatchNorm1d(1)
        >>> with evaluating(layer, [layer]):
        ...     normalised = layer(torch.tensor([[0.0], [2.0]]))
        >>> normalised.detach().round(decimals=3).flatten(), layer.running_mean
        (tensor([-1.,  1.]), tensor([0.]))
    """
    modes = [(part, part.training) for part in module.modules()]
    tracking = [(layer, layer.track_running_stats) for layer in layers]
    try:
        module.eval()
        for layer in layers:
            layer.train()
            layer.track_running_stats = False
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for layer, tracked in tracking:
            layer.track_running_stats = tracked
