"""The short form of AdversarialCallback: ``method: pgd, steps: 7, val_steps: 20``.

A method's name and arguments become the method; the arguments of its robust validation carry a ``val_``.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypedDict

from lightning_robust.callbacks.adversarial.awp import AWP
from lightning_robust.callbacks.adversarial.embedding_methods import FGM, EmbeddingAttack, EmbeddingPGD, FreeLB
from lightning_robust.callbacks.adversarial.free import Free
from lightning_robust.callbacks.adversarial.guard import OnCollapse
from lightning_robust.callbacks.adversarial.methods import PGD, Attack
from lightning_robust.callbacks.adversarial.single_step import FGSM, FGSMRS, NFGSM
from lightning_robust.callbacks.adversarial.trades import MART, TRADES
from lightning_robust.callbacks.module_loss import AttackPrecision
from lightning_robust.callbacks.robust_validation.callback import RobustValidationCallback
from lightning_robust.functional.norm_ball import Norm
from lightning_robust.harness.arguments import parse_fraction
from lightning_robust.suggest import did_you_mean

MethodName = Literal["fgsm", "fgsm_rs", "nfgsm", "pgd", "free", "trades", "mart", "awp", "fgm", "freelb"]
METHODS: dict[str, type[Attack]] = {
    "fgsm": FGSM,
    "fgsm_rs": FGSMRS,
    "nfgsm": NFGSM,
    "pgd": PGD,
    "free": Free,
    "trades": TRADES,
    "mart": MART,
    "awp": AWP,
    "fgm": FGM,
    "freelb": FreeLB,
}
_KINDS: list[tuple[str, type[Attack]]] = [*METHODS.items(), ("pgd", EmbeddingPGD)]


class ShortForm(TypedDict, total=False):
    """Arguments of the method and of its robust validation; those not given have the defaults of their class.

    Args:
        steps: Of pgd, trades, mart, awp and freelb; replays of a batch for free. 7 by default.
        step_size: Of fgsm, fgsm_rs, pgd, trades, mart, awp, fgm and freelb; by default the method's own.
        norm: ``"linf"`` (default) or ``"l2"``; of fgsm, fgsm_rs, pgd, trades, mart and awp, and of their validation.
        attack_precision: ``"bf16"`` where the device computes in it (default), ``"32"``, or ``"same"`` as training. Not
            of free, trades, mart and freelb.
        beta: Weight of the divergence in trades, 6 by default, and in mart, 5 by default.
        gamma: Of awp: how far each weight tensor is perturbed, as a share of its norm; 0.01 by default.
        target_key: Where trades, mart and ``val_drop_solved`` find the classes in a batch; None, the default, is behind
            the inputs of a sequence, or a usual name as ``"label"``.
        embedding: Path of the embedding module that fgm, freelb and pgd perturb instead of the inputs, e.g.
            ``"encoder.embeddings"``.
        guard_every_n_steps: How often fgsm, fgsm_rs and nfgsm are probed for catastrophic overfitting with PGD on a
            part of the batch; 0 never, 50 by default.
        guard_limit: Largest sound quotient of the losses under PGD and under the training attack, 3 by default.
        on_collapse: ``"warn"`` (default); or also continue with ``"pgd"``, ``"shrink"`` the step, or ``"rollback"`` to
            the weights of the last sound probe and continue with PGD.
        val_eps: Radii to validate with; by default ``eps``, an empty list is no attack.
        val_steps: Steps of the PGD that validates, 10 by default; 0 validates with a single FGSM step.
        val_restarts: Attacks from random points, of which the one with the highest loss counts for each sample. 1 by
            default. Without an ``attack_loss`` that gives a loss for each sample, the end of each restart costs the
            step of each sample alone.
        val_batches: Attacked batches of each loader, 8 by default; null is all.
        val_drop_solved: For classifiers: attack samples no further once they are taken for another class. Accuracies
            are those of the worst iterate, so never higher; losses stop rising there; the fewer samples withstand, the
            less it costs.
        val_input_key: Which part of a validation batch is perturbed, where its form is another than in training; by
            default ``input_key``.
        val_under: Corruptions and perturbations to validate under too, such as ``["fog", "snow@3"]``; none by default.
        val_baseline: ``corruptions.json`` of another run that the mean corruption error is relative to, or its content.
    """

    steps: int
    step_size: float | str | None
    norm: Norm
    attack_precision: AttackPrecision
    beta: float
    gamma: float
    target_key: int | str | None
    embedding: str | None
    guard_every_n_steps: int
    guard_limit: float
    on_collapse: OnCollapse
    val_eps: list[float | str] | None
    val_steps: int
    val_restarts: int
    val_batches: int | None
    val_drop_solved: bool
    val_input_key: int | str | list[int | str] | None
    val_under: str | list[str] | None
    val_baseline: str | dict[str, dict[str, float]] | None


def split_arguments(method: MethodName | Attack, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the method, and those of its validation under their names with ``val_``.

    Raises:
        TypeError: For an argument that nothing takes; the message names the nearest.

    Example:
        >>> split_arguments("pgd", {"steps": 3, "val_steps": 20})
        ({'steps': 3}, {'val_steps': 20})
    """
    for name in given:
        if name not in ShortForm.__annotations__:
            hint = did_you_mean(name, sorted(ShortForm.__annotations__), 1)
            raise TypeError(f"AdversarialCallback got an unexpected argument {name!r}.{hint}")
    of_validation = {name: value for name, value in given.items() if name.startswith("val_")}
    of_method = {name: value for name, value in given.items() if name not in of_validation}
    if "target_key" in of_method and given.get("val_drop_solved"):
        of_validation["target_key"] = of_method["target_key"]
        if not _takes_target_key(method):
            del of_method["target_key"]
    return of_method, of_validation


