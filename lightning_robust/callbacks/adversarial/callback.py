"""AdversarialCallback: train any LightningModule on perturbed inputs, and validate it on them."""

from __future__ import annotations

import functools
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from typing_extensions import Unpack, override

from lightning_robust.callbacks.adversarial.embedding_methods import EmbeddingAttack
from lightning_robust.callbacks.adversarial.methods import Attack, AttackedStep, EpochBill
from lightning_robust.callbacks.adversarial.short_form import (
    MethodName,
    ShortForm,
    make_method,
    make_validation,
    parse_radii,
    refuse_arguments,
    split_arguments,
)
from lightning_robust.callbacks.attacked_batches import AttackInputs, PixelBounds
from lightning_robust.callbacks.module_loss import NoLossError, require_own_loss
from lightning_robust.callbacks.robust_validation.callback import RobustValidationCallback
from lightning_robust.callbacks.robust_validation.companion import ValidatesRobustly
from lightning_robust.harness.closing import join_summary, note_step
from lightning_robust.harness.compat import batches_before, epochs_at
from lightning_robust.harness.inputs import as_keys
from lightning_robust.harness.memory import require_reversible, require_weights
from lightning_robust.harness.ranks import Guard
from lightning_robust.harness.replacement import Replacement
from lightning_robust.harness.steps import call_step
from lightning_robust.harness.trainers import NoEffectWarning, find_callbacks, refuse_sharded


