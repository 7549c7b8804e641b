"""The graph of a module that is exported again and again with other weights, as at each validation of a run."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from lightning_robust.deployment.graph.export import Exported, Flat, Template
from lightning_robust.deployment.graph.session import Session
from lightning_robust.functional.weights import call_with
from lightning_robust.rows import count_rows, take_rows
from lightning_robust.structures import flatten, map_tensors

_TOLERANCE = 1e-4  # of the largest output: a hundred times what ONNX Runtime and PyTorch differ by in fp32


class GraphKeeper:
    """Exports a module once, and puts the weights of later states into the same graph.

    That is exact where the module still computes the same: two samples are traced through it operation by operation,
    weights apart, so that a branch on a Python counter, another number, another layer or another shape of a buffer
    shows, whether or not it changes the outputs of these samples. What ONNX Runtime then makes of them is compared with
    PyTorch. Where the module is another one, cannot be traced, or the outputs differ by more than a ten-thousandth of
    their largest value, it is exported anew.

    Each call returns a graph of its own. Memory: the graph without weights. Cost of a later call: a tenth to a sixth of
    an export.

    Example:
        >>> import onnx
        >>> keeper, layer, graphs = GraphKeeper(), nn.Linear(1, 1, bias=False).eval(), []
        >>> for weight in (2.0, 3.0):
        ...     _ = layer.weight.data.fill_(weight)
        ...     graphs.append(keeper.export(layer, (torch.ones(2, 1),)).model.graph)
        >>> [onnx.numpy_helper.to_array(graph.initializer[0]).item() for graph in graphs]
        [2.0, 3.0]
    """

    def __init__(self) -> None:
        self._template: Template | None = None
        self._program = b""

    def export(self, module: nn.Module, args: tuple[Any, ...], *, max_batch: int = 4096) -> Exported:
        """As :func:`~.export.export`, which says what is raised.

        Args:
            module: The module, frozen as by :func:`~.export.frozen_copy`.
            args: Positional arguments of its ``forward``.
            max_batch: The largest batch that the graph has to take.
        """
        start = time.monotonic()
        samples = count_rows(args)
        rows = take_rows(args, slice(2), samples)
        program = _program(module, rows, max_batch)
        if self._template is not None and program and program == self._program:
            exported = self._template.filled(module)
            if _agree(exported, module, take_rows(args, slice(exported.batch or 2), samples)):
                return replace(exported, seconds=time.monotonic() - start)
        self._template = None
        template = Template(module, args, max_batch=max_batch)
        exported = template.filled(module)
        self._template, self._program = template, program
        return replace(exported, seconds=time.monotonic() - start)


@torch.no_grad()
def _program(module: nn.Module, args: tuple[Any, ...], max_batch: int) -> bytes:
    """A hash of what a module computes apart from its weights; empty where it cannot be traced."""
    flat = Flat(module, args)
    weights = {**dict(flat.named_parameters()), **dict(flat.named_buffers())}
    inputs = flatten(args)
    try:
        traced = make_fx(lambda own, given: call_with(flat, own, given))(weights, tuple(inputs.values()))
        outputs = list(flatten(module(*map_tensors(Tensor.clone, args))))
    except Exception:  # what PyTorch cannot trace, it may still export
        return b""
    kinds = [(name, tensor.dtype, tensor.shape) for name, tensor in {**weights, **inputs}.items()]
    digest = hashlib.sha256(repr((traced.code, outputs, kinds, max_batch)).encode())
    for name, constant in traced.named_buffers():
        digest.update(f"{name} {constant.dtype} {tuple(constant.shape)}".encode() + _bytes(constant))
    return digest.digest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@torch.no_grad()
def _agree(exported: Exported, module: nn.Module, args: tuple[Any, ...]) -> bool:
    """Whether ONNX Runtime computes what PyTorch does."""
    expected = flatten(module(*map_tensors(Tensor.clone, args))).values()
    try:
        feeds = {name: tensor.numpy() for name, tensor in zip(exported.inputs, flatten(args).values(), strict=True)}
        results = Session(exported.model).run(feeds)
        return all(map(_is_near, results, expected))
    except Exception:  # the targets say what is wrong with a graph that does not run
        return False


def _is_near(result: Tensor, expected: Tensor) -> bool:
    size = expected.double().nan_to_num(posinf=0.0, neginf=0.0).abs().max().item() if expected.numel() else 0.0
    return torch.allclose(result.double(), expected.double(), rtol=0.0, atol=_TOLERANCE * size, equal_nan=True)
