"""The Trainer of the command line, which also averages checkpoints of finished runs."""

from __future__ import annotations

from typing import Literal

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_robust.callbacks import GreedySoupCallback
from lightning_robust.functional.soups import Soup


class RobustTrainer(Trainer):
    """A Trainer that also averages checkpoints of finished runs."""

    def soup(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        *,
        ingredients: str | list[str],
        recipe: Literal["greedy", "uniform", "learned", "stock"] = "greedy",
        base: str | None = None,
        monitor: str | None = None,
        mode: Literal["max", "min"] | None = None,
        strict: bool = True,
        drop: bool = False,
        best_possible: float | None = None,
        report_barriers: bool = True,
        bn_refresh: bool = True,
        bn_samples: int | None = None,
        dirpath: str = "soup",
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> Soup:
        """Average checkpoints of finished runs where that helps on the validation data, and validate the result.

        The arguments are those of :class:`~lightning_robust.GreedySoupCallback`. The module then holds the soup, or its
        best ingredient where that is better.

        Args:
            model: The module that the checkpoints belong to.
            datamodule: The data.
            ingredients: Paths and globs of .ckpt, .pt or .safetensors files.
            recipe: How to mix.
            base: File with the weights that the ingredients began from, for the stock recipe; None takes those of the
                module as it is built.
            monitor: Metric to judge by.
            mode: Whether larger or smaller is better.
            strict: Accept only improvements.
            drop: Afterwards remove ingredients whose removal helps.
            best_possible: The best value that any sample can have.
            report_barriers: Measure barriers first, one evaluation for each ingredient.
            bn_refresh: Recompute BatchNorm statistics of mixtures.
            bn_samples: Roughly how many training samples to recompute them from; all if None.
            dirpath: Folder for soup.ckpt and soup.json.
            ckpt_path: What a configuration saved by fit may hold; a soup begins with its ingredients, and says so.
            weights_only: Likewise; ingredients are always read as weights alone.

        Returns:
            The soup, also where the module holds something better.
        """
        if ckpt_path is not None or weights_only is False:
            rank_zero_warn("`ckpt_path` and `weights_only` are of the fit: a soup has no use for them.")
        callback = GreedySoupCallback(
            recipe,
            base=base,
            ingredients=[ingredients] if isinstance(ingredients, str) else ingredients,
            monitor=monitor,
            mode=mode,
            strict=strict,
            drop=drop,
            best_possible=best_possible,
            report_barriers=report_barriers,
            bn_refresh=bn_refresh,
            bn_samples=bn_samples,
            dirpath=dirpath,
            on_failure="raise",
        )
        callback.keep_base(model)
        cook = _CookBeforeValidation(callback)
        self.callbacks.append(cook)  # type: ignore[attr-defined]
        try:
            self.validate(model, datamodule=datamodule)
        finally:
            self.callbacks.remove(cook)  # type: ignore[attr-defined]
        if cook.cooked is None:
            raise ValueError(
                f"Expected validation batches to judge a soup by, but got limit_val_batches={self.limit_val_batches}."
            )
        if callback.path:
            rank_zero_info(f"The soup: {callback.path}")
        return cook.cooked


class _CookBeforeValidation(Callback):
    """Puts the soup into the module before it is validated."""

    def __init__(self, soup: GreedySoupCallback) -> None:
        self.soup = soup
        self.cooked: Soup | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.cooked = self.soup.cook(trainer, pl_module)
