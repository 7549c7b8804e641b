"""The report on a soup: scalars, table, figure, warnings, and its provenance in ``soup.json``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_robust.callbacks.candidates import Candidates
from lightning_robust.callbacks.merging.greedy_soup.figure import draw_soup
from lightning_robust.callbacks.merging.greedy_soup.pantry import NamedIngredient
from lightning_robust.callbacks.merging.greedy_soup.recipes import Held
from lightning_robust.functional.basins import Barrier
from lightning_robust.functional.soups import Soup, SoupTrial
from lightning_robust.harness.checkpoints import sha256
from lightning_robust.harness.closing import note_step, warn
from lightning_robust.harness.logging import log_figure, log_files, log_scalars, log_table
from lightning_robust.harness.trainers import NoEffectWarning, is_fast_dev_run
from lightning_robust.tables import number


def report_soup(
    soup: Soup,
    pantry: Sequence[NamedIngredient],
    barriers: Sequence[Barrier],
    candidates: Candidates,
    folder: Path,
    recipe: str,
    held: Held,
) -> None:
    """Log the numbers, the table and the figure, warn where the soup is no gain, write ``soup.json``.

    Args:
        soup: The soup.
        pantry: Its ingredients.
        barriers: Barriers between them; none where they were not measured.
        candidates: Judged the soup.
        folder: Where ``soup.json`` goes.
        recipe: Name of the recipe.
        held: The weights that the module holds.
    """
    trainer, monitor, mode = candidates.trainer, candidates.monitor, candidates.mode
    best = (max if mode == "max" else min)(soup.scores)
    score = float(soup.score if soup.score is not None else best)
    log_scalars(
        trainer,
        {"soup/score": score, "soup/best_ingredient": best, "soup/ingredients": float(len(soup.ingredients))},
    )
    labels = [ingredient.label for ingredient in pantry]
    columns = ["ingredient", monitor, "in the soup", "soup with it", "barrier", "cosine"]
    log_table(trainer, "soup/ingredients", columns, _ingredient_rows(soup, labels, barriers))
    log_figure(trainer, "soup/overview", draw_soup(soup, labels, monitor, mode))
    of = f"{recipe} soup of {len(soup.ingredients)} of {len(pantry)} ingredients"
    scores = f"{monitor} {score:.4g}, best alone {best:.4g}"
    note_step(trainer, "greedy_soup", f"{of}, {scores}; the module holds {held.name} from now on")
    if held.state is not soup.state:
        warn(
            f"GreedySoupCallback: the {recipe} soup ({monitor} {score:.4g}) is worse than {held.name} "
            f"({held.score:.4g}), which the module holds instead.",
            category=NoEffectWarning,
        )
    elif len(soup.ingredients) == 1:
        warn(
            f"GreedySoupCallback: the soup is its best ingredient alone ({labels[soup.ingredients[0]]}); "
            f"{'there was no other' if len(pantry) == 1 else 'no other improves it'}.",
            category=NoEffectWarning,
        )
    if trainer.is_global_zero and not is_fast_dev_run(trainer):
        content = {
            "recipe": recipe,
            "monitor": monitor,
            "mode": mode,
            "holds": held.name,
            **_provenance(soup, pantry, barriers),
        }
        (folder / "soup.json").write_text(json.dumps(content, indent=2))
        log_files(trainer, folder)


def _provenance(soup: Soup, pantry: Sequence[NamedIngredient], barriers: Sequence[Barrier]) -> dict[str, Any]:
    measured = {barrier.ingredient: barrier for barrier in barriers}
    return {
        "score": soup.score,
        "order": soup.ingredients,
        "evaluations": soup.evaluations,
        "evaluated": soup.evaluated,
        "ingredients": [
            {
                "label": ingredient.label,
                "path": None if ingredient.path is None else str(ingredient.path),
                "sha256": None if ingredient.path is None else sha256(ingredient.path),
                "score": ingredient.score,
                "accepted": index in soup.ingredients,
                "barrier": measured[index].height if index in measured else None,
                "cosine": measured[index].cosine if index in measured else None,
            }
            for index, ingredient in enumerate(pantry)
        ],
        "beta": soup.beta,
        "coefficients": {name: values.tolist() for name, values in soup.coefficients.items()},
    }


def _ingredient_rows(soup: Soup, labels: Sequence[str], barriers: Sequence[Barrier]) -> list[list[str]]:
    """A row of the table for each ingredient, in the given order."""
    measured = {barrier.ingredient: barrier for barrier in barriers}
    trials = {trial.ingredient: trial for trial in soup.trials if not trial.dropped}
    rows = []
    for index, label in enumerate(labels):
        place = str(soup.ingredients.index(index) + 1) if index in soup.ingredients else "no"
        barrier = measured.get(index)
        height, cosine = (None, None) if barrier is None else (barrier.height, barrier.cosine)
        outcome = _outcome(trials.get(index))
        rows.append([label, number(soup.scores[index], 5), place, outcome, number(height), number(cosine)])
    return rows


def _outcome(trial: SoupTrial | None) -> str:
    """The score of the soup with an ingredient, as the table says it."""
    if trial is None:
        return ""
    return "not better" if trial.score is None else number(trial.score, 5)
