"""How parity passes build and run engines and what they log: the arguments of DeploymentParityCallback for that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_robust.deployment.engines.settings import BuildSettings

Log = Literal["brief", "full"]


@dataclass(frozen=True)
class PassSettings(BuildSettings):
    """How the engines of a training are built and run: :class:`~.engines.settings.BuildSettings`, when, what is logged.

    Args:
        background: During ``fit``, build and run engines while training goes on. Their numbers arrive at a later
            validation or when training ends, with the step whose weights they belong to in ``parity/<target>/step``; do
            not let a checkpoint be chosen by them.
        perturb_targets: Run every target that is measured on the perturbed inputs too:
            ``sensitivity/<perturbation>/<target>/<unit>``.
        log: Which numbers go to loggers: ``"brief"`` (of each target its distance, with an interval where it computes
            in half precision or int8, or why it has none; one of each family of perturbations; and what is monitored or
            has a tolerance) or ``"full"``. All of them can be monitored either way, and are in ``parity.json``.

    Raises:
        ValueError: For another `log`.
    """

    background: bool = False
    perturb_targets: bool = False
    log: Log = "brief"

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        super().__post_init__()
        if self.log not in ("brief", "full"):
            raise ValueError(f"Expected `log` to be 'brief' or 'full', but got {self.log!r}.")
