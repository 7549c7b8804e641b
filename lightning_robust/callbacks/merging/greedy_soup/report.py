"""What a soup is made of, and the report on it: table, figure, provenance. Which soup is made stands elsewhere."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_robust.callbacks.merging.figures import draw_soup
from lightning_robust.functional.averaging import State
from lightning_robust.functional.basins import Barrier
from lightning_robust.functional.soups import Soup
from lightning_robust.harness.checkpoints import read_state, sha256
from lightning_robust.harness.logging import log_figure, log_scalars, log_table
from lightning_robust.harness.trainers import NoEffectWarning, is_fast_dev_run


@dataclass
class Ingredient:
    """A file with weights, opened when they are first asked for and kept mapped, or weights in memory."""

    label: str
    path: Path | None = None
    state: State | None = None
    score: float | None = None

    def __call__(self) -> State:
        """The weights."""
        if self.state is None:
            if self.path is None:
                raise RuntimeError(f"Expected a file or weights for {self.label}.")
            self.state = read_state(self.path)
        return self.state


def report_soup(
    trainer: pl.Trainer,
    folder: Path,
    soup: Soup,
    pantry: list[Ingredient],
    found: list[Barrier],
    monitor: str,
    mode: str,
    recipe: str,
) -> None:
    """Log the table, the figure and the numbers, warn where the soup is no gain, write ``soup.json``."""
    best = (max if mode == "max" else min)(soup.scores)
    score = float(soup.score if soup.score is not None else best)
    log_scalars(
        trainer,
        {"soup/score": score, "soup/best_ingredient": best, "soup/ingredients": float(len(soup.ingredients))},
    )
    labels = [ingredient.label for ingredient in pantry]
    table = _rows(soup, labels, found, monitor)
    log_table(trainer, "soup/ingredients", *table)
    log_figure(trainer, "soup/overview", draw_soup(soup, labels, monitor, mode))
    verdict = f"{len(soup.ingredients)} of {len(pantry)} ingredients, {monitor} {score:.4g}, best alone {best:.4g}"
    rank_zero_info(f"Soup ({recipe}): {verdict}.")
    if (score < best) if mode == "max" else (score > best):
        rank_zero_warn(f"GreedySoupCallback: the {recipe} soup is worse than its best ingredient: {verdict}.")
    elif len(soup.ingredients) == 1:
        rank_zero_warn(
            f"GreedySoupCallback: the soup is its best ingredient alone ({labels[soup.ingredients[0]]}); "
            f"{'there was no other' if len(pantry) == 1 else 'no other improves it'}.",
            category=NoEffectWarning,
        )
    if trainer.is_global_zero and not is_fast_dev_run(trainer):
        content = {"recipe": recipe, "monitor": monitor, "mode": mode, **_provenance(soup, pantry, found)}
        (folder / "soup.json").write_text(json.dumps(content, indent=2))


def _provenance(soup: Soup, pantry: list[Ingredient], found: list[Barrier]) -> dict[str, Any]:
    measured = {barrier.ingredient: barrier for barrier in found}
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
        "coefficients": {name: values.tolist() for name, values in soup.coefficients.items()},
    }


def _rows(soup: Soup, labels: list[str], found: list[Barrier], monitor: str) -> tuple[list[str], list[list[str]]]:
    """The table of ingredients, best first."""
    measured = {barrier.ingredient: barrier for barrier in found}
    trials = {trial.ingredient: trial for trial in soup.trials if not trial.dropped}
    columns = ["ingredient", monitor, "in the soup", "soup with it", "barrier", "cosine"]
    rows = []
    for index, label in enumerate(labels):
        barrier, trial = measured.get(index), trials.get(index)
        rows.append(
            [
                label,
                f"{soup.scores[index]:.5g}",
                str(soup.ingredients.index(index) + 1) if index in soup.ingredients else "no",
                "" if trial is None else ("not better" if trial.score is None else f"{trial.score:.5g}"),
                "" if barrier is None else f"{barrier.height:.3g}",
                "" if barrier is None else f"{barrier.cosine:.3f}",
            ]
        )
    return columns, rows
