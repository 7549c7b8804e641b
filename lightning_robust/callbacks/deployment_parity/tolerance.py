"""Which targets are measured and held to a tolerance, and what happens when one lies beyond it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_robust.checks import check_choices, check_texts
from lightning_robust.deployment.engines import BuildSettings, Runtime
from lightning_robust.deployment.engines.abilities import Ability
from lightning_robust.deployment.engines.targets import TARGETS, runtime
from lightning_robust.deployment.parity.tolerances import check_tolerances, violations, without_metric
from lightning_robust.harness.closing import warn
from lightning_robust.harness.ranks import Guard, on_rank_zero

Action = Literal["log", "warn", "stop", "raise"]


def hold_tolerances(
    trainer: pl.Trainer,
    scalars: Mapping[str, float],
    tolerance: Mapping[str, float] | None,
    action: Action,
    guard: Guard,
) -> None:
    """Warn, stop the training or raise if a metric lies beyond its tolerance; warn of one that there is not.

    Args:
        trainer: The Trainer.
        scalars: Values by tag.
        tolerance: As for :func:`~lightning_robust.deployment.parity.verdict.violations`.
        action: ``"log"`` does nothing, since the metrics are logged already.
        guard: Warns.

    Raises:
        MisconfigurationException: If the action is ``"raise"``.
    """
    for tag in without_metric(scalars, tolerance):
        guard.warn(f"a tolerance holds nothing: there is no {tag}. Is its metric written as it is logged?", key=tag)
    broken = violations(scalars, tolerance)
    if not broken or action == "log":
        return
    message = f"Deployment parity is violated: {'; '.join(map(str, broken))}."
    if action == "raise":
        raise MisconfigurationException(message)
    warn(message)
    if action == "stop":
        trainer.should_stop = True


def require_targets(
    targets: Literal["auto"] | list[str], tolerance: Mapping[str, float] | None, action: Action, deployed: Sequence[str]
) -> None:
    """Refuse targets that are none, unknown or named twice, and tolerances for those that are not measured.

    Args:
        targets: ``"auto"`` or names.
        tolerance: As for :func:`~lightning_robust.deployment.parity.verdict.violations`.
        action: What to do beyond one.
        deployed: Names of the targets of files that are deployed.

    Raises:
        ValueError: Naming the target or the argument.
    """
    check_choices(on_violation=(action, Action))
    check_texts(targets=targets)
    check_tolerances(tolerance)
    if targets == "auto":
        targets = [*TARGETS]
    elif not isinstance(targets, list):
        raise ValueError(f"Expected `targets` to be 'auto' or a list of names, but got {targets!r}.")
    elif not targets and not deployed:
        raise ValueError("Expected at least one target, or 'auto' for all that this machine has, but got none.")
    for name, times in Counter(targets).items():
        runtime(name)  # refuses an unknown one
        if times > 1:
            raise ValueError(f"Expected each target once, but got {name!r} {times} times.")
    for name in tolerance or {}:
        target = runtime(name.split("/")[0]).name
        if target not in [*targets, *deployed]:
            raise ValueError(f"Expected tolerances for targets that are measured, {targets}, but got {name!r}.")


def missing_targets(
    trainer: pl.Trainer, guard: Guard, asked: Sequence[Runtime], settings: BuildSettings
) -> dict[str, str]:
    """Target -> why it cannot be measured here, on every rank; nothing where that cannot be found out."""

    def ask() -> list[Ability]:
        return on_rank_zero(trainer, lambda: [made.can_build(settings) for made in asked], "It")

    abilities = guard.attempt(trainer, ask, "it is not known which targets can be built", [])
    return {made.name: able.reason for made, able in zip(asked, abilities, strict=False) if not able}
