"""How weights begin: He's and orthogonal draws, layer-sequential unit variance, and what of a file fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_robust.layers import is_layer_norm

Draw = Literal["kaiming", "orthogonal"]
_RELU_GAIN = math.sqrt(2)


def drawn_layers(module: nn.Module) -> dict[str, nn.Module]:
    """The layers whose weights an initialisation may draw, by name, each weight once.

    Linear layers and convolutions of torch, and layers of others whose ``weight`` has two dimensions or more, outputs
    first; no embeddings, tied ones included, and no normalisation. Not those that are frozen, for they were trained
    elsewhere, and not those of zeros alone, which their author chose: the last layer of a residual branch, a head that
    begins at its bias.

    Example:
        >>> head = nn.Linear(2, 1)
        >>> _ = nn.init.zeros_(head.weight)
        >>> list(drawn_layers(nn.Sequential(nn.Conv1d(1, 2, 1), nn.BatchNorm1d(2), head)))
        ['0']
    """
    found: dict[int, tuple[str, nn.Module]] = {}
    embeddings = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding | nn.EmbeddingBag)}
    for name, layer in module.named_modules():
        weight = dict(layer.named_parameters(recurse=False)).get("weight")
        if weight is None or id(weight) in embeddings or is_layer_norm(layer):
            continue
        if weight.ndim > 1 and weight.requires_grad and weight.detach().any():
            found.setdefault(id(weight), (name, layer))
    return dict(found.values())


def computed_weights(module: nn.Module) -> list[str]:
    """The layers whose weight is computed from other parameters, so that no draw of it would stay, by name.

    Example:
        >>> layers = nn.Sequential(nn.Linear(1, 1), nn.utils.parametrizations.spectral_norm(nn.Linear(1, 1)))
        >>> computed_weights(layers)
        ['1']
    """
    return [name for name, layer in module.named_modules() if _computes_weight(layer)]


def _computes_weight(layer: nn.Module) -> bool:
    """By a parametrisation, or by the hooks of torch's earlier ``weight_norm`` and ``spectral_norm``."""
    own = {name for name, _ in layer.named_parameters(recurse=False)}
    return parametrize.is_parametrized(layer, "weight") or not own.isdisjoint(("weight_orig", "weight_v"))


@torch.no_grad()
def draw_weights(
    layers: Mapping[str, Any], draw: Draw, gain: float = _RELU_GAIN, generator: torch.Generator | None = None
) -> None:
    r"""Draw the weights of layers anew; biases stay.

    Args:
        layers: From :func:`drawn_layers`.
        draw: ``"kaiming"``: normal with a deviation of ``gain`` :math:`/ \sqrt{n}` for :math:`n` inputs of a unit
            (`He et al. 2015 <https://arxiv.org/abs/1502.01852>`_). ``"orthogonal"``: the rows, or the columns where
            there are fewer, are orthogonal and of length ``gain``
            (`Saxe et al. 2013 <https://arxiv.org/abs/1312.6120>`_).
        gain: :math:`\sqrt 2` keeps the scale of activations through ReLU.
        generator: Of the CPU; the weights are drawn there in fp32 whatever their device and precision, so that all
            devices begin alike.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> draw_weights({"layer": layer}, "orthogonal", gain=1.0)
        >>> torch.allclose(layer.weight @ layer.weight.T, torch.eye(2), atol=1e-6)
        True
    """
    for layer in layers.values():
        weight = layer.weight
        drawn = torch.empty(weight.shape)
        if draw == "orthogonal":
            nn.init.orthogonal_(drawn, gain, generator)
        else:
            drawn.normal_(0.0, gain / math.sqrt(_inputs_of(layer)), generator=generator)
        weight.copy_(drawn)


