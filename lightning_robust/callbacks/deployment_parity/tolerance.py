"""What happens when a parity metric lies beyond its tolerance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_robust.deployment.parity.verdict import violations
from lightning_robust.harness.closing import warn

Action = Literal["log", "warn", "stop", "raise"]


def hold_tolerances(
    trainer: pl.Trainer, scalars: Mapping[str, float], tolerance: Mapping[str, float] | None, action: Action
) -> None:
    """Warn, stop the training or raise if a metric lies beyond its tolerance.

    Args:
        trainer: The Trainer.
        scalars: Values by tag.
        tolerance: As for :func:`~lightning_robust.deployment.parity.verdict.violations`.
        action: ``"log"`` does nothing, since the metrics are logged already.

    Raises:
        MisconfigurationException: If the action is ``"raise"``.
    """
    broken = violations(scalars, tolerance)
    if not broken or action == "log":
        return
    message = f"Deployment parity is violated: {'; '.join(map(str, broken))}."
    if action == "raise":
        raise MisconfigurationException(message)
    warn(message)
    if action == "stop":
        trainer.should_stop = True
