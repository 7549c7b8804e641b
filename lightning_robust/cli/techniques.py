"""The techniques as keys of the command line. A new one joins by one line of :data:`TECHNIQUES`."""

from __future__ import annotations

from typing import NamedTuple

from lightning.pytorch import Callback

from lightning_robust.callbacks import (
    AdversarialCallback,
    DatapathCallback,
    DeploymentParityCallback,
    GreedySoupCallback,
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


TECHNIQUES: tuple[Slot, ...] = (
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
