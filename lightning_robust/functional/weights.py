"""The weights of a module as a list of tensors that can be exchanged for others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_robust.functional.averaging import require_same
from lightning_robust.functional.shards import gathered, is_distributed, own_part, reshard
from lightning_robust.number_types import has_mean
from lightning_robust.torch_names import is_compiled


class Weights:
    """The parameters and saved buffers of a module, each tensor once, to be averaged and exchanged.

    Tied tensors appear once, under their first name. Exchanging moves no data: parameters and buffers are pointed at
    the other tensors and back. Where that would be wrong (subclasses of tensors; compiled modules, whose graphs may
    hold addresses) or impossible (another type or device), values are copied instead. Of a tensor that lies on several
    ranks (FSDP2) it is the part of this rank that is averaged and exchanged, without communication.

    Args:
        module: The module. Buffers that are not saved in its ``state_dict`` are left alone.
        only: Names of the tensors to take; all by default.

    Raises:
        ValueError: If the module has no tensor to average, of real or complex numbers.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> weights = Weights(layer)
        >>> weights.names
        ['weight']
        >>> with weights.exchanged([torch.tensor([[7.0]])]):
        ...     print(layer.weight.item())
        7.0
    """

    def __init__(self, module: nn.Module, only: Collection[str] | None = None) -> None:
        self._module = module
        reshard(module)
        chosen = set(module.state_dict() if only is None else only)
        parameters = {name: tensor for name, tensor in module.named_parameters() if name in chosen}
        buffers = [name for name, _ in module.named_buffers() if name in chosen]
        self.names = [*parameters, *buffers]
        self._parameters: list[Tensor] = list(parameters.values())
        self._owners = [_owner(module, name) for name in buffers]
        if not any(map(has_mean, self.live())):
            raise ValueError(
                f"Expected floating-point parameters or buffers in {type(module).__name__}, but it has none: there is "
                "nothing to average. Take weight averaging out of its callbacks."
            )
        self._plain = not is_compiled(module) and set(map(type, self.live())) <= {Tensor, nn.Parameter}
        self._sharded = any(map(is_distributed, self.live()))

    def live(self) -> list[Tensor]:
        """The module's own tensors; buffers are looked up at every call, since modules may replace them."""
        return [*self._parameters, *(getattr(owner, name) for owner, name in self._owners)]

    def tensors(self) -> list[Tensor]:
        """What this rank holds of :meth:`live`: the same tensors, unless they are sharded."""
        return list(map(own_part, self.live())) if self._sharded else self.live()

    def by_every_name(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        """Values in the order of :meth:`tensors` by the names of the module's ``state_dict``, tied ones by each."""
        first = {id(live): value for live, value in zip(self.live(), values, strict=True)}
        named = [f(remove_duplicate=False) for f in (self._module.named_parameters, self._module.named_buffers)]
        return {name: first[id(live)] for name, live in (*named[0], *named[1]) if id(live) in first}

    @contextmanager
    def exchanged(self, values: Sequence[Tensor]) -> Iterator[None]:
        """The module holds ``values`` inside the block and its own tensors again after it, also after an error."""
        held = self.put(values)
        try:
            yield
        finally:
            self.restore(held)

    @torch.no_grad()
    def put(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Point the module at ``values``; returns the tensors it held, for :meth:`restore`."""
        held = []
        for live, value in zip(self.tensors(), values, strict=True):
            if self._plain:
                held.append(live.data)
                live.data = value if value.dtype == live.dtype and value.device == live.device else value.to(live)
            else:
                held.append(live.detach().clone())
                live.copy_(value)
        if self._sharded:
            reshard(self._module)
        return held

    @torch.no_grad()
    def restore(self, held: Sequence[Tensor]) -> None:
        """Undo :meth:`put`."""
        for live, tensor in zip(self.tensors(), held, strict=True):
            if self._plain:
                live.data = tensor
            else:
                live.copy_(tensor)
        if self._sharded:
            reshard(self._module)

    @torch.no_grad()
    def read_buffers(self, values: Sequence[Tensor]) -> None:
        """Bring ``values`` up to date with the module's buffers, where :meth:`put` had to copy them."""
        first = len(self._parameters)
        for live, value in zip(self.tensors()[first:], values[first:], strict=True):
            if live.shape != value.shape:
                value.data = live.detach().to(value.dtype, copy=True)
            elif live.data_ptr() != value.data_ptr():
                value.copy_(live)

    def state_dict(
        self, values: Sequence[Tensor], read: Callable[[], dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor]:
        """The module's ``state_dict`` as it would be with ``values``; shares memory with them where it can.

        Args:
            values: In the order of :meth:`tensors`.
            read: Reads the state; ``state_dict`` of the module by default.
        """
        with self.exchanged(values):
            state = (read or self._module.state_dict)()
            if self._plain:
                return state
            return {key: item.detach().clone() if isinstance(item, Tensor) else item for key, item in state.items()}


def awaits_first_pass(module: nn.Module) -> bool:
    """Whether the module has lazy layers, whose weights come into being in its first forward pass.

    Example:
        >>> layer = nn.LazyLinear(1)
        >>> awaits_first_pass(layer)
        True
        >>> _ = layer(torch.zeros(1, 3))
        >>> awaits_first_pass(layer)
        False
    """
    return any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers()))


def state_on_cpu(module: nn.Module, *, keep: bool = True) -> dict[str, Tensor]:
    """A copy of the module's ``state_dict`` in the memory of the CPU.

    Of sharded weights it is the whole tensors, gathered one by one.

    Args:
        module: The module.
        keep: Whether this rank wants it. Where weights are sharded the others have to call it too, and get nothing.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> state = state_on_cpu(layer)
        >>> _ = layer.weight.data.add_(1.0)
        >>> round((layer.weight - state["weight"]).item(), 4)
        1.0
    """
    state = {}
    for name, tensor in module.state_dict().items():
        whole = gathered(tensor)
        if keep:
            state[name] = whole.to("cpu", copy=True)
    return state


def load_same(module: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load a state that holds all of a module's tensors and no others, or say in one sentence where it differs.

    Args:
        module: The module.
        state: By the names of its ``state_dict``.
        name: Names the state in the message, such as its file.

    Raises:
        ValueError: Naming the first tensors that are missing, additional, or of another shape.

    Example:
        >>> load_same(nn.Linear(2, 3), nn.Linear(2, 4).state_dict(), "wide.ckpt")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: Expected weight of shape (3, 2) in wide.ckpt, but got (4, 2) (and 1 more differ). ...
    """
    require_same(module.state_dict(), state, name, "Build the model with the arguments of that file's training.")
    module.load_state_dict(dict(state))


@contextmanager
def channels_last(module: nn.Module) -> Iterator[None]:
    """Inside the block, weights of 2-D convolutions lie in memory with their channels last, as bf16 kernels want them.

    Values are the same, and afterwards so are the tensors. Costs one copy of these weights.

    Example:
        >>> net = nn.Conv2d(8, 8, 3)
        >>> with channels_last(net):
        ...     print(net.weight.stride())
        (72, 1, 24, 8)
        >>> net.weight.stride()
        (72, 9, 3, 1)
    """
    original = [(weight, weight.data) for weight in module.parameters() if weight.ndim == 4]
    try:
        for weight, data in original:
            # `contiguous` would leave the strides of a single channel, by which kernels choose
            weight.data = data.clone(memory_format=torch.channels_last)
        yield
    finally:
        for weight, data in original:
            weight.data = data


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf


def call_with(
    module: nn.Module, tensors: Mapping[str, Tensor], args: tuple[Any, ...], named: Mapping[str, Any] | None = None
) -> Any:
    """Call a module with other parameters and buffers, which autograd sees; the module keeps its own.

    ``torch.func.functional_call`` alone leaves its tensors behind in a module that stands in two places of another one.

    Args:
        module: The module.
        tensors: By the names of ``named_parameters`` and ``named_buffers``; tied ones once. The others are its own.
        args: Positional arguments.
        named: Named arguments.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> twice = nn.Sequential(layer, layer)
        >>> call_with(twice, {"0.weight": torch.tensor([[3.0]])}, (torch.ones(1, 1),))
        tensor([[9.]])
        >>> twice[0].weight is next(twice.parameters())
        True
    """
    names = {id(tensor): name for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    places = {}
    # each module once, so that what it holds is put in and taken out once
    for path, part in module.named_modules():
        own = [f(recurse=False, remove_duplicate=False) for f in (part.named_parameters, part.named_buffers)]
        for attribute, tensor in (*own[0], *own[1]):
            if names[id(tensor)] in tensors:
                places[f"{path}.{attribute}" if path else attribute] = tensors[names[id(tensor)]]
    return torch.func.functional_call(module, places, args, dict(named or {}), tie_weights=False)
