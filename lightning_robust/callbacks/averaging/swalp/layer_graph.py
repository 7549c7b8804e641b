"""Which layers give a module's outputs, read off the autograd graph of its training passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node


class LayerGraph:
    """Watches layers in training mode, and tells which of them no other one computes from.

    These are the heads of a module, whatever the order in which layers were made and however many heads there are.

    Args:
        layers: The layers by name.

    Example:
        >>> import torch
        >>> net = nn.ModuleDict({"head": nn.Linear(2, 2), "stem": nn.Linear(2, 2)})
        >>> graph = LayerGraph(dict(net.items()))
        >>> _ = net["head"](net["stem"](torch.ones(1, 2)).relu())
        >>> graph.outputs()
        ['head']
        >>> graph.close()
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._names = {layer: name for name, layer in layers.items()}
        self._nodes: dict[Node, str] = {}
        """What computed the output of a layer."""
        self._last = ""
        self._handles = [layer.register_forward_hook(self._record) for layer in layers.values()]

    def outputs(self) -> list[str]:
        """Names of the layers that gave the outputs so far; the last one called where there is no graph to read."""
        seen: set[Node] = set()
        consumed: set[Node] = set()
        for start in self._nodes:
            waiting = list(_inputs(start))
            while waiting:
                node = waiting.pop()
                if node in self._nodes:
                    consumed.add(node)
                elif node not in seen:
                    seen.add(node)
                    waiting += _inputs(node)
        heads = dict.fromkeys(name for node, name in self._nodes.items() if node not in consumed)
        return list(heads) or [self._last] * bool(self._last)

    def close(self) -> None:
        """Leave the layers without hooks and release the graph."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._nodes = [], {}

    def _record(self, layer: nn.Module, _: Any, output: Any) -> None:
        if layer.training:
            self._last = self._names[layer]
            if isinstance(output, Tensor) and output.grad_fn is not None:
                self._nodes[output.grad_fn] = self._last


def _inputs(node: Node) -> Iterator[Node]:
    """The nodes that a node of the graph takes its inputs from."""
    return (source for source, _ in node.next_functions if source is not None)
