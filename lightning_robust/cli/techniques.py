"""The techniques as keys of the command line. A new one joins by one line of :data:`TECHNIQUES`."""

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
