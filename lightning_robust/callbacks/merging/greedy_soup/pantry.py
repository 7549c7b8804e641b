"""The ingredients of a soup with their scores: epochs of this run, checkpoints of this run, or files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_robust.callbacks.candidates import Candidates
from lightning_robust.functional.averaging import State, require_same
from lightning_robust.functional.low_rank import require_one_basis
from lightning_robust.harness.checkpoints import read_state
from lightning_robust.harness.closing import warn
from lightning_robust.harness.ranks import agreed
from lightning_robust.harness.saving import object_hyperparameters, save_weights
from lightning_robust.harness.trainers import find_callbacks


@dataclass
class NamedIngredient:
    """Weights in a file, which is opened at the first call and then stays mapped, or weights in memory.

    Args:
        label: Its name in tables and figures.
        path: The file; None for weights in memory.
        state: The weights; None until the file is opened.
        score: Value of the monitored metric; None until it is measured.
    """

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


class BestEpochs:
    """Saves the weights of the best epochs of a run and removes worse ones.

    Args:
        top_k: How many to keep.
        merits: Merit by path; the larger, the better.
    """

    def __init__(self, top_k: int, merits: dict[str, float] | None = None) -> None:
        self.top_k = top_k
        self.merits = dict(merits or {})

    def offer(self, trainer: pl.Trainer, folder: Path, merit: float) -> None:
        """Save the present weights, if they are among the best."""
        worst = min(self.merits, key=self.merits.__getitem__, default="")
        if len(self.merits) >= self.top_k and merit <= self.merits[worst]:
            return
        path = str(folder / f"epoch={trainer.current_epoch}-step={trainer.global_step}.ckpt")
        save_weights(trainer, path)
        self.merits[path] = merit
        if len(self.merits) > self.top_k:
            del self.merits[worst]
            trainer.strategy.remove_checkpoint(worst)

    def ingredients(self, mode: str) -> list[NamedIngredient]:
        """The epochs that are kept, with their scores.

        A run that was killed may have removed files after the checkpoint that it is resumed from, which lists them.
        """
        lost = [path for path in self.merits if not Path(path).is_file()]
        if lost:
            warn(f"GreedySoupCallback: epochs are left out, their files are gone: {lost}.")
        sign = 1 if mode == "max" else -1
        there = {path: merit for path, merit in self.merits.items() if path not in lost}
        return [NamedIngredient(Path(path).stem, Path(path), score=sign * merit) for path, merit in there.items()]


def check_files(paths: Sequence[Path], module: nn.Module) -> None:
    """Refuse files that cannot become a soup of a module.

    Raises:
        ValueError: If one cannot be read, is of another architecture, or holds adapters with another basis.
    """
    states = {path: read_state(path) for path in paths}
    for path, state in states.items():
        require_same(module.state_dict(), state, str(path))
    require_one_basis(list(states.values()))


def source_of(trainer: pl.Trainer, asked: object) -> str:
    """Where the ingredients of this run come from, ``"checkpoints"`` or ``"epochs"``.

    Args:
        trainer: Of the run.
        asked: One of these; None is ``"checkpoints"`` where there are several that can be read.

    Raises:
        ValueError: If checkpoints are asked for, which could not be read, or of which Lightning keeps no list.
    """
    objects = object_hyperparameters(trainer)
    kept = [keeper.save_top_k for keeper in find_callbacks(trainer, ModelCheckpoint) if keeper.monitor is not None]
    if asked is None:
        return "checkpoints" if {*kept} - {0, 1} and not objects else "epochs"
    if asked == "checkpoints" and objects:
        raise ValueError(
            "Expected checkpoints of this run that can be read as weights, but their `hyper_parameters` would hold "
            f"objects: {objects}. Leave these out with save_hyperparameters(ignore={objects}), or set ingredients="
            "'epochs', for which this callback keeps the weights alone."
        )
    if asked == "checkpoints" and not kept:
        raise ValueError(
            "Expected a ModelCheckpoint with a `monitor` for ingredients='checkpoints', but there is none, and without "
            "a metric Lightning keeps no list of what it saves. Give it one, or set ingredients='epochs'."
        )
    return str(asked)


def from_checkpoints(trainer: pl.Trainer, monitor: str) -> list[NamedIngredient]:
    """The best checkpoints of this run's ModelCheckpoint callbacks, with scores where they monitor the same metric.

    The files and scores are those of rank 0, for ranks may log their own; one that two callbacks kept counts once.
    """
    found: dict[str, float | None] = {}
    for keeper in find_callbacks(trainer, ModelCheckpoint):
        for path, score in keeper.best_k_models.items():
            found[path] = float(score) if keeper.monitor == monitor else found.get(path)
    found = trainer.strategy.broadcast(found, 0)
    return [NamedIngredient(Path(path).stem, Path(path), score=score) for path, score in found.items()]


def scored(ingredients: Sequence[NamedIngredient], candidates: Candidates) -> list[NamedIngredient]:
    """The ingredients with a finite score, which is measured where it is not known.

    Raises:
        ValueError: If there is none, a file cannot be read, or its weights are not those of the module.
        RankError: If only some ranks can read a file.
    """
    agreed(candidates.trainer, lambda: [ingredient() for ingredient in ingredients], "Reading the ingredients")
    usable = []
    for ingredient in ingredients:
        if ingredient.score is None:
            require_same(candidates.module.state_dict(), ingredient(), ingredient.label)
            ingredient.score = candidates.score(ingredient(), mixed=False)
        if math.isfinite(ingredient.score):
            usable.append(ingredient)
        else:
            warn(f"GreedySoupCallback: {ingredient.label} is left out, its {candidates.monitor} is not finite.")
    if not usable:
        raise ValueError(f"Expected at least one ingredient with a finite {candidates.monitor!r}, but none has.")
    return usable
