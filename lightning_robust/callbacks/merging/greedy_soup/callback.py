"""GreedySoupCallback: at the end of a fit, cook one set of weights out of several checkpoints, judged on held-out data.

Hooks, files and logging only; the recipes are in ``functional/soups.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from typing_extensions import override

from lightning_robust.callbacks.averaging.callback import SWACallback
from lightning_robust.callbacks.candidates import Candidates, judged_by, output_folder, require_last, save_chosen
from lightning_robust.callbacks.merging.greedy_soup.report import Ingredient, report_soup
from lightning_robust.functional.averaging import State, require_same
from lightning_robust.functional.basins import Barrier, barriers
from lightning_robust.functional.coefficients import learned_soup, stock_soup
from lightning_robust.functional.soups import Soup, greedy_soup, uniform_soup
from lightning_robust.functional.weights import state_on_cpu
from lightning_robust.harness.batches import validation_batches
from lightning_robust.harness.checkpoints import expand, read_state
from lightning_robust.harness.quiet import quietly
from lightning_robust.harness.steps import call_step
from lightning_robust.harness.trainers import find_callbacks, is_fast_dev_run, refuse_sharded
from lightning_robust.structures import loss_in

Recipe = Literal["greedy", "uniform", "learned", "stock"]
# Fine-tuned models of one start have weights with a cosine well above this, independent ones below.
_UNRELATED = 0.3


class GreedySoupCallback(pl.Callback):
    r"""Average several checkpoints into one set of weights, as far as that helps on held-out data.

    Greedy soup (`Wortsman et al. 2022 <https://arxiv.org/abs/2203.05482>`_): from the best ingredient on, the others
    are added in order of their score as long as the score of the mean improves. It is cooked when training has ended,
    on the Trainer's validation loaders; BatchNorm statistics of every mixture are refreshed from the training data.
    Afterwards the module holds the soup, ``soup.ckpt`` (which loads in Lightning) and ``soup.json`` (ingredients,
    order, scores, SHA-256) lie in ``dirpath``, and ``ckpt_path="best"`` means the soup where a ModelCheckpoint monitors
    the same metric.

    Before cooking, the loss barrier half way between the best ingredient and each other one and the cosine of their
    weights are reported: a soup needs models fine-tuned from one start.

    The monitored metric may be any that validation logs, or one of DeploymentParityCallback
    (``"parity/emulated-fp16/rel_l2"``, mode ``"min"``): the soup that deploys best.

    Logged at the end: ``soup/score``, ``soup/best_ingredient``, ``soup/ingredients``, a table and a figure.

    Cost of the greedy recipe: one evaluation an ingredient, but for those whose score is known from the
    ModelCheckpoint, and one an addition tried; an addition that can no longer win is stopped early where
    ``best_possible`` is known. Memory: the running sum in fp64 and one candidate; files are mapped, not read into
    memory. Each is opened once.

    If cooking fails, a warning says why and the weights stay as trained. Snapshots resume with the run.

    Args:
        recipe: ``"greedy"``, ``"uniform"`` (all), ``"learned"`` (mixing coefficients by gradient descent on the
            validation data, with the loss of ``training_step``), or ``"stock"`` (Model Stock, from the weights at the
            start of the fit).
        ingredients: Paths and globs of ``.ckpt``, ``.pt`` or ``.safetensors`` files; ``"checkpoints"`` for the best
            ones of this run's ModelCheckpoint; ``"epochs"`` for the ``top_k`` best epochs of this run, kept by this
            callback. None is ``"checkpoints"`` where a ModelCheckpoint keeps more than one, else ``"epochs"``.
        top_k: How many epochs to keep.
        monitor: Metric to judge by; None takes that of a ModelCheckpoint or EarlyStopping callback.
        mode: ``"max"`` or ``"min"``; None likewise.
        strict: Accept only improvements; False also accepts what is as good.
        drop: Afterwards take out what is better left out.
        best_possible: The best value of the metric that any sample can have, such as 1 for an accuracy or 0 for a loss
            that cannot be negative; allows stopping early. Known by itself for torchmetrics accuracies.
        report_barriers: Measure barriers first, one evaluation an ingredient.
        bn_refresh: Recompute BatchNorm statistics of mixtures.
        bn_samples: From about so many training samples on each rank; all if None.
        input_key: Which part of a batch goes into ``forward`` for it: position or name; a list for several arguments.
        dirpath: Folder for the files; None is ``soup`` in the Trainer's log folder.
        on_failure: ``"warn"`` and leave the weights as trained, or ``"raise"``.

    Raises:
        ValueError: For arguments out of range, and in ``setup`` for files that are missing or cannot be read.
        MisconfigurationException: Without a metric to judge by, under strategies in which no rank has the whole model,
            or if SWACallback comes after this callback.

    Example:
        >>> soup = GreedySoupCallback(monitor="val/acc", mode="max", ingredients="epochs", top_k=3)
        >>> trainer = pl.Trainer(callbacks=[soup], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        recipe: Recipe = "greedy",
        *,
        ingredients: str | list[str] | None = None,
        top_k: int = 5,
        monitor: str | None = None,
        mode: Literal["max", "min"] | None = None,
        strict: bool = True,
        drop: bool = False,
        best_possible: float | None = None,
        report_barriers: bool = True,
        bn_refresh: bool = True,
        bn_samples: int | None = None,
        input_key: int | str | list[int | str] = 0,
        dirpath: str | None = None,
        on_failure: Literal["warn", "raise"] = "warn",
    ) -> None:
        super().__init__()
        if recipe not in ("greedy", "uniform", "learned", "stock"):
            raise ValueError(f"Expected `recipe` to be greedy, uniform, learned or stock, but got {recipe!r}.")
        if top_k < 1:
            raise ValueError(f"Expected `top_k` to be at least 1, but got {top_k}.")
        if isinstance(ingredients, list) and not ingredients:
            raise ValueError("Expected at least one path or glob in `ingredients`, but the list is empty.")
        self.recipe, self.ingredients, self.top_k = recipe, ingredients, top_k
        self.monitor, self.mode = monitor, mode
        self.strict, self.drop, self.best_possible = strict, drop, best_possible
        self.report_barriers = report_barriers
        self.bn_refresh, self.bn_samples, self.input_key = bn_refresh, bn_samples, input_key
        self.dirpath, self.on_failure = dirpath, on_failure
        self.soup: Soup | None = None
        self.path: str = ""
        self._kept: dict[str, float] = {}
        self._base: State = {}

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work, before any training is spent on it."""
        if stage != "fit":
            return
        refuse_sharded(trainer, "GreedySoupCallback")
        require_last(trainer, self, SWACallback)
        self._judged_by(trainer)
        for path in self._files():
            require_same(pl_module.state_dict(), read_state(path), str(path))
        self.soup, self.path, self._kept = None, "", {}

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the initial weights, if the recipe needs them."""
        if self.recipe == "stock" and not self._base:
            self._base = state_on_cpu(pl_module)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep this epoch, if it is among the best."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or is_fast_dev_run(trainer):
            return
        monitor, mode = self._judged_by(trainer)
        if monitor not in trainer.callback_metrics:
            raise MisconfigurationException(
                f"Expected the metric {monitor!r} to judge a soup by, but validation logs "
                f"{sorted(trainer.callback_metrics)}. Set `monitor` to one of them."
            )
        if self._source(trainer) != "epochs":
            return
        score = float(trainer.callback_metrics[monitor])
        if math.isfinite(score):
            self._keep(trainer, score if mode == "max" else -score)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Cook."""
        try:
            self.cook(trainer, pl_module)
        except Exception as error:
            if self.on_failure == "raise":
                raise
            rank_zero_warn(f"GreedySoupCallback: no soup, the weights stay as trained. {type(error).__name__}: {error}")

    @override
    def state_dict(self) -> dict[str, Any]:
        """The epochs kept and the initial weights."""
        return {"kept": dict(self._kept), "base": dict(self._base)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the epochs kept so far."""
        self._kept, self._base = dict(state_dict["kept"]), dict(state_dict["base"])

    def cook(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Soup:
        """Make the soup and leave it in the module; within ``fit`` or ``validate``.

        Raises:
            ValueError: If there is no usable ingredient, or they differ in names or shapes.
        """
        monitor, mode = self._judged_by(trainer)
        candidates = Candidates(
            trainer,
            pl_module,
            bn_refresh=self.bn_refresh,
            bn_samples=self.bn_samples,
            input_key=self.input_key,
        )
        pantry = self._scored(self._gather(trainer, candidates), candidates, monitor)
        found: list[Barrier] = []
        if self.report_barriers and len(pantry) > 1:
            found = self._barriers(pantry, candidates, monitor, mode)
        soup = self._follow(pantry, candidates, monitor, mode)
        self.soup = soup
        candidates.install(soup.state, mixed=len(soup.ingredients) > 1)
        folder = output_folder(trainer, self.dirpath, "soup")
        self.path = str(folder / "soup.ckpt")
        save_chosen(trainer, Path(self.path), monitor=monitor, score=soup.score)
        report_soup(trainer, folder, soup, pantry, found, monitor, mode, self.recipe)
        return soup

    def _files(self) -> list[Path]:
        if self.ingredients in (None, "checkpoints", "epochs"):
            return []
        return expand([self.ingredients] if isinstance(self.ingredients, str) else self.ingredients or [])

    def _source(self, trainer: pl.Trainer) -> str:
        if self.ingredients is not None:
            return self.ingredients if isinstance(self.ingredients, str) else "files"
        keepers = find_callbacks(trainer, ModelCheckpoint)
        return "checkpoints" if any(keeper.save_top_k not in (0, 1) for keeper in keepers) else "epochs"

    def _judged_by(self, trainer: pl.Trainer) -> tuple[str, Literal["max", "min"]]:
        return judged_by(trainer, self.monitor, self.mode)

    def _keep(self, trainer: pl.Trainer, merit: float) -> None:
        """Save this epoch, and drop the worst kept one where there are too many."""
        worst = min(self._kept, key=self._kept.__getitem__, default="")
        if len(self._kept) >= self.top_k and merit <= self._kept[worst]:
            return
        folder = output_folder(trainer, self.dirpath, "soup")
        path = str(folder / f"epoch={trainer.current_epoch}-step={trainer.global_step}.ckpt")
        trainer.save_checkpoint(path, weights_only=True)
        self._kept[path] = merit
        if len(self._kept) > self.top_k:
            del self._kept[worst]
            trainer.strategy.remove_checkpoint(worst)

    def _gather(self, trainer: pl.Trainer, candidates: Candidates) -> list[Ingredient]:
        monitor, mode = self._judged_by(trainer)
        source = self._source(trainer)
        if source == "checkpoints":
            return [
                Ingredient(Path(path).stem, Path(path), score=float(score) if keeper.monitor == monitor else None)
                for keeper in find_callbacks(trainer, ModelCheckpoint)
                for path, score in keeper.best_k_models.items()
            ] or self._present(candidates)
        if source == "epochs":
            sign = 1 if mode == "max" else -1
            kept = [Ingredient(Path(path).stem, Path(path), score=sign * m) for path, m in self._kept.items()]
            return kept or self._present(candidates)
        return [Ingredient(str(path), path) for path in self._files()]

    def _present(self, candidates: Candidates) -> list[Ingredient]:
        """What the module holds, where the run kept nothing."""
        return [Ingredient("last", state=candidates.present())]

    def _scored(self, pantry: list[Ingredient], candidates: Candidates, monitor: str) -> list[Ingredient]:
        """The ingredients with a finite score, measured where it is not known."""
        usable = []
        for ingredient in pantry:
            if ingredient.score is None:
                state = ingredient()
                require_same(candidates.module.state_dict(), state, ingredient.label)
                *_, (ingredient.score, _) = candidates.running_score(state, monitor, mixed=False)
            if ingredient.score is not None and math.isfinite(ingredient.score):
                usable.append(ingredient)
            else:
                rank_zero_warn(f"GreedySoupCallback: {ingredient.label} is left out, its {monitor} is not finite.")
        if not usable:
            raise ValueError(f"Expected at least one ingredient with a finite {monitor!r}, but none has.")
        return usable

    def _follow(
        self, pantry: list[Ingredient], candidates: Candidates, monitor: str, mode: Literal["max", "min"]
    ) -> Soup:
        scores = [float(ingredient.score or 0.0) for ingredient in pantry]

        def evaluate(state: State) -> Iterator[tuple[float, float]]:
            return candidates.running_score(state, monitor, mixed=True)

        if self.recipe == "greedy":
            bound = self.best_possible
            bound = candidates.evaluator.best_possible(monitor) if bound is None and mode == "max" else bound
            return greedy_soup(
                pantry,
                evaluate,
                mode=mode,
                strict=self.strict,
                scores=scores,
                best_possible=bound,
                drop=self.drop,
            )
        several = len(pantry) > 1
        if several and self.recipe == "learned":
            soup = self._learned(pantry, candidates)
        elif several and self.recipe == "stock":
            soup = stock_soup(pantry, self._base)
        else:
            soup = uniform_soup(pantry)
        soup.scores = scores
        *_, (soup.score, _) = candidates.running_score(soup.state, monitor, mixed=several)
        return soup

    def _learned(self, pantry: list[Ingredient], candidates: Candidates) -> Soup:
        trainer, module = candidates.trainer, candidates.module
        step = _Step(module)

        def loss(state: Mapping[str, Tensor], batch: object) -> Tensor:
            named = {f"module.{name}": tensor.to(module.device) for name, tensor in state.items()}
            result: Tensor = torch.func.functional_call(step, named, (batch,))
            return result

        with quietly(trainer, module, "training"):
            return learned_soup(pantry, loss, lambda: validation_batches(trainer, module))

    def _barriers(
        self, pantry: list[Ingredient], candidates: Candidates, monitor: str, mode: Literal["max", "min"]
    ) -> list[Barrier]:
        scores = [float(ingredient.score or 0.0) for ingredient in pantry]
        found = barriers(
            pantry,
            lambda state: candidates.running_score(state, monitor, mixed=True),
            scores,
            mode=mode,
            base=self._base or None,
        )
        worst = max(found, key=lambda barrier: barrier.height)
        if worst.height > 0:
            label = pantry[worst.ingredient].label
            unrelated = not self._base and worst.cosine < _UNRELATED
            cause = ": it shares no initialisation with the best" if unrelated else ""
            rank_zero_info(
                f"Soup: {label} fits worst: half way to it, {monitor} is worse by {worst.height:.4g} than the mean of "
                f"both ends (cosine of the weights {worst.cosine:.2f}){cause}."
            )
        return found


class _Step(nn.Module):
    """The module's training step as a forward pass, in which weights can be replaced."""

    def __init__(self, module: pl.LightningModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Any) -> Tensor:
        loss: Tensor = loss_in(call_step(self.module.training_step, batch))
        return loss