def _takes_target_key(method: MethodName | Attack) -> bool:
    return isinstance(method, str) and method in methods_with("target_key")


def make_method(method: MethodName | Attack, arguments: dict[str, Any]) -> Attack:
    """The method of a short form.

    Args:
        method: Its name, or the method itself.
        arguments: Arguments of the method, by name.

    Raises:
        ValueError: For an unknown name, an argument that the method does not take, or one that it lacks.

    Example:
        >>> make_method("pgd", {"steps": 3})
        PGD(steps=3, step_size=None, norm='linf', attack_precision='bf16')
    """
    if isinstance(method, Attack):
        _refuse_beside_object(method, arguments)
        return method
    if method not in METHODS:
        raise ValueError(f"Expected `method` to be one of {', '.join(METHODS)}, but got {method!r}.")
    arguments = {name: value for name, value in arguments.items() if value is not None}
    cls = EmbeddingPGD if method == "pgd" and "embedding" in arguments else METHODS[method]
    names = argument_names(cls)
    if "embedding" in names and "embedding" not in arguments:
        raise ValueError(f"Expected `embedding`, the path of the module to perturb, for method={method!r}.")
    for name in sorted(arguments.keys() - set(names)):
        raise ValueError(
            f"Expected no `{name}` with method={method!r}, which does not take it, but got {arguments[name]!r}. "
            f"Leave it out, or choose a method that takes it: {', '.join(methods_with(name))}."
        )
    return cls(**arguments)


def methods_with(argument: str) -> list[str]:
    """Names of the methods that take an argument.

    Example:
        >>> methods_with("beta")
        ['trades', 'mart']
    """
    return list(dict.fromkeys(name for name, cls in _KINDS if argument in argument_names(cls)))


def argument_names(cls: type[Attack]) -> list[str]:
    """The arguments that a method takes."""
    return [each.name for each in dataclasses.fields(cls) if each.init]  # type: ignore[arg-type]


class BroughtValidation(RobustValidationCallback):
    """The validation that AdversarialCallback brings along."""

    owner: ClassVar[str] = "AdversarialCallback"
    prefix: ClassVar[str] = "val_"


def make_validation(
    attack: Attack,
    given: Mapping[str, Any],
    radii: list[float],
    input_key: int | str | list[int | str] | None,
    common: Mapping[str, Any],
) -> RobustValidationCallback | None:
    """The validation of a short form.

    Args:
        attack: The method; its norm is the one of the validation.
        given: Arguments of the validation, with ``val_``.
        radii: Of training, one for each input; the first is the default of ``val_eps``.
        input_key: Of training; the default of ``val_input_key``.
        common: Arguments that training and validation share.

    Returns:
        None with an empty ``val_eps`` and no ``val_under``, and for methods on an embedding.

    Raises:
        ValueError: For ``val_`` arguments with a method on an embedding.
    """
    settings = {name.removeprefix("val_"): value for name, value in given.items()}
    if _asks_for_nothing(settings):
        return None
    if isinstance(attack, EmbeddingAttack):
        _refuse_validation_of_embedding(given)
        return None
    if settings.get("eps") is None:
        settings["eps"] = [radii[0]]
    if settings.get("input_key") is None:
        settings["input_key"] = input_key
    keys = settings["input_key"]
    if (len(keys) if isinstance(keys, list) else 1) != len(radii):
        raise ValueError(f"Expected `val_input_key` for each of {len(radii)} inputs, but got {keys}.")
    proportions = radii if len(radii) > 1 and radii[0] > 0 else None
    return BroughtValidation(norm=getattr(attack, "norm", "linf"), proportions=proportions, **common, **settings)


def _asks_for_nothing(settings: Mapping[str, Any]) -> bool:
    return settings.get("eps") == [] and settings.get("under") is None


def _refuse_validation_of_embedding(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        raise ValueError(
            f"Expected no `{name}` with a method on an embedding, which has no robust validation, but got {value!r}. "
            "Leave it out."
        )


def _refuse_beside_object(method: Attack, arguments: Mapping[str, Any]) -> None:
    kind = type(method).__name__
    for name in arguments:
        raise ValueError(
            f"Expected the arguments of the method inside of {kind}(...), but got `{name}` beside it. Write "
            f"method={kind}({name}=...), or give the method by name."
        )


def parse_radii(eps: float | str | list[float | str], inputs: int) -> list[float]:
    """One radius for each input.

    Raises:
        ValueError: For another number of them, and for a first one of 0 before others, which count from it.
    """
    radii = [parse_fraction(value) for value in (eps if isinstance(eps, list) else [eps])]
    if len(radii) not in (1, inputs):
        raise ValueError(f"Expected `eps` as one value or one for each of {inputs} inputs, got {len(radii)}.")
    if radii[0] == 0 < max(radii):
        raise ValueError(
            f"Expected `eps` of the first input above 0, since steps and `val_eps` are relative to it, but got {eps}. "
            "Give an input with a radius above 0 first in `input_key`, and its radius first here."
        )
    return radii if len(radii) == inputs else radii * inputs


def refuse_arguments(method: MethodName | Attack, callback: object, names: Sequence[str]) -> None:
    """Refuse arguments of the callback that have no meaning with the method, unless they have their defaults.

    Raises:
        ValueError: Naming the argument.
    """
    for name in names:
        value = getattr(callback, name)
        if value != inspect.signature(type(callback)).parameters[name].default:
            raise ValueError(
                f"Expected no `{name}` with method={method!r}, which does not take it, but got {value!r}. Leave it out."
            )
