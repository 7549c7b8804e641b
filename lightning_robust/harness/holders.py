"""Things that hold other things, as lists, dicts and the attributes of objects: what they hold, and putting it back."""

from __future__ import annotations

import sys
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from lightning_robust.harness.compat import internal_attributes

CODE = (FunctionType, BuiltinFunctionType, MethodType, type, ModuleType)
_LIBRARIES = {"torch", "torchmetrics", "lightning", "pytorch_lightning", "lightning_fabric", *sys.stdlib_module_names}
_NO_DATA = (pl.Trainer, pl.Callback, pl.LightningDataModule, Logger, Optimizer, Dataset, DataLoader)
_CONTAINERS = (list, dict, set, deque, tuple, frozenset)


@dataclass
class Holder:
    """A container, or an object with its attributes.

    Args:
        thing: The container or object.
        path: Names it in messages.

    Example:
        >>> outputs = [1, 2]
        >>> holder = Holder(outputs, "outputs")
        >>> outputs.append(3)
        >>> holder.refill(holder.contents)
        >>> outputs
        [1, 2]
    """

    thing: Any
    path: str
    contents: dict[Any, Any] = field(init=False)
    """What it held when this was made, by key, position or name."""

    def __post_init__(self) -> None:
        """Note what it holds."""
        self.contents = _contents(self.thing)

    @property
    def is_container(self) -> bool:
        """Whether it is a container, whose items may be of any kind."""
        return isinstance(self.thing, _CONTAINERS)

    @property
    def is_fixed(self) -> bool:
        """Whether it cannot hold other things."""
        return isinstance(self.thing, tuple | frozenset)

    def path_to(self, key: Any) -> str:
        """The name of one thing that it holds."""
        return f"{self.path}[{key!r}]" if self.is_container else f"{self.path}.{key}"

    def refill(self, contents: dict[Any, Any]) -> None:
        """Hold these and nothing else; the thing stays the same object."""
        thing = self.thing
        if self.is_fixed:
            return
        if isinstance(thing, list):
            thing[:] = contents.values()
        elif isinstance(thing, dict):
            # of the base class, since `Counter.update` adds
            kind = OrderedDict if isinstance(thing, OrderedDict) else dict
            kind.clear(thing)
            kind.update(thing, contents)
        elif isinstance(thing, set):
            thing.clear()
            thing.update(contents.values())
        elif isinstance(thing, deque):
            thing.clear()
            thing.extend(contents.values())
        else:
            _set_attributes(thing, contents)


def holds_data(value: Any) -> bool:
    """Whether a value is a container, or an object that a step may keep numbers in.

    Trainers, loggers, data sets, and objects of libraries with a life of their own, are none.

    Example:
        >>> class AverageMeter:
        ...     total = 0.0
        >>> holds_data([]), holds_data(AverageMeter()), holds_data(len), holds_data(Dataset())
        (True, True, False, False)
    """
    if isinstance(value, (*_CONTAINERS, SimpleNamespace)):
        return True
    if isinstance(value, (*CODE, *_NO_DATA)):
        return False
    return bool(_has_attributes(value)) and type(value).__module__.partition(".")[0] not in _LIBRARIES


def _has_attributes(value: Any) -> bool:
    return hasattr(value, "__dict__") or any("__slots__" in vars(base) for base in type(value).__mro__)


def _contents(thing: Any) -> dict[Any, Any]:
    if isinstance(thing, dict):
        return dict(thing)
    if isinstance(thing, _CONTAINERS):
        return dict(enumerate(thing))
    if not isinstance(thing, nn.Module):
        return {name: getattr(thing, name) for name in _names(thing)}
    hidden = internal_attributes()
    return {n: v for n, v in vars(thing).items() if n not in hidden and not isinstance(v, CODE)}


def _names(thing: Any) -> list[str]:
    slots = [name for base in type(thing).__mro__ for name in _listed_slots(base) if hasattr(thing, name)]
    return [*getattr(thing, "__dict__", {}), *slots]


def _listed_slots(cls: type) -> list[str]:
    slots = vars(cls).get("__slots__", ())
    return [slots] if isinstance(slots, str) else [name for name in slots if name not in ("__dict__", "__weakref__")]


def _set_attributes(thing: Any, contents: dict[str, Any]) -> None:
    for name in _contents(thing):
        if name not in contents:
            object.__delattr__(thing, name)
    for name, value in contents.items():
        object.__setattr__(thing, name, value)
