"""DatapathCallback: which way a perturbation takes through the network, layer by layer and channel by channel.

Hooks and logging only; it is measured in ``datapath_probe.py``, drawn in ``datapath_figure.py``.
"""

from __future__ import annotations

from typing import Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

from lightning_robust.callbacks.adversarial.objective import AttackInputs
from lightning_robust.callbacks.conditions import ATTACK, PGD, Condition, attacked, named_perturbations, preprocessed
from lightning_robust.callbacks.datapath.figure import draw
from lightning_robust.callbacks.datapath.measure import PRECISIONS, Datapath, DatapathProbe
from lightning_robust.callbacks.datapath.report import scalars, summary, table
from lightning_robust.harness.logging import log_figure, log_scalars, log_table
from lightning_robust.harness.schedule import parse_fraction
from lightning_robust.harness.trainers import refuse_sharded
from lightning_robust.layers import find_layers


class DatapathCallback(pl.Callback):
    r"""Send samples through the network clean and perturbed, and see where, and in which channels, they part.

    For each layer the relative divergence :math:`\|A(x') - A(x)\| / \|A(x)\|` of its activations, next to that under
    random signs of the same norm: where the two differ, the network lets this perturbation grow as it does no other.
    Clean and perturbed *part* at the first layer from which on, to the end, the divergence is at least ``factor`` times
    that under noise and at least ``factor`` times that of the inputs; for ``"fp16"`` and ``"bf16"``, which leave inputs
    as they are, ``factor`` times that of the first layer. The channels that carry ``share`` of it are where to look.
    The ratio to noise alone is no measure of robustness: it is larger in robust networks, where noise dies out.

    For classifiers also the channels that a prediction rests on, by gates as in `Analyzing the Noise Robustness of Deep
    Neural Networks (Liu et al. 2018) <https://arxiv.org/abs/1810.03913>`_, see
    :func:`~lightning_robust.functional.gates.critical_channels`: how far those of a perturbed sample overlap with
    those of the same sample clean, from where on that is less than two clean samples of one class have in common
    (*diverging* layer), and from where on it has more in common with the class that it is taken for (*merging* layer).

    A layer is a module with weights together with the normalisation right behind it. One that is called several times
    counts as several. Logged when training ends, after ``trainer.validate()``, and at validation every so many epochs
    if wished, for each condition: ``datapath/<condition>/divergence/<layer>``, ``.../noise/<layer>``,
    ``.../inputs``, ``.../parting_depth`` (0 at the first layer, 1 for nowhere), a table and a figure; for classifiers
    also ``.../overlap/<layer>``, ``.../diverging_depth``, ``.../merging_depth``, ``.../critical`` (share of channels)
    and ``.../changed`` (share of predictions). Training is bit-identical with and without it. If it fails, a warning
    says why. Under several processes the numbers are those of the first one's samples.

    Cost in time: three forward passes over ``num_samples`` for each condition, the attack, and for classifiers about
    ``2 * (gate_steps + 20)`` passes over ``num_paths`` samples, most of them with a backward one. In memory: the clean
    activations of all layers for ``batch_size`` samples, and for the gates what a training step on so many takes.
    Nothing of that is kept.

    Args:
        under: What perturbs: ``"pgd"``, ``"fgsm"``, perturbations of ``lightning_robust.deployment.pixels.catalogue``
            (``"jpeg_90"``, a family, or the beginning of a name), ``"fp16"`` or ``"bf16"`` (weights and what modules
            take and give are rounded, sums are not); one or several.
        eps: Radius of the attacks, in pixels in [0, 1].
        steps: Of PGD.
        layers: Regular expressions on module paths; None takes all modules with weights of two or more dimensions.
        num_samples: How many samples of the first validation loader.
        batch_size: How many of them at once.
        num_paths: Of so many the critical channels are sought; 0 leaves that out.
        gate_weight: Of the size of the critical set.
        gate_steps: Of the descent on the gates; with 0 first-order terms decide alone.
        factor: Of the divergence over that of noise and of the inputs, from which clean and perturbed are said to part.
        share: Of the difference that channels are said to carry.
        every_n_epochs: Also measure at the validation of every n-th epoch.
        input_key: Which part of a batch holds the inputs: position or name; a list for several.
        target_key: Which part holds the classes.
        mean: Mean that pixels were normalised with; None takes the data module's, else 0.
        std: Standard deviation likewise, else 1.
        seed: Of the noise and of PGD's start.
        on_failure: ``"warn"``, or ``"raise"``.

    Raises:
        ValueError: For arguments out of range; at the start of a fit for expressions that match no layer.
        MisconfigurationException: Under strategies in which no rank has the whole model.

    Example:
        >>> datapath = DatapathCallback(under=["pgd", "fp16"], eps=0.1)
        >>> trainer = pl.Trainer(callbacks=[datapath], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        under: str | list[str] = "pgd",
        *,
        eps: float | str = "8/255",
        steps: int = 10,
        layers: list[str] | None = None,
        num_samples: int = 64,
        batch_size: int = 16,
        num_paths: int = 32,
        gate_weight: float = 0.01,
        gate_steps: int = 20,
        factor: float = 1.5,
        share: float = 0.8,
        every_n_epochs: int | None = None,
        input_key: int | str | list[int | str] = 0,
        target_key: int | str = 1,
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        seed: int = 0,
        on_failure: Literal["warn", "raise"] = "warn",
    ) -> None:
        super().__init__()
        every = 1 if every_n_epochs is None else every_n_epochs
        _check_at_least(1, steps=steps, num_samples=num_samples, batch_size=batch_size, every_n_epochs=every)
        _check_at_least(0, num_paths=num_paths, gate_weight=gate_weight, gate_steps=gate_steps)
        if not (factor > 1 and 0 < share <= 1):
            raise ValueError(f"Expected `factor` above 1 and `share` in (0, 1], but got {factor} and {share}.")
        self.under, self.eps, self.steps, self.layers = under, eps, steps, layers
        self.num_samples, self.batch_size, self.num_paths = num_samples, batch_size, num_paths
        self.gate_weight, self.gate_steps, self.factor, self.share = gate_weight, gate_steps, factor, share
        self.every_n_epochs, self.input_key, self.target_key = every_n_epochs, input_key, target_key
        self.mean, self.std, self.seed, self.on_failure = mean, std, seed, on_failure
        self._under = [under] if isinstance(under, str) else list(under)
        own = (ATTACK, PGD, *PRECISIONS)
        self._entries = {name: named_perturbations([name]) for name in self._under if name not in own}
        if not self._under:
            raise ValueError(
                f"Expected at least one condition in `under`, out of {own} or preprocessing, but got none."
            )
        self._eps = parse_fraction(eps)
        self.datapaths: list[Datapath] = []

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work."""
        refuse_sharded(trainer, "DatapathCallback")

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse names that match no layer before any training is spent."""
        if self.layers is not None:
            find_layers(pl_module, self.layers)

    @override
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure, if it is time."""
        fits = trainer.state.fn == "fit" and not trainer.sanity_checking
        if self.every_n_epochs and fits and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            pl_module.log_dict(self._guarded(trainer, pl_module), add_dataloader_idx=False)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the weights as training leaves them."""
        log_scalars(trainer, self._guarded(trainer, pl_module))

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After a lone ``trainer.validate()``, measure the weights that it was given."""
        if trainer.state.fn == "validate":
            log_scalars(trainer, self._guarded(trainer, pl_module))

    def analyze(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[Datapath]:
        """Measure all conditions; within fit or validate.

        Returns:
            One result for each condition, in the order of ``under``.

        Raises:
            ValueError: If there are no validation batches, or inputs that cannot be perturbed as asked.
        """
        # tensors of inference mode cannot take part in autograd
        with torch.inference_mode(False):
            probe = self._probe(trainer, pl_module)
            self.datapaths = []
            for condition in self._conditions(trainer, pl_module):
                try:
                    self.datapaths.append(probe.measure(condition))
                except Exception as error:
                    self._fail(error, f"nothing was measured under {condition.name}")
        return self.datapaths

    def _probe(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> DatapathProbe:
        return DatapathProbe(
            trainer,
            pl_module,
            layers=self.layers,
            num_samples=self.num_samples,
            batch_size=self.batch_size,
            num_paths=self.num_paths,
            weight=self.gate_weight,
            steps=self.gate_steps,
            factor=self.factor,
            share=self.share,
            input_key=self.input_key,
            target_key=self.target_key,
            seed=self.seed,
        )

    def _conditions(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[Condition]:
        keys = self.input_key if isinstance(self.input_key, list) else [self.input_key]
        found = []
        for name in self._under:
            if name in PRECISIONS:
                found.append(Condition(name))
            elif name in self._entries:
                entries = self._entries[name]
                found += [preprocessed(trainer, entry, keys[0], self.mean, self.std) for entry in entries]
            else:
                inputs = AttackInputs(keys, self.mean, self.std, "pixels")
                steps = self.steps if name == PGD else None
                found.append(attacked(trainer, pl_module, inputs, self._eps, steps=steps, seed=self.seed))
        return found

    def _guarded(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, float]:
        """Measure and show; what is to be logged as scalars, the same on all ranks."""
        error, self.datapaths = None, []
        try:
            self.analyze(trainer, pl_module)
        except Exception as caught:
            error = caught
        # every rank comes here, so that none waits for one that failed
        self.datapaths = trainer.strategy.broadcast(self.datapaths, 0)
        if error is not None:
            self._fail(error, "not all was measured")
        try:
            self._show(trainer)
        except Exception as caught:
            self._fail(caught, "not all is shown")
        return {tag: value for found in self.datapaths for tag, value in scalars(found).items()}

    def _show(self, trainer: pl.Trainer) -> None:
        for found in self.datapaths:
            rank_zero_info(f"Datapath: {summary(found)}")
            if trainer.is_global_zero and trainer.loggers:
                log_table(trainer, f"datapath/{found.condition}/layers", *table(found))
                log_figure(trainer, f"datapath/{found.condition}/overview", draw(found))

    def _fail(self, error: Exception, consequence: str) -> None:
        if self.on_failure == "raise":
            raise error
        rank_zero_warn(f"DatapathCallback: {consequence}. {type(error).__name__}: {error}")


def _check_at_least(least: int, **values: float) -> None:
    for name, value in values.items():
        if not value >= least:
            raise ValueError(f"Expected `{name}` of at least {least}, but got {value}.")