@torch.no_grad()
def scale_weights(layers: Mapping[str, Any], scale: float) -> None:
    """Multiply the weights of layers by a number; biases stay.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> before = layer.weight.item()
        >>> scale_weights({"layer": layer}, 0.5)
        >>> layer.weight.item() == 0.5 * before
        True
    """
    for layer in layers.values():
        layer.weight.mul_(scale)


@torch.no_grad()
def unit_variances(
    layers: Mapping[str, Any], run: Callable[[], Any], tolerance: float = 0.1, steps: int = 10
) -> dict[str, float]:
    """Scale the weights of layers, one after another as a pass reaches them, until their outputs have a variance of 1.

    Layer-sequential unit variance (`Mishkin and Matas 2015 <https://arxiv.org/abs/1511.06422>`_) after weights were
    drawn orthogonally. The variance is that over all values of a layer's first output in a pass, the bias included.
    Costs one pass for the order, and for each layer one and one more for each step, of which there are one or two.

    Args:
        layers: Those whose weights are scaled, by name.
        run: Runs the network on a batch, always the same.
        tolerance: How far from 1 a variance may stay.
        steps: Of one layer at most.

    Returns:
        The variance that each layer ends with; a layer that the pass does not reach, or whose output is constant or
        not finite, is left alone and is not among them.

    Raises:
        ValueError: For a tolerance out of range.

    Example:
        >>> network, batch = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(256, 8)
        >>> found = unit_variances(drawn_layers(network), lambda: network(batch))
        >>> [abs(variance - 1) < 0.1 for variance in found.values()]
        [True, True]
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"Expected `tolerance` between 0 and 1, but got {tolerance}.")
    found = {}
    for name in _order_of_pass(layers, run):
        layer = layers[name]
        variance = _variance_of(layer, run)
        for _ in range(steps):
            if abs(variance - 1) < tolerance or not 0 < variance < math.inf:
                break
            layer.weight.div_(math.sqrt(variance))
            variance = _variance_of(layer, run)
        if 0 < variance < math.inf:
            found[name] = variance
    return found


@torch.no_grad()
def load_fitting(module: nn.Module, state: Mapping[str, Tensor], name: str) -> list[str]:
    """Take those tensors of a state that a module has under the same name and in the same shape.

    Args:
        module: The module.
        state: By the names of its ``state_dict``.
        name: Names the state in the message, such as its file.

    Returns:
        The module's tensors that the state lacks, which stay as they are.

    Raises:
        ValueError: If no tensor fits.

    Example:
        >>> load_fitting(nn.Linear(2, 3), {"weight": torch.zeros(3, 2)}, "trunk.ckpt")
        ['bias']
    """
    own = module.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    if not fitting:
        theirs = ", ".join([*state][:3])
        raise ValueError(
            f"Expected tensors in {name} that fit {type(module).__name__} by name and shape, but got none: it holds "
            f"{theirs or 'nothing'}, the module {', '.join([*own][:3])}. Rename them, or give another file."
        )
    module.load_state_dict(fitting, strict=False)
    return [key for key in own if key not in fitting]


def _inputs_of(layer: Any) -> int:
    """How many inputs a unit sums over."""
    weight = layer.weight
    if getattr(layer, "transposed", False):
        return int(weight[:, 0].numel() // layer.groups)
    return int(weight[0].numel())


def _order_of_pass(layers: Mapping[str, Any], run: Callable[[], Any]) -> list[str]:
    """The layers that a pass reaches, in that order."""
    reached: dict[str, None] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda *_, name=name: reached.setdefault(name))
        for name, layer in layers.items()
    ]
    with _removed_after(hooks):
        run()
    return list(reached)


def _variance_of(layer: Any, run: Callable[[], Any]) -> float:
    """The variance over all values of a layer's first output in a pass."""
    seen: list[Tensor] = []

    def look(layer: nn.Module, args: Any, output: Tensor) -> None:
        seen.append(output)

    with _removed_after([layer.register_forward_hook(look)]):
        run()
    return seen[0].double().var().item()


@contextmanager
def _removed_after(hooks: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
