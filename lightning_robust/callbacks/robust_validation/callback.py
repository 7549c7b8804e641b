"""RobustValidationCallback: log the validation metrics of any LightningModule on attacked and on corrupted batches."""

from __future__ import annotations

from typing import Any, ClassVar

import lightning.pytorch as pl
from typing_extensions import Unpack, override

from lightning_robust.callbacks.attacked_batches import AttackInputs, PixelBounds
from lightning_robust.callbacks.diagnostics import Report, show
from lightning_robust.callbacks.metric_curves import MetricCurves, epochs_so_far
from lightning_robust.callbacks.module_loss import require_own_loss
from lightning_robust.callbacks.robust_validation.attacked import AttackedValidation, check_proportions, sorted_radii
from lightning_robust.callbacks.robust_validation.corrupted import CorruptedValidation
from lightning_robust.callbacks.robust_validation.corruption_error import UnderEach
from lightning_robust.callbacks.robust_validation.evaluators import (
    EvaluatorArguments,
    EvaluatorName,
    make_evaluator,
)
from lightning_robust.callbacks.robust_validation.figure import CLEAN_SERIES, robust_figures
from lightning_robust.callbacks.robust_validation.measure import AttackedEvaluation
from lightning_robust.functional.norm_ball import Norm
from lightning_robust.harness.closing import join_summary, note_step
from lightning_robust.harness.evaluate import Evaluator
from lightning_robust.harness.inputs import as_keys, refuse_several_in_l2
from lightning_robust.harness.memory import ModuleMemory, require_reversible
from lightning_robust.harness.ranks import Guard
from lightning_robust.harness.trainers import NoEffectWarning, refuse_sharded


