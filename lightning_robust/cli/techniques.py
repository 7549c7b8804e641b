"""The techniques as keys of the command line: a line of :data:`TECHNIQUES`, or an installed package's entry point."""

from __future__ import annotations

import inspect
import typing
from typing import Any, Literal, NamedTuple

from lightning.pytorch import Callback

from lightning_robust.callbacks import (
    AdversarialCallback,
    DatapathCallback,
    DeploymentParityCallback,
    GreedySoupCallback,
    InitialiseCallback,
    LayerCriticalityCallback,
    LazyTrainingCallback,
    RobustValidationCallback,
    SWACallback,
    WiSEFTCallback,
)
from lightning_robust.extensions import load_extensions


class Slot(NamedTuple):
    """A key of the command line and the callback that it switches on."""

    key: str
    cls: type[Callback]

    @property
    def words(self) -> tuple[str, ...]:
        """The methods of the callback, each of which may stand alone for ``{method: ...}``."""
        method = inspect.signature(self.cls, eval_str=True).parameters.get("method")
        kinds = [] if method is None else [method.annotation, *typing.get_args(method.annotation)]
        return next((typing.get_args(kind) for kind in kinds if typing.get_origin(kind) is Literal), ())

    @property
    def values(self) -> Any:
        """The type of what the key takes."""
        return bool | Literal[self.words] | self.cls if self.words else bool | self.cls

    @property
    def needs_arguments(self) -> bool:
        """Whether ``true`` does not say enough."""
        parameters = inspect.signature(self.cls).parameters.values()
        return any(each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD for each in parameters)


TECHNIQUES: tuple[Slot, ...] = (
    Slot("initialise", InitialiseCallback),
    Slot("adversarial", AdversarialCallback),
    Slot("robust_validation", RobustValidationCallback),
    Slot("layer_criticality", LayerCriticalityCallback),
    Slot("lazy_training", LazyTrainingCallback),
    Slot("datapath", DatapathCallback),
    Slot("swa", SWACallback),
    Slot("greedy_soup", GreedySoupCallback),
    Slot("wise_ft", WiSEFTCallback),
    Slot("deployment_parity", DeploymentParityCallback),
)
"""The keys in the order in which they are instantiated."""
_TAKEN = {"model", "data", "trainer", "optimizer", "lr_scheduler", "seed_everything", "config", "ckpt_path"}


def slots() -> tuple[Slot, ...]:
    """All keys: :data:`TECHNIQUES`, then those of installed packages (entry points ``lightning_robust.techniques``).

    Example:
        >>> slots()[0].key
        'initialise'
    """
    found = load_extensions("techniques", _is_callback, "a subclass of lightning.pytorch.Callback")
    taken = {slot.key for slot in TECHNIQUES} | _TAKEN
    return (*TECHNIQUES, *(Slot(key, cls) for key, cls in found.items() if key not in taken))


def _is_callback(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Callback)
