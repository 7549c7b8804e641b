"""DatapathCallback: the way that a perturbation takes through the network, layer by layer and channel by channel."""

from __future__ import annotations

import functools
from typing import Literal

import lightning.pytorch as pl
import torch
from typing_extensions import override

from lightning_robust.callbacks.attacked_batches import AttackInputs
from lightning_robust.callbacks.conditions import ATTACK, PGD
from lightning_robust.callbacks.datapath.measure import Datapath, DatapathProbe, ProbeSettings
from lightning_robust.callbacks.datapath.quiet_network import PRECISIONS
from lightning_robust.callbacks.datapath.report import datapath_report
from lightning_robust.callbacks.diagnostics import InputDiagnostic, NamedConditions, check_at_least, show
from lightning_robust.harness.inputs import as_keys
from lightning_robust.layers import find_layers
from lightning_robust.progress import track


class DatapathCallback(InputDiagnostic):
    r"""Send samples through the network clean and perturbed, and see where, and in which channels, they part.

    For each layer the relative divergence :math:`\|A(x') - A(x)\| / \|A(x)\|` of its activations, next to that under
    random signs of the same norm: where the two differ, the network lets this perturbation grow as it does no other.
    Clean and perturbed *part* at the first layer from which on, to the end, the divergence is at least ``factor`` times
    that under noise and at least ``factor`` times that of the inputs; for ``"fp16"`` and ``"bf16"``, which leave inputs
    as they are, ``factor`` times that of the first layer. The channels that carry 80 % of it are where to look.
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
    80 passes over ``num_paths`` samples, most of them with a backward one. In memory: the clean
    activations of all layers for ``batch_size`` samples, and for the gates what a training step on so many takes.
    Nothing of that is kept.

    Args:
        under: What perturbs: ``"pgd"``, ``"fgsm"``, perturbations of ``lightning_robust.deployment.pixels.catalogue``
            (``"jpeg_90"``, a family, or the beginning of a name), corruptions that a camera meets (``"fog@5"``, without
            a number of the middle severity, 3; families; ``"corruptions"``), ``"fp16"`` or ``"bf16"`` (weights and what
            modules take and give are rounded, sums are not); one or several.
        eps: Radius of the attacks, in pixels in [0, 1]; in their own units for vectors without ``mean`` and ``std``.
        steps: Steps of PGD.
        layers: Regular expressions on module paths; None takes all modules with weights of two or more dimensions.
        num_samples: How many samples of the first validation loader.
        batch_size: How many of them at once.
        num_paths: How many of them to find critical channels for; 0 leaves that out.
        gate_weight: Weight of the size of the critical set.
        factor: Clean and perturbed part where the divergence is at least so many times that of noise and of the inputs.
        every_n_epochs: Also measure at the validation of every n-th epoch.
        input_key: Which part of a batch holds the inputs: position or name; a list for several.
        target_key: Where the classes are in a batch; None: behind the inputs of a sequence, or by a usual name.
        mean: Mean that pixels were normalised with; None takes the data module's, else 0.
        std: Standard deviation that pixels were normalised with; None takes the data module's, else 1.
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
        factor: float = 1.5,
        every_n_epochs: int | None = None,
        input_key: int | str | list[int | str] | None = None,
        target_key: int | str | None = None,
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        on_failure: Literal["warn", "raise"] = "warn",
    ) -> None:
        super().__init__(on_failure)
        check_at_least(1, steps=steps, num_samples=num_samples, batch_size=batch_size)
        check_at_least(1, every_n_epochs=1 if every_n_epochs is None else every_n_epochs)
        check_at_least(0, num_paths=num_paths, gate_weight=gate_weight)
        if not factor > 1:
            raise ValueError(f"Expected `factor` above 1, but got {factor}.")
        self.under, self.eps, self.steps, self.layers = under, eps, steps, layers
        self.num_samples, self.batch_size, self.num_paths = num_samples, batch_size, num_paths
        self.gate_weight, self.factor, self.every_n_epochs = gate_weight, factor, every_n_epochs
        self.input_key, self.target_key, self.mean, self.std = input_key, target_key, mean, std
        keys = as_keys(input_key)
        inputs, attacks, others = AttackInputs(keys, mean, std, "pictures"), (ATTACK, PGD), tuple(PRECISIONS)
        self._conditions = NamedConditions(under, inputs, eps, steps=steps, attacks=attacks, others=others)
        if not self._conditions.names:
            raise ValueError(
                f"Expected at least one condition in `under`, out of {(*attacks, *others)}, corruptions or "
                "preprocessing, but got none."
            )
        self._settings = ProbeSettings(
            layers, num_samples, batch_size, num_paths, gate_weight, factor, input_key, target_key
        )
        self.datapaths: list[Datapath] = []

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse names that match no layer, and a module without a loss to attack, before any training is spent."""
        super().on_fit_start(trainer, pl_module)
        self._conditions.require_losses(pl_module)
        if self.layers is not None:
            find_layers(pl_module, self.layers)

    @override
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure, if it is time."""
        in_fit = trainer.state.fn == "fit" and not trainer.sanity_checking
        if self.every_n_epochs and in_fit and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._measure_and_log(trainer, pl_module, in_loop=True)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure the weights that training ends with."""
        self._measure_and_log(trainer, pl_module, in_loop=False)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After a lone ``trainer.validate()``, measure the weights that were validated."""
        if trainer.state.fn == "validate":
            self._measure_and_log(trainer, pl_module, in_loop=False)

    def analyze(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[Datapath]:
        """Measure all conditions; within fit or validate.

        Returns:
            One result for each condition, in the order of ``under``.

        Raises:
            ValueError: If there are no validation batches, or inputs that cannot be perturbed as asked.
        """
        # tensors of inference mode cannot take part in autograd
        with torch.inference_mode(False):
            probe = DatapathProbe(trainer, pl_module, self._settings)
            self.datapaths = []
            for condition in track(self._conditions.build(trainer, pl_module), "Datapath"):
                measure = functools.partial(probe.measure, condition)
                result = self.guard.attempt(trainer, measure, f"nothing was measured under {condition.name}")
                self.datapaths += [] if result is None else [result]
        return self.datapaths

    def _measure_and_log(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, in_loop: bool) -> None:
        """Measure on every rank; rank 0's numbers are everybody's."""
        self.datapaths = []
        self.guard.attempt(trainer, lambda: self.analyze(trainer, pl_module), "not all was measured")
        self.datapaths = trainer.strategy.broadcast(self.datapaths, 0)
        module, step = (pl_module, None) if in_loop else (None, ("datapath", pl_module))
        self.guard.attempt(
            trainer, lambda: show(trainer, datapath_report(self.datapaths), module, step), "not all is shown"
        )
