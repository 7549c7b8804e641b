"""The arguments of ``forward`` and where a batch holds them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_robust.harness.compat import original_of_compiled
from lightning_robust.structures import WHOLE, Key, is_batch_object, keyword_only, parts_of_batch

_BATCHES = {"batch", "data"}
"""Names of parameters that mean all of the batch."""


@dataclass(frozen=True)
class ForwardSignature:
    """Which arguments a network takes.

    Args:
        network: Its name in messages.
        names: Names of the parameters, in order; those that are taken by name alone come last.
        by_position: How many of them are also taken by position.
        any_name: Whether it takes arguments of any name.
        defaults: The default of each parameter that has one.
    """

    network: str
    names: tuple[str, ...]
    by_position: int
    any_name: bool
    defaults: dict[str, Any]

    @property
    def required(self) -> list[str]:
        """The parameters without a default."""
        return [name for name in self.names if name not in self.defaults]

    def split(self, args: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments in the order of the parameters as those passed by position and those passed by name."""
        if self.by_position == len(self.names):
            return tuple(args), {}
        named = zip(self.names[self.by_position :], args[self.by_position :], strict=False)
        return tuple(args[: self.by_position]), dict(named)

    def keys_in(self, batch: Any) -> tuple[dict[str, Key], bool]:
        """Where the arguments are in a batch.

        Parameters whose names are keys of the batch are taken by name, else the leading parts of a sequence, as many as
        are required. Where the first part is a mapping with such names, or a network of one argument finds a list of
        one tensor and what tells of it there, as in ``((image, meta), label)``, they are taken from that part. A batch
        object goes whole into a network of one argument, and so does any batch into a parameter called ``batch`` or
        ``data``.

        Returns:
            The key of each argument by the name of its parameter, and whether they are passed by name.

        Raises:
            MisconfigurationException: If they cannot be found.
        """
        parts = parts_of_batch(batch)
        if self._finds_all_in(parts):
            return self._by_name(parts), True
        if self._takes_whole(batch):
            name = self._leading()[0]
            return {name: WHOLE}, self._by_name_alone(name)
        found = self._in_sequence(batch) if isinstance(batch, list | tuple) and batch else None
        if found is not None:
            return found
        raise MisconfigurationException(
            f"Expected the batch to hold what {self.network}.forward({', '.join(self.names)}) takes, but got "
            f"{type(batch).__name__} with {list(parts)}. Set `input_key` to the parts that are its arguments, or name "
            "its parameters like them."
        )

    def _in_sequence(self, batch: Sequence[Any]) -> tuple[dict[str, Key], bool] | None:
        """In the first part by name or beside what tells of it, else the leading parts; None where they are too few."""
        if isinstance(batch[0], Mapping) and self._finds_all_in(batch[0]):
            return {name: f"0.{key}" for name, key in self._by_name(batch[0]).items()}, True
        names = self._leading() or ["inputs"]
        by_name = self._by_name_alone(names[-1])
        place = _lone_tensor(batch[0]) if len(names) == 1 else None
        if place is not None:
            return {names[0]: f"0.{place}"}, by_name
        return ({name: place for place, name in enumerate(names)}, by_name) if len(batch) >= len(names) else None

    def _leading(self) -> list[str]:
        """The parameters that a batch without names fills: those without a default, else the first."""
        return self.required or [*self.names[:1]]

    def _by_name_alone(self, name: str) -> bool:
        return name in self.names[self.by_position :]

    def _finds_all_in(self, parts: Mapping[Key, Any]) -> bool:
        """Whether the required parameters, at least one, are names of parts; or parts of any name are taken."""
        if self.names:
            return any(name in parts for name in self.names) and set(self.required) <= parts.keys()
        return self.any_name and bool(parts) and not any(isinstance(part, int) for part in parts)

    def _by_name(self, parts: Mapping[Key, Any]) -> dict[str, Key]:
        """In the order of the parameters."""
        return {str(name): name for name in (self.names or parts) if name in parts}

    def _takes_whole(self, batch: Any) -> bool:
        """Whether all of the batch is the only argument that is required."""
        if not self.names or len(self.required) > 1:
            return False
        return isinstance(batch, Tensor) or is_batch_object(batch) or self._leading()[0] in _BATCHES


def _lone_tensor(part: Any) -> int | None:
    """Where the only tensor of a list stands that holds other things beside it; None for any other part."""
    if not isinstance(part, list | tuple) or len(part) < 2:
        return None
    places = [place for place, each in enumerate(part) if isinstance(each, Tensor)]
    return places[0] if len(places) == 1 else None


def signature_of(module: nn.Module, method: str = "forward") -> ForwardSignature:
    """The arguments of a module's ``forward``, or of another method.

    Raises:
        MisconfigurationException: If it has none.

    Example:
        >>> class Host(nn.Module):
        ...     def forward(self, image, speed=None): ...
        >>> signature_of(Host()).keys_in({"image": 1, "label": 2})
        ({'image': 'image'}, True)
        >>> signature_of(Host()).keys_in([3, 4])
        ({'image': 0}, False)
    """
    network = original_of_compiled(module) or module
    function = getattr(type(network), method)
    if function in (nn.Module.forward, pl.LightningModule.forward):
        raise MisconfigurationException(
            f"Expected {type(network).__name__} to have a method `forward`, which takes the inputs of a batch, but it "
            "has none. Define it."
        )
    # of the class, since mixins and compilers put wrappers on instances
    parameters = list(inspect.signature(function).parameters.values())[1:]
    kinds = inspect.Parameter
    positional = [p for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    named = keyword_only(function)
    return ForwardSignature(
        type(network).__name__,
        (*(p.name for p in positional), *named),
        len(positional),
        any(p.kind is kinds.VAR_KEYWORD for p in parameters),
        {p.name: p.default for p in parameters if p.default is not kinds.empty},
    )