class AdversarialCallback(ValidatesRobustly):
    r"""Adversarial training for any LightningModule, without a change to it.

    .. math::

        \min_\theta \mathbb{E}\left[(1 - r)\,L_\theta(x) + r \max_{\|\delta\| \le \epsilon} L_\theta(x + \delta)\right]

    ``training_step`` is wrapped on the instance and called with a batch whose inputs are perturbed. So it runs inside
    autocast and inside DDP's forward, and the loss is the module's own, whatever the task; a batch that it skips by
    returning None stays skipped. The perturbation raises ``pl_module.attack_loss(batch)`` where the module defines it,
    else the loss of its ``training_step``, run quietly in evaluation mode: nothing is logged, no metric or BatchNorm
    statistic updated, no random number drawn, no ``.grad`` touched. The caller's batch is never changed.

    A method is named, with its arguments beside it (``method="pgd", steps=3``), or given as an object that holds them
    (``method=PGD(steps=3)``, from :mod:`lightning_robust.callbacks.adversarial`). An argument that the method does not
    take is refused.

    ``eps`` is in units of pixels in [0, 1]: ``mean`` and ``std`` say how the batch was normalised. The ball and the
    range of pixels hold exactly, except that nfgsm moves pixels by as much as 3 eps by design (never out of their
    range), and that free adds its perturbation in the precision of the input, to a rounding.

    Robust validation comes along (:class:`~lightning_robust.RobustValidationCallback`, which also works alone):
    ``adversarial/<metric>@<eps>`` at validation and in ``trainer.validate`` and ``trainer.test``, for each of
    ``val_eps``, with the slashes of the metric as underscores (``adversarial/val_acc@0.1``): any ModelCheckpoint can
    monitor it. At the end of an epoch it logs ``adversarial/eps``, ``adversarial/zero_gradients`` (a share; above a few
    percent robustness is masked, and a warning says so), ``adversarial/passes`` (forward and input-gradient passes of
    the attack a step; none for free, whose perturbation takes the gradient of the training, and one less than ``steps``
    for freelb, whose last pass only trains) and ``adversarial/time_share``, what of the epoch the attack takes.

    Cost: one pass a step for the single-step methods, ``steps`` for pgd, each about two thirds of a training step;
    half of that with ``attack_precision="bf16"``, the default, where the processor computes in it. So one seed gives
    other weights on a processor that does not, unless ``attack_precision="32"``. Training is resumable bit for bit:
    random starts depend on the seed, the step and the rank alone.

    Args:
        method: ``"fgsm"``, ``"fgsm_rs"`` (random start, step 1.25 eps), ``"nfgsm"`` (noise of 2 eps, no projection),
            ``"pgd"``, ``"free"`` (each batch is trained on ``steps`` times in a row), ``"trades"`` (for classifiers:
            cross entropy of the clean inputs and ``beta`` times the divergence between the predictions on both),
            ``"mart"`` (for classifiers: looks hardest at what is misclassified), ``"awp"`` (pgd, at weights that are
            perturbed too); for text ``"fgm"``, ``"pgd"`` and ``"freelb"`` on ``embedding``. Or one of the classes FGSM,
            FGSMRS, NFGSM, PGD, Free, TRADES, MART, AWP, FGM, EmbeddingPGD, FreeLB.
        eps: Radius: a number or ``"8/255"``; or one for each of several inputs.
        ratio: Share :math:`r` of the adversarial loss; below 1 the clean loss is computed too.
        every_n_steps: Attack only every n-th batch.
        warmup_epochs: Over so many epochs eps rises from 0.
        mean: Mean that pixels in [0, 1] were normalised with; one number or one a channel. None takes ``mean`` of the
            data module if it has one, else 0.
        std: Standard deviation that pixels were normalised with; None takes ``std`` of the data module, else 1.
        bounds: Smallest and largest pixel; ``"pixels"`` is [0, 1], ``"none"`` perturbs inputs as they are, without
            normalisation or range.
        input_key: Which part of a batch is perturbed: position, name, or path as ``"labelled.0"``; a
            list for several. None is the first floating-point input of ``forward``.
        seed: Of the random starts.
        **arguments: Of the method and of its validation.

    Raises:
        ValueError: For arguments out of range or of another method, inputs that were not normalised as stated, or a
            loss that does not depend on them.
        MisconfigurationException: Under strategies in which no rank has the whole model; for manual optimisation
            without ``attack_loss``; for an ``embedding`` that does not exist; for ``val_`` arguments beside a
            RobustValidationCallback.

    Example:
        >>> adversarial = AdversarialCallback("fgsm_rs", eps="8/255", val_batches=4)
        >>> trainer = pl.Trainer(callbacks=[adversarial], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        method: MethodName | Attack = "fgsm_rs",
        *,
        eps: float | str | list[float | str] = "8/255",
        ratio: float = 1.0,
        every_n_steps: int = 1,
        warmup_epochs: float = 0.0,
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        bounds: PixelBounds = "pixels",
        input_key: int | str | list[int | str] | None = None,
        seed: int = 0,
        **arguments: Unpack[ShortForm],
    ) -> None:
        super().__init__()
        if not 0 <= ratio <= 1:
            raise ValueError(f"Expected `ratio` between 0 and 1, but got {ratio}.")
        if every_n_steps < 1 or warmup_epochs < 0:
            raise ValueError(
                "Expected `every_n_steps` of at least 1 and `warmup_epochs` of at least 0, but got "
                f"{every_n_steps} and {warmup_epochs}."
            )
        of_method, of_validation = split_arguments(method, arguments)
        self.attack = make_method(method, of_method)
        """The method with its arguments."""
        self.method, self.eps, self.ratio, self.every_n_steps = method, eps, ratio, every_n_steps
        self.warmup_epochs, self.mean, self.std, self.bounds = warmup_epochs, mean, std, bounds
        self.input_key, self.seed = input_key, seed
        vars(self).update(arguments)
        keys = as_keys(input_key)
        self._radii = parse_radii(eps, len(keys or [0]))
        self._inputs = AttackInputs(keys, mean, std, bounds)
        refuse_arguments(method, self, self.attack.refuses)
        self.attack.check_inputs(keys or [0], eps)
        self._of_validation = of_validation
        common: dict[str, Any] = {"mean": mean, "std": std, "bounds": bounds, "seed": seed}
        self.validation = make_validation(self.attack, of_validation, self._radii, input_key, common)
        self._replaced: Replacement | None = None
        self._bill = EpochBill()
        self._guard = Guard("AdversarialCallback")

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work, and wrap the training step."""
        join_summary(trainer)
        unfit = self.attack.needs_whole_weights
        refuse_sharded(trainer, unfit or "AdversarialCallback", by_dtensors=not unfit)
        self._inputs.find_normalisation(trainer)
        if self.validation and self._of_validation and find_callbacks(trainer, RobustValidationCallback):
            raise MisconfigurationException(
                f"Expected robust validation once, but got `{next(iter(self._of_validation))}` of AdversarialCallback "
                "beside a RobustValidationCallback. Give the arguments to that one, without `val_`."
            )
        if self.validation is not None:
            self.validation.setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        require_own_loss(pl_module, self.ratio)
        self.attack.check_module(pl_module)
        self.attack.begin(self._inputs)
        if max(self._radii) == 0:
            self._guard.warn("eps is 0: training is as without this callback.", NoEffectWarning, key="no effect")
        self._wrap(trainer, pl_module)

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a module whose traces cannot be undone, or without the embedding, which it may build in ``setup``."""
        require_reversible(pl_module)
        if isinstance(self.attack, EmbeddingAttack):
            self.attack.find_embedding(pl_module)

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count; refuse lazy layers that the sanity check has not built."""
        require_weights(pl_module, "AdversarialCallback")
        self._bill = EpochBill()
        if max(self._radii) > 0:
            told = f"training on inputs attacked by {self.method} with eps {self._radii[0]:.4g}"
            note_step(trainer, "adversarial", told, latest=True)

    @override
    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the method the gradients of the step."""
        self.attack.after_backward(self._radii_at(trainer), self._bill)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the bill."""
        record = self._bill.record
        if not self._bill.steps:
            return
        pl_module.log_dict(
            {
                "adversarial/eps": self._reached(trainer) * self._radii[0],
                "adversarial/zero_gradients": record.zero_share,
                "adversarial/passes": record.passes / self._bill.steps,
                "adversarial/time_share": self._bill.time_share,
                **self.attack.metrics(),
            },
            sync_dist=True,
        )
        if record.zero_share > 0.05:
            self._guard.warn(
                f"{record.zero_share:.0%} of the gradients are zero: the attack finds nothing to climb, and "
                "robustness measured by it is not real. Take attack_precision='32'; look for saturated outputs. "
                "Samples that the loss leaves out, as those with an ignored label, count too, and do no harm.",
                key="zero gradients",
            )
        if record.nonfinite:
            self._guard.warn(
                f"{record.nonfinite} gradients were not finite; those samples were left as they are.", key="not finite"
            )

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the module as it was."""
        self._unwrap(pl_module)

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the module as it was."""
        self._unwrap(pl_module)

    @override
    def state_dict(self) -> dict[str, Any]:
        """What the method carries from step to step, and what validations found."""
        return {**super().state_dict(), **self.attack.state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with both."""
        super().load_state_dict(state_dict)
        self.attack.load_state_dict(state_dict)

    def _wrap(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        original = pl_module.training_step

        @functools.wraps(original)
        def training_step(batch: Any, batch_idx: int = 0) -> Any:
            if max(self._radii) == 0 or batches_before(trainer) % self.every_n_steps > 0:
                return call_step(original, batch, batch_idx)
            self._bill.steps += 1
            step = AttackedStep(
                trainer=trainer,
                module=pl_module,
                original=original,
                batch=batch,
                batch_idx=batch_idx,
                inputs=self.attack.inputs_in(self._inputs, pl_module, batch),
                radii=self._radii_at(trainer),
                eps=self._radii[0],
                ratio=self.ratio,
                seed=self.seed,
                bill=self._bill,
            )
            try:
                return self.attack.train(step)
            except NoLossError:
                # the module skips this batch; so it does with clean inputs
                return call_step(original, batch, batch_idx)

        self._replaced = Replacement(pl_module, "training_step", training_step)

    def _unwrap(self, pl_module: pl.LightningModule) -> None:
        self.attack.end()
        if self._replaced is not None:
            self._replaced.restore(pl_module)
        self._replaced = None

    def _radii_at(self, trainer: pl.Trainer) -> list[float]:
        """Radius of each input in this step."""
        share = self._reached(trainer)
        return [radius * share for radius in self._radii]

    def _reached(self, trainer: pl.Trainer) -> float:
        """The share of eps that the warm-up has reached."""
        if self.warmup_epochs == 0:
            return 1.0
        return min(epochs_at(trainer) / self.warmup_epochs, 1.0)
