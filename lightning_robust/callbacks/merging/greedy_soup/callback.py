"""GreedySoupCallback: at the end of a fit, cook one set of weights out of several, judged on held-out data."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from typing_extensions import override

from lightning_robust.callbacks.averaging.callback import SWACallback
from lightning_robust.callbacks.candidates import Candidates, MixingCallback, require_last, save_chosen
from lightning_robust.callbacks.merging.greedy_soup.pantry import (
    BestEpochs,
    NamedIngredient,
    check_files,
    from_checkpoints,
    scored,
    source_of,
)
from lightning_robust.callbacks.merging.greedy_soup.recipes import (
    AS_TRAINED,
    Recipe,
    best_of,
    cook_all,
    cook_greedy,
    measure_barriers,
)
from lightning_robust.callbacks.merging.greedy_soup.report import report_soup
from lightning_robust.functional.averaging import State, require_same
from lightning_robust.functional.low_rank import refuse_trained_pairs, require_one_basis
from lightning_robust.functional.soups import Soup
from lightning_robust.functional.weights import state_on_cpu
from lightning_robust.harness.checkpoints import expand, read_state
from lightning_robust.harness.closing import note_weights
from lightning_robust.harness.folders import output_folder
from lightning_robust.harness.load_hook import EditWeights
from lightning_robust.harness.ranks import Guard, agreed
from lightning_robust.harness.trainers import is_fast_dev_run, refuse_sharded


class GreedySoupCallback(MixingCallback):
    r"""Average several checkpoints into one set of weights, as far as that helps on held-out data.

    Greedy soup (`Wortsman et al. 2022 <https://arxiv.org/abs/2203.05482>`_): from the best ingredient on, the others
    are added in order of their score as long as the score of the mean improves. The soup is cooked when training has
    ended, on the Trainer's validation loaders; BatchNorm statistics of every mixture are refreshed from the training
    data. Afterwards the module holds the best of the soup, its best ingredient and the weights as trained: no recipe
    makes it worse by the metric, and a warning says where the soup was not the best. ``dirpath`` holds these weights as
    ``soup.ckpt`` (which loads in Lightning) and ``soup.json`` (ingredients, order, scores, SHA-256), and
    ``ckpt_path="best"`` means them where a ModelCheckpoint monitors the same metric.

    Before cooking, the loss barrier half way between the best ingredient and each other one and the cosine of their
    weights are reported: a soup needs models fine-tuned from one start. Low-rank adapters (LoRA) both of whose factors
    differ are refused, since the mean of factors is not that of their products.

    The monitored metric may be any that validation logs, or one of DeploymentParityCallback
    (``"parity/emulated-fp16/rel_l2"``, mode ``"min"``): the soup that deploys best.

    Logged at the end: ``soup/score``, ``soup/best_ingredient``, ``soup/ingredients``, a table and a figure.

    Cost of the greedy recipe: one evaluation of the weights as trained, one for each ingredient whose score the
    ModelCheckpoint does not know, and one for each addition tried; an addition that can no longer win is stopped early
    where ``best_possible`` is known.
    Memory: the running sum in fp64 and one candidate. Each file is opened once and mapped, not read into memory.

    If cooking fails, a warning says why and the weights stay as trained. The epochs kept so far resume with the run.

    Args:
        recipe: ``"greedy"``, ``"uniform"`` (all), ``"learned"`` (mixing coefficients by gradient descent on the
            validation data, with the loss of the module's own ``training_step``, unattacked, and a learned temperature
            of what ``logits`` or ``forward`` returns, if it is a tensor), or ``"stock"`` (Model Stock, from ``base``).
        base: File with the weights that the ingredients began from, for ``"stock"``; None takes those at the start of
            the fit.
        ingredients: Paths and globs of ``.ckpt``, ``.pt`` or ``.safetensors`` files; ``"checkpoints"`` for the best
            ones of this run's ModelCheckpoint; ``"epochs"`` for the ``top_k`` best epochs of this run, kept by this
            callback. None is ``"checkpoints"`` where a ModelCheckpoint with a ``monitor`` keeps more than one, else
            ``"epochs"``.
        top_k: How many epochs to keep.
        monitor: Metric to judge by; None takes that of a ModelCheckpoint or EarlyStopping callback.
        mode: ``"max"`` or ``"min"``; None takes that callback's.
        strict: Accept only improvements; False also accepts equal scores.
        drop: Afterwards remove ingredients as long as that improves the score.
        best_possible: The best value of the metric that any sample can have, such as 1 for an accuracy or 0 for a loss
            that cannot be negative; allows stopping early. Torchmetrics accuracies are recognised.
        report_barriers: Measure barriers first, one evaluation for each ingredient.
        bn_refresh: Recompute BatchNorm statistics of mixtures.
        bn_samples: Training samples on each rank to recompute them from, rounded up to whole batches; all if None.
        input_key: Which part of a batch goes into ``forward`` for that: position or name; a list for several
            arguments. None infers it from the signature of ``forward``.
        dirpath: Folder for the files; None is ``soup`` in the run's own folder.
        on_failure: ``"warn"`` and leave the weights as trained, or ``"raise"``.

    Raises:
        ValueError: For arguments out of range, and before training for files that are missing or cannot be read,
            and for adapters.
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
        base: str | None = None,
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
        input_key: int | str | list[int | str] | None = None,
        dirpath: str | None = None,
        on_failure: Literal["warn", "raise"] = "warn",
    ) -> None:
        super().__init__()
        if recipe not in ("greedy", "uniform", "learned", "stock"):
            raise ValueError(f"Expected `recipe` to be greedy, uniform, learned or stock, but got {recipe!r}.")
        if base is not None and recipe != "stock":
            raise ValueError(f"Expected `base` with the recipe stock alone, but got it with {recipe}. Leave it out.")
        if top_k < 1:
            raise ValueError(f"Expected `top_k` to be at least 1, but got {top_k}.")
        if ingredients is not None and not ingredients:
            raise ValueError(f"Expected at least one path or glob in `ingredients`, but got {ingredients!r}.")
        self.recipe, self.base, self.ingredients, self.top_k = recipe, base, ingredients, top_k
        self.monitor, self.mode = monitor, mode
        self.strict, self.drop, self.best_possible = strict, drop, best_possible
        self.report_barriers = report_barriers
        self.bn_refresh, self.bn_samples, self.input_key = bn_refresh, bn_samples, input_key
        self.dirpath, self.on_failure = dirpath, on_failure
        self.soup: Soup | None = None
        self.path: str = ""
        self._epochs = BestEpochs(top_k)
        self._base: State = {}
        self._source = "files"
        self._guard = Guard("GreedySoupCallback", on_failure)

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work, before any training is spent on it."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        refuse_sharded(trainer, "GreedySoupCallback")
        require_last(trainer, self, SWACallback)
        self.judged_by(trainer)
        self.soup, self.path, self._epochs = None, "", BestEpochs(self.top_k)
        self._guard.reset()

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the initial weights, if the recipe needs them, and refuse ingredients that cannot become a soup."""
        self._source = "files" if self._files() else source_of(trainer, self.ingredients)
        super().on_fit_start(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save this epoch, if it is among the best."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or is_fast_dev_run(trainer):
            return
        monitor, mode = self.judged_by(trainer)
        if monitor not in trainer.callback_metrics:
            raise MisconfigurationException(
                f"Expected the metric {monitor!r} to judge a soup by, but validation logs "
                f"{sorted(trainer.callback_metrics)}. Set `monitor` to one of them."
            )
        if self._source != "epochs":
            return
        score = trainer.strategy.broadcast(float(trainer.callback_metrics[monitor]), 0)  # ranks may log their own
        if math.isfinite(score):
            folder = output_folder(trainer, self.dirpath, "soup")
            offer = functools.partial(self._epochs.offer, trainer, folder, score if mode == "max" else -score)
            self._guard.attempt(trainer, offer, "an epoch's weights are not kept", once=True)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Cook."""
        self._guard.attempt(trainer, lambda: self.cook(trainer, pl_module), "no soup, the weights stay as trained")

    @override
    def edit_weights(self, pl_module: pl.LightningModule, checkpoint: dict[str, Any], edit: EditWeights) -> None:
        """The module's hook for loading reaches the weights that this callback keeps too."""
        saved = checkpoint.get("callbacks", {}).get(self.state_key)
        if saved and saved["base"]:
            saved["base"] = edit(saved["base"])

    @override
    def state_dict(self) -> dict[str, Any]:
        """The epochs kept so far and the initial weights."""
        return {"kept": dict(self._epochs.merits), "base": dict(self._base)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the epochs kept so far."""
        self._epochs, self._base = BestEpochs(self.top_k, state_dict["kept"]), dict(state_dict["base"])

    def keep_base(self, pl_module: pl.LightningModule) -> None:
        """Copy the weights that the ingredients share as their start, if the recipe needs them."""
        if self.recipe == "stock" and not self._base:
            self._base = state_on_cpu(pl_module) if self.base is None else read_state(self.base)
            require_same(pl_module.state_dict(), self._base, str(self.base))

    def cook(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Soup:
        """Make the soup and leave it in the module; within ``fit`` or ``validate``.

        Raises:
            ValueError: If there is no usable ingredient, or they differ in names or shapes.
        """
        monitor, mode = self.judged_by(trainer)
        candidates = Candidates(
            trainer, pl_module, monitor, mode, self.bn_refresh, self.bn_samples, self.input_key, self._guard
        )
        gathered = self._gather(candidates)
        unknown = sum(ingredient.score is None for ingredient in gathered)
        mixed = (len(gathered) - 1) * (self.report_barriers + (self.recipe == "greedy"))
        with candidates.watched("Soup", unknown + mixed + 1):  # the weights as trained are the last
            pantry = scored(gathered, candidates)
            require_one_basis([ingredient() for ingredient in pantry])
            candidates.mixing(ingredient() for ingredient in pantry)
            barriers = measure_barriers(pantry, candidates, self._base) if self.report_barriers else []
            if self.recipe == "greedy":
                soup = cook_greedy(pantry, candidates, self.strict, self.drop, self.best_possible)
            else:
                soup = cook_all(self.recipe, pantry, candidates, self._base)
            held = best_of(soup, pantry, candidates)
        self.soup = soup
        candidates.install(held.state, mixed=held.mixed)
        if held.name != AS_TRAINED:
            count = len(soup.ingredients)
            soup_words = f"the soup of {count} ingredient{'s' * (count > 1)}"
            note_weights(trainer, soup_words if held.state is soup.state else f"the ingredient {held.name}")
        folder = output_folder(trainer, self.dirpath, "soup")
        path = folder / "soup.ckpt"
        save = functools.partial(save_chosen, trainer, path, monitor=monitor, score=held.score)
        self.path = self._guard.attempt(trainer, save, "the module holds the soup, but no file does", "")
        report = functools.partial(report_soup, soup, pantry, barriers, candidates, folder, self.recipe, held)
        self._guard.attempt(trainer, report, "the module holds the soup, but not all of it is shown")
        return soup

    @override
    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the initial weights, if the recipe needs them, and refuse ingredients that cannot become a soup."""
        agreed(trainer, lambda: self.keep_base(pl_module), "Reading the initial weights")
        if self._source == "files":
            agreed(trainer, lambda: check_files(self._files(), pl_module), "Reading the ingredients")
        else:
            refuse_trained_pairs(pl_module)

    def _files(self) -> list[Path]:
        if self.ingredients in (None, "checkpoints", "epochs"):
            return []
        return expand([self.ingredients] if isinstance(self.ingredients, str) else self.ingredients or [])

    def _gather(self, candidates: Candidates) -> list[NamedIngredient]:
        """The ingredients; the present weights, where the run kept nothing."""
        if self._source == "checkpoints":
            ingredients = from_checkpoints(candidates.trainer, candidates.monitor)
        elif self._source == "epochs":
            ingredients = self._epochs.ingredients(candidates.mode)
        else:
            return [NamedIngredient(str(path), path) for path in self._files()]
        return ingredients or [NamedIngredient("last", state=candidates.present())]
