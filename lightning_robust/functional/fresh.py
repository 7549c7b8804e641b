"""Whether the weights of a module are those of a fresh initialisation."""

from __future__ import annotations

import math

from torch import Tensor, nn

from lightning_robust.torch_names import AnyBatchNorm, AnyConvolution

_ROUNDING = 1e-6
_LIKE_UNIFORM = 0.1
"""How far the spread of a hundred uniform values and more lies from its expectation at most."""
_LEAST_VALUES = 100


def looks_untrained(module: nn.Module) -> bool:
    r"""Whether no layer shows a trace of training, and at least one shows that it is fresh.

    A normalisation layer is fresh with scales of one, offsets of zero and no statistics. A linear layer or convolution
    is, with an offset of zero, or with weights as torch draws them: uniform in :math:`\pm 1 / \sqrt{n}` with :math:`n`
    inputs, of which the first steps of training take some out of that range. Other layers say nothing.

    Example:
        >>> network = nn.Sequential(nn.Linear(100, 100), nn.BatchNorm1d(100))
        >>> looks_untrained(network)
        True
        >>> _ = nn.init.constant_(network[1].bias, 0.1)
        >>> looks_untrained(network)
        False
    """
    findings = [found for layer in module.modules() if (found := _is_fresh(layer)) is not None]
    return bool(findings) and all(findings)


def _is_fresh(layer: nn.Module) -> bool | None:
    """None where the layer does not tell."""
    if isinstance(layer, AnyBatchNorm | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm):
        return _norm_is_fresh(layer)
    if isinstance(layer, nn.Linear | AnyConvolution):
        return _weights_are_fresh(layer.weight, layer.bias)
    return None


def _norm_is_fresh(layer: nn.Module) -> bool | None:
    values = {**dict(layer.named_parameters(recurse=False)), **dict(layer.named_buffers(recurse=False))}
    values.pop("running_var", None)  # at one too, but the mean tells the same
    fresh = [bool((tensor == (1 if name == "weight" else 0)).all()) for name, tensor in values.items()]
    return all(fresh) if fresh else None


def _weights_are_fresh(weight: Tensor, bias: Tensor | None) -> bool | None:
    if bias is not None and not bias.any():
        return True
    values = weight.detach().float()
    bound = 1 / math.sqrt(max(values[0].numel(), 1)) if len(values) else 0.0
    if values.numel() < _LEAST_VALUES or not bound:
        return None
    inside = values.abs().max().item() <= bound * (1 + _ROUNDING)
    spread = values.square().mean().sqrt().item() * math.sqrt(3) / bound
    if inside and abs(spread - 1) < _LIKE_UNIFORM:
        return True
    # weights that were drawn in another way, without an offset, do not tell
    return None if bias is None else False
