"""The evaluators of robust validation by name, and their arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from lightning_robust.callbacks.robust_validation.auto_evaluator import AutoEvaluator
from lightning_robust.callbacks.robust_validation.batch_evaluator import BatchEvaluator
from lightning_robust.callbacks.robust_validation.pgd_evaluator import PGDEvaluator
from lightning_robust.callbacks.robust_validation.smallest_eps import SmallestEpsEvaluator
from lightning_robust.suggest import did_you_mean

EvaluatorName = Literal["pgd", "auto", "smallest_eps"]
_EVALUATORS: dict[str, type[BatchEvaluator]] = {
    "pgd": PGDEvaluator,
    "auto": AutoEvaluator,
    "smallest_eps": SmallestEpsEvaluator,
}

DEFAULT_STEPS = {
    "pgd": PGDEvaluator.steps,
    "auto": AutoEvaluator.steps,
    "smallest_eps": SmallestEpsEvaluator.steps,
}
"""Steps of each evaluator's attacks where none are given."""


class EvaluatorArguments(TypedDict, total=False):
    """Arguments of the evaluators; those not given have the defaults of theirs.

    Args:
        steps: Of pgd, 10 by default; 0 takes a single FGSM step. Of each APGD of auto, 50 by default, and of
            smallest_eps, 20 by default.
        restarts: Of pgd: attacks from random points, of which the one with the highest loss counts for each sample. 1
            by default. Where ``attack_loss`` does not give a loss for each, the step is run on single samples at the
            end of each of several restarts (a pass over the batch, one by one); if their mean is not the loss of the
            batch, as with class weights, whole batches are compared, and a warning says so.
        drop_solved: Of pgd, for classifiers: attack samples no further once they are taken for another class.
            Accuracies are those of the worst iterate, so never higher; losses stop rising there; the fewer samples
            withstand, the less it costs. Auto always does so.
        target_key: Where ``drop_solved`` and auto find the classes in a batch; None, the default, is behind the inputs
            of a sequence, or a usual name as ``"label"``.
        targets: Of auto, for classifiers: wrong classes that are attacked one by one, the likeliest first; 9 by
            default.
        queries: Of auto: of the Square attack on what is left, 500 by default; 0 leaves it out.
        moves: Of smallest_eps: by how much which decoded value has to move, ``{lateral_px: 20}``.
        halvings: Of smallest_eps: how often the interval of the radius is halved, 6 by default.
    """

    steps: int
    restarts: int
    drop_solved: bool
    target_key: int | str | None
    targets: int | None
    queries: int
    moves: dict[str, float]
    halvings: int


def make_evaluator(name: str, given: Mapping[str, Any], prefix: str = "") -> BatchEvaluator:
    """The evaluator of a name, with its arguments.

    Args:
        name: Of the evaluator.
        given: Arguments by name.
        prefix: Of the names of arguments in messages.

    Raises:
        TypeError: For an argument that no evaluator takes; the message names the nearest.
        ValueError: For an unknown name, an argument of another evaluator, or one that is lacking or out of range.

    Example:
        >>> make_evaluator("pgd", {"steps": 3})
        PGDEvaluator(steps=3, restarts=1, drop_solved=False, target_key=None)
    """
    if name not in _EVALUATORS:
        raise ValueError(f"Expected `{prefix}evaluator` to be one of {', '.join(_EVALUATORS)}, but got {name!r}.")
    given = {argument: value for argument, value in given.items() if value is not None}
    for argument, value in given.items():
        _require_taker(name, argument, value, prefix)
    if name == "smallest_eps" and "moves" not in given:
        raise ValueError("Expected `moves` with evaluator='smallest_eps', such as {'lateral_px': 20}, but got none.")
    evaluator = _EVALUATORS[name](**given)
    evaluator.check(prefix)
    return evaluator


def _require_taker(name: str, argument: str, value: object, prefix: str) -> None:
    """Refuse an argument that the evaluator does not take."""
    takers = [each for each in _EVALUATORS if argument in _arguments_of(each)]
    if not takers:
        hint = did_you_mean(argument, sorted(EvaluatorArguments.__annotations__), 1)
        raise TypeError(f"RobustValidationCallback got an unexpected argument {argument!r}.{hint}")
    if name not in takers:
        raise ValueError(
            f"Expected no `{prefix}{argument}` with evaluator={name!r}, which does not take it, but got {value!r}. "
            f"Leave it out, or choose an evaluator that takes it: {', '.join(takers)}."
        )


def _arguments_of(name: str) -> list[str]:
    return [each.name for each in dataclasses.fields(_EVALUATORS[name]) if each.init]  # type: ignore[arg-type]
