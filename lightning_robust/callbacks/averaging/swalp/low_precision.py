"""Training in block floating point, which SWACallback switches on: what is rounded, when, and with which dither."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_robust.functional.quantization import quantize_block
from lightning_robust.harness.compat import AnyConvolution

_FIRST_MOMENTS = ("momentum_buffer", "exp_avg")
_LARGE = 1_000_003


class LowPrecision:
    """Rounds stochastically to few bits whatever SWALP's training step holds in them.

    Gradients are rounded before the optimizer's step; weights and momentum (``momentum_buffer``, ``exp_avg``) after
    it, in hooks of the optimizer, so that any optimizer works. Activations behind linear layers and convolutions, and
    the errors that come back to them, are rounded in hooks of the layers, except for the last such layer of the module,
    whose outputs are the logits. Matrices and kernels have one exponent for each index of their first dimension,
    vectors and activations one for the whole tensor. The weights serve as the accumulator, which would not change when
    rounded again to the same grid. Second moments of Adam stay in fp32: rounded to 8 bits beside larger ones they
    become 0, and the step infinite.

    The dither depends on the seed, the step and the rank alone, so that runs can resume. That of weights, gradients and
    momentum is the same on all ranks, so that replicas stay equal.

    Args:
        word_length: Number of bits, 2 to 24.
        seed: Seed of the dither.

    Raises:
        ValueError: For a word length out of range.
    """

    def __init__(self, word_length: int, seed: int) -> None:
        quantize_block(torch.zeros(1), word_length)  # refuses a bad word length
        self.word_length = word_length
        self.seed = seed
        self._rank = 0
        self._handles: list[RemovableHandle] = []
        self._of_all_ranks: torch.Generator | None = None
        self._of_rank: torch.Generator | None = None

    def attach(self, module: nn.Module, optimizers: Iterable[Optimizer], rank: int, *, resumed: bool) -> None:
        """Place the hooks and round the weights; those of a resumed run are rounded already."""
        device = next(module.parameters()).device
        self._of_all_ranks, self._of_rank = torch.Generator(device), torch.Generator(device)
        self._rank = rank
        self.begin_step(0)
        layers = [part for part in module.modules() if isinstance(part, nn.Linear | AnyConvolution)]
        for layer in layers[:-1]:
            self._handles.append(layer.register_forward_hook(self._round_output))
        for optimizer in optimizers:
            self._handles.append(optimizer.register_step_post_hook(self._after_step))
            if not resumed:
                self._round_all(_parameters(optimizer))

    def detach(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._of_all_ranks, self._of_rank = [], None, None

    def begin_step(self, step: int) -> None:
        """Draw the dither of this step."""
        if self._of_all_ranks is not None and self._of_rank is not None:
            self._of_all_ranks.manual_seed(self.seed + _LARGE * step)
            self._of_rank.manual_seed(self.seed + _LARGE * step + 1 + self._rank)

    def round_gradients(self, optimizer: Optimizer) -> None:
        """Before the optimizer's step; inside its closure, so that a hook of the optimizer would come too early."""
        self._round_all(parameter.grad for parameter in _parameters(optimizer) if parameter.grad is not None)

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        parameters = list(_parameters(optimizer))
        self._round_all(parameters)
        states = (optimizer.state.get(parameter, {}) for parameter in parameters)
        self._round_all(state[key] for state in states for key in _FIRST_MOMENTS if state.get(key) is not None)

    def _round_all(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            block = 0 if tensor.ndim > 1 else None
            quantize_block(tensor, self.word_length, block_dim=block, generator=self._of_all_ranks, out=tensor)

    def _round_output(self, layer: nn.Module, _: Any, output: Tensor) -> Tensor | None:
        if not layer.training:
            return None
        rounded: Tensor = _RoundBothWays.apply(output, self.word_length, self._of_rank)  # type: ignore[no-untyped-call]
        return rounded


class _RoundBothWays(torch.autograd.Function):
    """Rounds activations on the way forward and errors on the way back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, word_length: int, generator: torch.Generator | None) -> Tensor:
        ctx.settings = word_length, generator
        return quantize_block(tensor, word_length, generator=generator)

    @staticmethod
    def backward(ctx: Any, *errors: Tensor) -> tuple[Tensor, None, None]:
        word_length, generator = ctx.settings
        return quantize_block(errors[0], word_length, generator=generator), None, None


def _parameters(optimizer: Optimizer) -> Iterable[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])
