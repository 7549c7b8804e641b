"""How a soup is cooked in a Trainer: barriers between the ingredients, and the four recipes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lightning_robust.callbacks.candidates import Candidates
from lightning_robust.callbacks.merging.greedy_soup.pantry import NamedIngredient
from lightning_robust.callbacks.module_loss import own_step
from lightning_robust.functional.averaging import State
from lightning_robust.functional.basins import Barrier, barriers, cosine, share_start
from lightning_robust.functional.coefficients import learned_soup, stock_soup
from lightning_robust.functional.soups import Soup, greedy_soup, uniform_soup
from lightning_robust.functional.weights import call_with
from lightning_robust.harness.batches import validation_batches
from lightning_robust.harness.closing import warn
from lightning_robust.harness.quiet import quietly
from lightning_robust.harness.ranks import agreed
from lightning_robust.harness.replacement import replaced
from lightning_robust.harness.steps import call_step, loss_in

Recipe = Literal["greedy", "uniform", "learned", "stock"]
AS_TRAINED = "the weights as trained"
_ROUNDING = 1e-6


def cook_greedy(
    pantry: Sequence[NamedIngredient], candidates: Candidates, strict: bool, drop: bool, best_possible: float | None
) -> Soup:
    """Add ingredients, best first, as long as the score improves; arguments as of GreedySoupCallback."""
    if best_possible is None and candidates.mode == "max":
        best_possible = candidates.evaluator.best_possible(candidates.monitor)
    return greedy_soup(
        pantry,
        candidates.running_mixture,
        mode=candidates.mode,
        strict=strict,
        scores=_scores(pantry),
        best_possible=best_possible,
        drop=drop,
    )


def cook_all(recipe: Recipe, pantry: Sequence[NamedIngredient], candidates: Candidates, base: State) -> Soup:
    """Mix all ingredients and score the soup; a single one is the soup.

    Args:
        recipe: ``"uniform"``, ``"learned"`` or ``"stock"``.
        pantry: The ingredients.
        candidates: Judges the soup.
        base: Initial weights, for ``"stock"``.
    """
    several = len(pantry) > 1
    if several and recipe == "learned":
        soup = _learn(pantry, candidates.trainer, candidates.module)
    elif several and recipe == "stock":
        _warn_of_another_base(pantry, base)
        soup = stock_soup(pantry, base)
    else:
        soup = uniform_soup(pantry)
    soup.scores = _scores(pantry)
    soup.score = candidates.score(soup.state, mixed=several)
    return soup


@dataclass(frozen=True)
class Held:
    """The weights that the module holds in the end."""

    name: str
    state: State
    mixed: bool
    """Whether BatchNorm statistics have to be recomputed."""
    score: float


def best_of(soup: Soup, pantry: Sequence[NamedIngredient], candidates: Candidates) -> Held:
    """The best of the soup, its best ingredient and the weights as trained, which the module holds."""
    sign = 1.0 if candidates.mode == "max" else -1.0
    score = float(soup.score if soup.score is not None else math.nan)
    best = max(range(len(pantry)), key=lambda index: sign * soup.scores[index])
    present = candidates.present()
    options = [
        Held("the soup", soup.state, len(soup.ingredients) > 1, score),
        Held(pantry[best].label, dict(pantry[best]()), False, soup.scores[best]),
        Held(AS_TRAINED, present, False, candidates.score(present, mixed=False)),
    ]
    held = options[0]
    for other in options[1:]:
        # scores that Lightning logged are in fp32
        gain = sign * (other.score - held.score)
        if gain > _ROUNDING * abs(held.score) or (math.isnan(held.score) and not math.isnan(other.score)):
            held = other
    return held


def measure_barriers(pantry: Sequence[NamedIngredient], candidates: Candidates, base: State) -> list[Barrier]:
    """Measure the barrier between the best ingredient and each other one; name the worst and those of other starts.

    Args:
        pantry: The ingredients; there is nothing to measure with fewer than two.
        candidates: Judges the weights in the middle.
        base: Initial weights that the ingredients share; empty where they are not known.
    """
    if len(pantry) < 2:
        return []
    measured = barriers(pantry, candidates.running_mixture, _scores(pantry), mode=candidates.mode, base=base or None)
    worst = max(measured, key=lambda barrier: barrier.height)
    told = []
    if worst.height > 0:
        told.append(
            f"{pantry[worst.ingredient].label} fits worst: half way to it, {candidates.monitor} is worse by "
            f"{worst.height:.4g} than the mean of both ends (cosine of the weights {worst.cosine:.2f})"
        )
    told += _name_strangers(pantry, {barrier.ingredient for barrier in measured})
    if told:
        rank_zero_info(f"Soup: {'; '.join(told)}.")
    return measured


def _name_strangers(pantry: Sequence[NamedIngredient], others: set[int]) -> list[str]:
    """Which of the others began elsewhere than the best, in a sentence; none where all share a start."""
    (best,) = (ingredient for index, ingredient in enumerate(pantry) if index not in others)
    weights = best()
    strangers = [pantry[index].label for index in sorted(others) if not share_start(weights, pantry[index]())]
    share = f"share{'s' * (len(strangers) == 1)} no initialisation with the best, {best.label}"
    return [f"{', '.join(strangers)} {share}: only models fine-tuned from one start mix"] if strangers else []


def _warn_of_another_base(pantry: Sequence[NamedIngredient], base: State) -> None:
    """Model Stock pulls the mean towards the base, whatever that is."""
    weights = pantry[0]()
    if not share_start(base, weights):
        warn(
            f"GreedySoupCallback: the initial weights are not what {pantry[0].label} was fine-tuned from (cosine "
            f"{cosine(base, weights):.2f}), and the stock recipe goes by the angles from there. Name the file of "
            "that start as `base`."
        )


def _learn(pantry: Sequence[NamedIngredient], trainer: pl.Trainer, module: pl.LightningModule) -> Soup:
    """Coefficients by gradient descent on the validation data, with the loss of the module's own training step.

    Of several ranks, those of rank 0 on its own part of the data are everybody's.
    """
    step, buffers = _TrainingLoss(module), {name for name, _ in module.named_buffers()}

    def loss(state: Mapping[str, Tensor], batch: object, beta: Tensor) -> Tensor:
        # statistics of BatchNorm have no gradient; those of the soup are refreshed
        fixed = {name: tensor.detach() if name in buffers else tensor for name, tensor in state.items()}
        named = {f"module.{name}": tensor.to(module.device) for name, tensor in fixed.items()}
        result: Tensor = call_with(step, named, (batch, beta.to(module.device)))
        return result

    def learn() -> Soup:
        with quietly(trainer, module, "training"):
            return learned_soup(pantry, loss, lambda: validation_batches(trainer, module))

    soup: Soup = trainer.strategy.broadcast(agreed(trainer, learn, "Learning the soup"), 0)
    return soup


def _scores(pantry: Sequence[NamedIngredient]) -> list[float]:
    return [float(ingredient.score or 0.0) for ingredient in pantry]


class _TrainingLoss(nn.Module):
    """The module's own training step as a forward pass, in which weights can be replaced.

    What its ``logits`` returns, or its ``forward`` if it has no such method, is multiplied by an inverse temperature if
    it is a floating tensor; other outputs have no temperature.
    """

    def __init__(self, module: pl.LightningModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Any, beta: Tensor) -> Tensor:
        name = "logits" if callable(getattr(type(self.module), "logits", None)) else "forward"
        compute = getattr(self.module, name)

        def scaled(*args: Any, **kwargs: Any) -> Any:
            outputs = compute(*args, **kwargs)
            floats = isinstance(outputs, Tensor) and outputs.is_floating_point()
            return outputs * beta.to(outputs.dtype) if floats else outputs

        with replaced(self.module, **{name: scaled}):
            loss: Tensor = loss_in(call_step(own_step(self.module), batch))
        return loss