class RobustValidationCallback(pl.Callback):
    r"""Validate and test on attacked and corrupted batches; training is as without this callback.

    .. math:: \max_{\|\delta\| \le \epsilon} L_\theta(x + \delta)

    by projected gradient descent (`Madry et al. 2017 <https://arxiv.org/abs/1706.06083>`_) on
    ``pl_module.attack_loss(batch)`` where the module defines it, else on its ``training_step``, run quietly in
    evaluation mode. With ``evaluator="auto"``, for classifiers by APGD on the cross entropy and on the targeted DLR
    loss (`Croce and Hein 2020 <https://arxiv.org/abs/2003.01690>`_) and the Square attack (`Andriushchenko et al. 2020
    <https://arxiv.org/abs/1912.00049>`_); for any other task by APGD and Square on an ``attack_loss`` that gives one
    value for each sample. The module's own ``validation_step`` (or ``test_step``) then judges the attacked batches, so
    that every metric it logs is there under attack, whatever the task.

    Logged: ``adversarial/<metric>@<eps>`` at validation and in ``trainer.validate`` and ``trainer.test``, for each of
    ``eps``, with the slashes of the metric as underscores (``adversarial/val_acc@0.1``): any ModelCheckpoint can
    monitor it. At the end of a fit, up to three metrics, those that callbacks watch first, are drawn clean and attacked
    over the epochs, and over ``eps`` where there are several. Warnings say where robustness is masked: random outputs,
    probabilities taken for logits, gradients that are zero. A validation that fails becomes a warning, and training
    continues.

    ``evaluator="smallest_eps"`` instead halves the radius, for each sample on its own, until an attack just moves a
    value of the module's ``decode`` (the one that deployment parity reads) by ``moves``: with ``{lateral_px: 20}`` it
    logs ``adversarial/lateral_px_20_eps``, the smallest eps at which at least half of the samples have a point that is
    moved by 20 px or lost (``eps`` where it moves fewer), and ``adversarial/lateral_px_20_share@<eps>``, the share of
    samples that ``eps`` moves.

    With ``under``, the same metrics under corruptions that a camera meets and under differences of the deployed side's
    preprocessing: ``corruption/<name>/<metric>``, the mean over the severities asked for, and
    ``corruption/mean_error``, the mean corruption error of the metric that a ModelCheckpoint or EarlyStopping callback
    watches (else of the first one that is known to be an error or an accuracy), in its own unit. With a ``baseline``
    also ``corruption/mce``, errors relative to the baseline's as `Hendrycks and Dietterich 2019
    <https://arxiv.org/abs/1903.12261>`_ define it; 1 is the baseline's. ``robust_validation/corruptions.json`` in the
    run's folder has all the numbers, and is such a baseline for other runs. Pictures that were normalised otherwise
    than stated, or that a name of ``under`` does not fit, are refused at the sanity check.

    :class:`~lightning_robust.AdversarialCallback` validates in the same way by itself. Beside it, this callback takes
    over, so that nothing is measured twice.

    Cost: ``steps`` forward and input-gradient passes and one validation step over ``batches`` batches of each loader,
    for each of ``eps``; all of that for each of ``restarts``. Of auto, at most some 1,500 passes forward and back, of
    the samples that withstand; of smallest_eps, ``steps`` for each halving. For ``under`` one validation step over as
    many batches for each corruption and severity, and one for the clean pictures: 61 for ``"corruptions"``.

    Args:
        eps: Radius in units of pixels in [0, 1], a number or ``"8/255"``; or several. Each attack starts where that of
            the next smaller radius ended. An empty list, beside ``under``, is no attack.
        evaluator: ``"pgd"``; ``"auto"``: attacks of AutoAttack's grade in turn, each on what withstood those before; or
            ``"smallest_eps"``, in the task's units: the radius that just moves a decoded value by ``moves``.
        norm: ``"linf"`` or ``"l2"``.
        batches: Attacked batches of each loader; all if None.
        mean: Mean that pixels in [0, 1] were normalised with; one number or one a channel. None takes ``mean`` of the
            data module if it has one, else 0.
        std: Standard deviation that pixels were normalised with; None takes ``std`` of the data module, else 1.
        bounds: Smallest and largest pixel; ``"pixels"`` is [0, 1], ``"none"`` perturbs inputs as they are, without
            normalisation or range.
        input_key: Which part of a batch is perturbed: position, name, or path as ``"labelled.0"``; a list for several.
            None is the first floating-point input of ``forward``.
        proportions: Radii of several inputs relative to each other; the first has ``eps``. None gives all the same.
        seed: Of the random starts.
        under: Corruptions (``"fog"``: all five severities, ``"fog@3"``: one, families such as ``"weather"``,
            ``"corruptions"``: all), and perturbations of ``lightning_robust.deployment.pixels.catalogue``; one or more.
        baseline: ``corruptions.json`` of another run, or the same as a mapping, ``{fog@3: {val/acc: 0.6}}``.
        **arguments: Of the evaluator.

    Raises:
        ValueError: For arguments out of range or of another evaluator, unknown names, and a baseline that lacks one of
            ``under``; at the sanity check, for outputs that the evaluator cannot rank.
        MisconfigurationException: Under strategies in which no rank has the whole model.

    Example:
        >>> robust = RobustValidationCallback(["2/255", "8/255"], batches=4)
        >>> trainer = pl.Trainer(callbacks=[robust], logger=False, enable_checkpointing=False)
    """

    owner: ClassVar[str] = "RobustValidationCallback"
    """The callback that messages speak of."""
    prefix: ClassVar[str] = ""
    """Of the names of its arguments."""

    def __init__(
        self,
        eps: float | str | list[float | str] = "8/255",
        *,
        evaluator: EvaluatorName = "pgd",
        norm: Norm = "linf",
        batches: int | None = 8,
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        bounds: PixelBounds = "pixels",
        input_key: int | str | list[int | str] | None = None,
        proportions: list[float] | None = None,
        seed: int = 0,
        under: str | list[str] | None = None,
        baseline: str | dict[str, dict[str, float]] | None = None,
        **arguments: Unpack[EvaluatorArguments],
    ) -> None:
        super().__init__()
        if norm not in ("linf", "l2"):
            raise ValueError(f"Expected `norm` to be 'linf' or 'l2', but got {norm!r}.")
        attack = make_evaluator(evaluator, arguments, self.prefix)
        keys = as_keys(input_key)
        refuse_several_in_l2(norm, keys)
        check_proportions(proportions, len(keys or [0]))
        self.eps, self.evaluator, self.norm, self.batches = eps, evaluator, norm, batches
        self.proportions, self.seed = proportions, seed
        self.mean, self.std, self.bounds, self.input_key = mean, std, bounds, input_key
        vars(self).update(arguments)
        self._radii = sorted_radii(eps, evaluator, self.prefix, needed=under is None)
        _check_companions(under, baseline, batches, self.prefix)
        self._inputs = AttackInputs(keys, mean, std, bounds)
        evaluation = AttackedEvaluation(self._inputs, norm, attack, batches, seed, self.prefix)
        self._attacks = AttackedValidation(evaluation, self._radii, proportions)
        self.under, self.baseline = under, baseline
        self._corrupted = (
            None if under is None else CorruptedValidation(under, baseline, self._inputs, batches, self.prefix)
        )
        self._guard = Guard(self.owner)
        self._before: ModuleMemory | None = None
        self._curves = MetricCurves()

    @property
    def measured(self) -> UnderEach:
        """Metrics of the last validation: clean and under each of ``under``, as ``corruptions.json`` has them."""
        return {} if self._corrupted is None else self._corrupted.measured

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work, and find out how batches are normalised."""
        join_summary(trainer)
        refuse_sharded(trainer, self.owner, by_dtensors=True)
        if self._radii:
            require_own_loss(pl_module)
        self._inputs.find_normalisation(trainer)
        if stage == "fit":
            self._curves, self._attacks.found = MetricCurves(), []

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a module whose steps leave traces that cannot be undone."""
        require_reversible(pl_module)

    @override
    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note what the module remembers before the clean batches come."""
        self._before = None if trainer.sanity_checking else ModuleMemory(pl_module)

    @override
    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note what the module remembers before the clean batches come."""
        self.on_validation_epoch_start(trainer, pl_module)

    @override
    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Refuse batches that cannot be perturbed, corrupted or ranked, at the sanity check already."""
        if batch_idx == 0:
            if self._radii:
                inputs = self._inputs.in_batch(pl_module, batch)
                if trainer.sanity_checking:
                    inputs.read(batch)
                self._attacks.check(trainer, pl_module, batch)
            if self._corrupted is not None:
                self._corrupted.check(trainer, pl_module, batch, self._guard)

    @override
    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Refuse the same of a test."""
        self.on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)

    @override
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate on attacked batches."""
        self._validate(trainer, pl_module)

    @override
    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Test on attacked batches."""
        self._validate(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep clean and attacked metrics for the figures, where there is a logger for them."""
        attacked, self._attacks.found = self._attacks.found, []
        if trainer.state.fn == "validate" and self._corrupted is not None:
            self._guard.attempt(trainer, lambda: self._draw(trainer), "the figures are not drawn")
        if trainer.state.fn == "fit" and attacked and trainer.loggers:
            self._keep_curves(trainer, attacked)

    def _keep_curves(self, trainer: pl.Trainer, attacked: list[dict[str, float]]) -> None:
        epochs, clean = epochs_so_far(trainer), trainer.callback_metrics
        self._curves.note(epochs, CLEAN_SERIES, {name: float(clean[name]) for name in attacked[0] if name in clean})
        for radius, values in zip(self._radii, attacked, strict=True):
            if radius > 0:
                self._curves.note(epochs, f"{radius:g}", {name: v for name, v in values.items() if name in clean})

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw clean against attacked metrics; say so where there was nothing to attack."""
        if not trainer.enable_validation:
            self._guard.warn("it measured nothing, since the fit has no validation.", NoEffectWarning)
        self._guard.attempt(trainer, lambda: self._draw(trainer), "the figures are not drawn")

    def _draw(self, trainer: pl.Trainer) -> None:
        figures = robust_figures(self._curves, self._curves.chosen(trainer), self.batches)
        show(trainer, Report(figures=figures | ({} if self._corrupted is None else self._corrupted.figures(trainer))))

    @override
    def state_dict(self) -> dict[str, Any]:
        """The curves so far."""
        return {"curves": self._curves.state()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the curves."""
        self._curves.points = state_dict["curves"]

    def _validate(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        before, self._before = self._before, None
        if trainer.sanity_checking:
            return
        for measure in (self._validate_attacked, self._validate_corrupted):
            try:
                measure(Evaluator(trainer, pl_module, before))
            except Exception as error:
                self._guard.fail(trainer, error, "robust validation failed, training continues", once=True)

    def _validate_attacked(self, evaluator: Evaluator) -> None:
        if self._radii:
            for radius, told in self._attacks.measure_and_log(evaluator, self._guard):
                self._note(evaluator.trainer, f"at eps {radius:g}", told)

    def _validate_corrupted(self, evaluator: Evaluator) -> None:
        if self._corrupted is not None:
            told = self._corrupted.measure_and_log(evaluator, self._guard)
            self._note(evaluator.trainer, "under corruptions", told)

    def _note(self, trainer: pl.Trainer, where: str, told: str) -> None:
        """Keep the metrics of the last validation for the closing summary; a test prints its own."""
        if trainer.state.fn == "fit":
            weights = f"the weights of the last validation (epoch {trainer.current_epoch}, step {trainer.global_step})"
            note_step(trainer, f"robust_validation {where}", told, weights=weights, latest=True)


def _check_companions(under: object, baseline: object, batches: int | None, prefix: str) -> None:
    if baseline is not None and under is None:
        raise ValueError(f"Expected `{prefix}under` beside `{prefix}baseline`, but got none.")
    if batches is not None and batches < 1:
        raise ValueError(f"Expected `{prefix}batches` of at least 1, or None for all, but got {batches}.")
