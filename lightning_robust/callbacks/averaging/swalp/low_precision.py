"""Training in block floating point, which SWACallback switches on: what is rounded, when, and with which dither."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_robust.callbacks.averaging.swalp.layer_graph import LayerGraph
from lightning_robust.functional.quantization import quantize_block
from lightning_robust.functional.shards import gathered, is_distributed, own_part, part_of
from lightning_robust.harness.compat import AnyConvolution

_FIRST_MOMENTS = ("momentum_buffer", "exp_avg")
_LARGE = 1_000_003


class LowPrecision:
    """Rounds stochastically to few bits whatever SWALP's training step holds in them.

    Gradients are rounded before the optimizer's step; weights and momentum (``momentum_buffer``, ``exp_avg``) after
    it, in hooks of the optimizer, so that any optimizer works. Activations behind linear layers and convolutions, and
    the errors that come back to them, are rounded in hooks of the layers, except for the layers that give the outputs:
    those from which no other such layer computes, as the graph of the first training step tells. In this step
    activations are not rounded. Matrices and kernels have one exponent for each index of their first dimension,
    vectors and activations one for the whole tensor. The weights serve as the accumulator, which would not change when
    rounded again to the same grid. Second moments of Adam stay in fp32: rounded to 8 bits beside larger ones they
    become 0, and the step infinite.

    The dither depends on the seed, the step and the rank alone, so that runs can resume. That of weights, gradients and
    momentum is the same on all ranks, so that replicas stay equal. Sharded weights are gathered for it, one tensor at a
    time, three times a step.

    Args:
        word_length: Number of bits, 2 to 24.

    Raises:
        ValueError: For a word length out of range.
    """

    def __init__(self, word_length: int) -> None:
        quantize_block(torch.zeros(1), word_length)  # refuses a bad word length
        self.word_length = word_length
        self.seed: int | None = None
        """Seed of the dither; the state of a run has it."""
        self._exempt: list[str] | None = None
        self._rank = 0
        self._handles: list[RemovableHandle] = []
        self._of_all_ranks: torch.Generator | None = None
        self._of_rank: torch.Generator | None = None
        self._layers: dict[str, nn.Module] = {}
        self._graph: LayerGraph | None = None

    def attach(self, module: nn.Module, trainer: pl.Trainer, *, resumed: bool) -> None:
        """Place the hooks and round the weights; those of a resumed run are rounded already, and it keeps its seed."""
        # ranks may be seeded differently
        seed: int = trainer.strategy.broadcast(torch.initial_seed() % 2**31, 0)
        if not resumed:
            self.go_on(None, None)
        self.seed = seed if self.seed is None else self.seed
        device = next(module.parameters()).device
        self._of_all_ranks, self._of_rank = torch.Generator(device), torch.Generator(device)
        self._rank = trainer.global_rank
        self.begin_step(0)
        self._layers = {n: part for n, part in module.named_modules() if isinstance(part, nn.Linear | AnyConvolution)}
        if self._exempt is None:
            self._graph = LayerGraph(self._layers)
        else:
            self._round_layers(self._exempt)
        for optimizer in trainer.optimizers:
            self._handles.append(optimizer.register_step_post_hook(self._after_step))
            if not resumed:
                self._round_all(_parameters(optimizer))

    def go_on(self, seed: int | None, exempt: list[str] | None) -> None:
        """Continue an earlier run: its seed and the layers that it left out."""
        self.seed, self._exempt = seed, exempt

    def detach(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        if self._graph is not None:
            self._graph.close()
        self._graph, self._layers = None, {}
        self._handles, self._of_all_ranks, self._of_rank = [], None, None

    def begin_step(self, step: int) -> None:
        """Draw the dither of this step, and round activations from the second step on."""
        if self._graph is not None and self._graph.outputs():
            self._round_layers(self._graph.outputs())
            self._graph.close()
            self._graph = None
        if self._of_all_ranks is not None and self._of_rank is not None and self.seed is not None:
            self._of_all_ranks.manual_seed(self.seed + _LARGE * step)
            self._of_rank.manual_seed(self.seed + _LARGE * step + 1 + self._rank)

    def round_gradients(self, optimizer: Optimizer) -> None:
        """Before the optimizer's step; inside its closure, so that a hook of the optimizer would come too early."""
        self._round_all(parameter.grad for parameter in _parameters(optimizer) if parameter.grad is not None)

    def exempt(self) -> list[str] | None:
        """Names of the layers that give the outputs; None until a step has shown them. The state of a run has them."""
        return self._exempt if self._graph is None else self._graph.outputs() or None

    def _round_layers(self, exempt: list[str]) -> None:
        self._exempt = exempt
        for name, layer in self._layers.items():
            if name not in exempt:
                self._handles.append(layer.register_forward_hook(self._round_output))

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        parameters = list(_parameters(optimizer))
        self._round_all(parameters)
        states = (optimizer.state.get(parameter, {}) for parameter in parameters)
        self._round_all(state[key] for state in states for key in _FIRST_MOMENTS if state.get(key) is not None)

    @torch.no_grad()
    def _round_all(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            block = 0 if tensor.ndim > 1 else None
            # as a whole, for the exponent of a vector and a dither that does not depend on the number of ranks
            held = gathered(tensor)
            quantize_block(held, self.word_length, block_dim=block, generator=self._of_all_ranks, out=held)
            if is_distributed(tensor):
                own_part(tensor).copy_(part_of(held, tensor))

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
