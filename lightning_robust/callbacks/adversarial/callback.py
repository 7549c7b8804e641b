"""AdversarialCallback: train any LightningModule on perturbed inputs, and validate it on them.

Hooks, state and logging only; attacks are in ``functional``, the loss they climb in ``attack_objective.py``.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from typing_extensions import override

from lightning_robust.callbacks.adversarial.free import FreeTraining
from lightning_robust.callbacks.adversarial.guard import OnCollapse, OverfittingGuard
from lightning_robust.callbacks.adversarial.objective import AttackInputs, AttackObjective, AttackPrecision, NoLossError
from lightning_robust.callbacks.adversarial.validation import RobustValidation
from lightning_robust.functional.attacks import AttackRecord, fgsm, nfgsm, pgd
from lightning_robust.functional.embeddings import freelb_loss, perturb_embedding
from lightning_robust.harness.arguments import parse_fraction
from lightning_robust.harness.compat import batch_in_epoch, batches_before
from lightning_robust.harness.replacement import Replacement
from lightning_robust.harness.steps import call_step
from lightning_robust.harness.trainers import NoEffectWarning, refuse_sharded
from lightning_robust.structures import Key, get_item, loss_in, take_rows

Method = Literal["fgsm", "fgsm_rs", "nfgsm", "pgd", "free", "trades", "fgm", "freelb"]
_METHODS = ("fgsm", "fgsm_rs", "nfgsm", "pgd", "free", "trades", "fgm", "freelb")
_SINGLE_STEP = ("fgsm", "fgsm_rs", "nfgsm")
_LARGE = 1_000_003
_PROBED = 64
"""Samples of a batch that the guard looks at."""


class AdversarialCallback(pl.Callback):
    r"""Adversarial training for any LightningModule, without a change to it.

    .. math:: \min_\theta \mathbb{E}\left[(1 - r)\,L_\theta(x) + r \max_{\|\delta\| \le \epsilon} L_\theta(x +
    \delta)\right]

    ``training_step`` is wrapped on the instance and called with a batch whose inputs are perturbed; so it runs inside
    autocast and inside DDP's forward, and the loss is the module's own, whatever the task; a batch for which it returns
    None is left out as ever. The perturbation climbs
    ``pl_module.attack_loss(batch)`` where the module defines it, else its ``training_step``, run quietly in evaluation
    mode: nothing is logged, no metric or BatchNorm statistic updated, no random number drawn, no ``.grad`` touched. The
    caller's batch is never changed.

    ``eps`` is in units of pixels in [0, 1]: ``mean`` and ``std`` say how the batch was normalised. The ball and the
    range of pixels hold exactly.

    Logged: ``adversarial/<metric>@<eps>`` at validation and in ``trainer.validate`` and ``trainer.test``, for each of
    ``val_eps``, with the slashes of the metric as underscores (``adversarial/val_acc@0.1``): any ModelCheckpoint can
    monitor it. At the end of an epoch ``adversarial/eps``, ``adversarial/zero_gradients`` (a share; above a few percent
    robustness is masked, and a warning says so), ``adversarial/passes`` (forward and input-gradient passes a step) and
    ``adversarial/time_share`` of the epoch.

    Cost: one pass a step for the single-step methods, ``steps`` for pgd, each about two thirds of a training step;
    half of that with ``attack_precision="bf16"`` where the processor computes in it. Training is resumable bit for bit:
    random starts depend on the seed, the step and the rank alone.

    Args:
        method: ``"fgsm"``, ``"fgsm_rs"`` (random start, step 1.25 eps), ``"nfgsm"`` (noise of 2 eps, no clipping),
            ``"pgd"``, ``"free"`` (each batch is trained on ``steps`` times in a row), ``"trades"`` (for classifiers:
            cross entropy of the clean inputs and ``beta`` times the divergence between the predictions on both); for
            text ``"fgm"``, ``"pgd"`` and ``"freelb"`` on ``embedding``.
        eps: Radius: a number or ``"8/255"``; or one for each of several inputs.
        steps: Of pgd, trades and freelb; replays of a batch for free.
        step_size: None is the method's own.
        norm: ``"linf"`` or ``"l2"``.
        ratio: Share :math:`r` of the adversarial loss; below 1 the clean loss is computed too.
        embedding: Path of the embedding module to perturb instead of the inputs, e.g. ``"encoder.embeddings"``.
        beta: Weight of the divergence in trades.
        target_key: Where trades and ``val_drop_solved`` find the classes in a batch.
        guard_every_n_steps: How often single-step methods are probed for catastrophic overfitting with PGD on a part of
            the batch; 0 never.
        guard_limit: Largest sound quotient of the losses under PGD and under the training attack.
        on_collapse: ``"warn"``; or also go on with ``"pgd"``, ``"shrink"`` the step, or ``"rollback"`` to the weights
            of the last sound probe and go on with pgd.
        every_n_steps: Attack only every n-th batch.
        warmup_epochs: Over so many epochs eps rises from 0.
        mean: Mean that pixels in [0, 1] were normalised with; one number or one a channel. None takes ``mean`` of the
            data module if it has one, else 0.
        std: Standard deviation likewise; else 1.
        bounds: Smallest and largest pixel; ``"pixels"`` is [0, 1], ``"none"`` perturbs inputs as they are, without
            normalisation or range.
        input_key: Which part of a batch is perturbed: position, name, or path as ``"labelled.0"``; a list for several.
        val_input_key: Likewise at validation, where batches have another form than in training; None is ``input_key``.
        attack_precision: ``"bf16"`` where the device computes in it, ``"32"``, or ``"same"`` as training.
        val_eps: Radii to validate with; None is ``eps``, an empty list none.
        val_steps: Steps of the PGD that validates; 0 validates with a single FGSM step.
        val_restarts: Attack so often from random points and keep the highest loss: that of each sample where
            ``attack_loss`` gives one for each, else of the batch.
        val_batches: How many batches of each loader are attacked; all if None.
        val_drop_solved: For classifiers: attack samples no further once they are taken for another class. Accuracies
            are those of the worst iterate, so never higher; losses stop rising there; the fewer samples withstand, the
            less it costs.
        seed: Of the random starts.

    Raises:
        ValueError: For arguments out of range, inputs that were not normalised as stated, or a loss that does not
            depend on them.
        MisconfigurationException: Under strategies in which no rank has the whole model; for manual optimisation
            without ``attack_loss``; for an embedding that is not there.

    Example:
        >>> adversarial = AdversarialCallback("fgsm_rs", eps="8/255", val_batches=4)
        >>> trainer = pl.Trainer(callbacks=[adversarial], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        method: Method = "fgsm_rs",
        *,
        eps: float | str | list[float | str] = "8/255",
        steps: int = 7,
        step_size: float | str | None = None,
        norm: Literal["linf", "l2"] = "linf",
        ratio: float = 1.0,
        embedding: str | None = None,
        beta: float = 6.0,
        target_key: int | str = 1,
        guard_every_n_steps: int = 50,
        guard_limit: float = 3.0,
        on_collapse: OnCollapse = "warn",
        every_n_steps: int = 1,
        warmup_epochs: float = 0.0,
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        bounds: list[float] | Literal["pixels", "none"] = "pixels",
        input_key: int | str | list[int | str] = 0,
        val_input_key: int | str | list[int | str] | None = None,
        attack_precision: AttackPrecision = "bf16",
        val_eps: list[float | str] | None = None,
        val_steps: int = 10,
        val_restarts: int = 1,
        val_batches: int | None = 8,
        val_drop_solved: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if method not in _METHODS:
            raise ValueError(f"Expected `method` to be one of {', '.join(_METHODS)}, but got {method!r}.")
        if method in ("fgm", "freelb") and embedding is None:
            raise ValueError(f"Expected `embedding`, the path of the module to perturb, for method={method!r}.")
        if not 0 <= ratio <= 1:
            raise ValueError(f"Expected `ratio` between 0 and 1, but got {ratio}.")
        if steps < 1 or every_n_steps < 1 or val_steps < 0 or warmup_epochs < 0:
            raise ValueError(
                "Expected `steps` and `every_n_steps` of at least 1, `val_steps` and `warmup_epochs` of at least 0, "
                f"but got {steps}, {every_n_steps}, {val_steps} and {warmup_epochs}."
            )
        keys = _as_list(input_key)
        radii = [parse_fraction(value) for value in (eps if isinstance(eps, list) else [eps])]
        if len(radii) not in (1, len(keys)):
            raise ValueError(f"Expected `eps` as one value or one for each of {len(keys)} inputs, got {len(radii)}.")
        self.method, self.eps, self.steps, self.norm, self.ratio = method, eps, steps, norm, ratio
        self.step_size, self.embedding = step_size, embedding
        self.every_n_steps, self.warmup_epochs = every_n_steps, warmup_epochs
        self.mean, self.std, self.bounds, self.input_key = mean, std, bounds, input_key
        self.val_input_key, self.attack_precision = val_input_key, attack_precision
        self.beta, self.target_key = beta, target_key
        self.guard_every_n_steps, self.guard_limit, self.on_collapse = guard_every_n_steps, guard_limit, on_collapse
        self._guard = OverfittingGuard(guard_limit, on_collapse)
        if val_restarts < 1 or (val_steps == 0 and (val_drop_solved or val_restarts > 1)):
            raise ValueError(
                "Expected `val_restarts` of at least 1, and `val_steps` of at least 1 for restarts and "
                f"`val_drop_solved`, but got {val_restarts} and {val_steps}."
            )
        self.val_eps, self.val_steps, self.val_batches, self.seed = val_eps, val_steps, val_batches, seed
        self.val_restarts, self.val_drop_solved = val_restarts, val_drop_solved
        self._radii = radii * (len(keys) if len(radii) == 1 else 1)
        first = max(radii[0], 1e-30)
        self._relative_step = None if step_size is None else parse_fraction(step_size, "step_size") / first
        self._val_radii = [parse_fraction(r, "val_eps") for r in ([radii[0]] if val_eps is None else val_eps)]
        self._inputs = AttackInputs(keys, mean, std, bounds)
        val_keys = keys if val_input_key is None else _as_list(val_input_key)
        if len(val_keys) != len(keys):
            raise ValueError(f"Expected `val_input_key` for each of {len(keys)} inputs, but got {val_input_key}.")
        self._val_inputs = AttackInputs(val_keys, mean, std, bounds)
        self._free = FreeTraining(self._inputs, steps)
        self._original: Callable[..., Any] | None = None
        self._replaced: Replacement | None = None
        self._record = AttackRecord()
        self._attacks, self._seconds, self._epoch_start = 0, 0.0, 0.0
        self._warned: set[str] = set()

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work, and wrap the training step."""
        refuse_sharded(trainer, "AdversarialCallback")
        for inputs in (self._inputs, self._val_inputs):
            inputs.find_normalisation(trainer)
        if self.embedding is not None:
            self._embedding(pl_module)
        if stage != "fit":
            return
        if not pl_module.automatic_optimization and not hasattr(pl_module, "attack_loss"):
            raise MisconfigurationException(
                "Expected a method `attack_loss(batch)` on a module with manual optimisation, since its "
                "`training_step` cannot be run without training. Define it; it returns the loss that the attack climbs."
            )
        self._guard = OverfittingGuard(self.guard_limit, self.on_collapse)
        self._free = FreeTraining(self._inputs, self.steps)
        if max(self._radii) == 0:
            self._warn("eps is 0: training is as without this callback.", NoEffectWarning)
        self._wrap(trainer, pl_module)

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count."""
        self._record, self._attacks, self._seconds, self._epoch_start = AttackRecord(), 0, 0.0, time.perf_counter()

    @override
    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Free training: the perturbation takes the same gradient."""
        if self.method == "free":
            self._free.update([radius * self._scale(trainer) for radius in self._radii])

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the bill."""
        if not self._attacks:
            return
        share = self._seconds / max(time.perf_counter() - self._epoch_start, 1e-9)
        pl_module.log_dict(
            {
                "adversarial/eps": self._scale(trainer) * self._radii[0],
                "adversarial/zero_gradients": self._record.zero_share,
                "adversarial/passes": self._record.passes / self._attacks,
                "adversarial/time_share": share,
                **({"adversarial/guard_ratio": self._guard.ratio} if self._guard.ratio else {}),
            },
            sync_dist=True,
        )
        if self._record.zero_share > 0.05:
            self._warn(
                f"{self._record.zero_share:.0%} of the gradients are zero: the attack finds nothing to climb, and "
                "robustness that is measured by it is not real. Take attack_precision='32'; look for saturated outputs."
            )
        if self._record.nonfinite:
            self._warn(f"{self._record.nonfinite} gradients were not finite; those samples were left as they are.")

    @override
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate on attacked batches."""
        self._validate(trainer, pl_module)

    @override
    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Test on attacked batches."""
        self._validate(trainer, pl_module)

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
        """What the guard has decided, and what free training carries on."""
        return {"guard": self._guard.state_dict(), "free": self._free.state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with both."""
        self._guard.load_state_dict(state_dict["guard"])
        self._free.load_state_dict(state_dict["free"])

    def _wrap(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        original = pl_module.training_step

        @functools.wraps(original)
        def training_step(batch: Any, batch_idx: int = 0) -> Any:
            if not self._is_due(trainer):
                return call_step(original, batch, batch_idx)
            try:
                return self._train(trainer, pl_module, batch, batch_idx)
            except NoLossError:
                # the module leaves this batch out; so it does with the inputs as they are
                return call_step(original, batch, batch_idx)

        self._original, self._replaced = original, Replacement(pl_module, "training_step", training_step)

    def _unwrap(self, pl_module: pl.LightningModule) -> None:
        if self._replaced is not None:
            self._replaced.restore(pl_module)
        self._original = self._replaced = None

    def _is_due(self, trainer: pl.Trainer) -> bool:
        return max(self._radii) > 0 and batches_before(trainer) % self.every_n_steps == 0

    def _train(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> Any:
        start = time.perf_counter()
        self._attacks += 1

        def step(part: Any) -> Any:
            return call_step(self._original, part, batch_idx) if self._original else None

        if self.method == "free":
            return step(self._free.perturbed(batch))
        if self.embedding is not None:
            return self._train_on_embedding(trainer, pl_module, batch, step)
        objective = AttackObjective(trainer, pl_module, step, batch, self._inputs, self.attack_precision)
        radii = [radius * self._scale(trainer) for radius in self._radii]
        if self.method == "trades":
            return self._trades(trainer, pl_module, objective, radii)
        if self._is_probed(trainer):
            self._probe(trainer, pl_module, batch, step, radii)
        perturbed = objective.attacked(functools.partial(self._perturb, trainer), radii)
        self._seconds += time.perf_counter() - start
        if self.ratio == 1:
            return step(perturbed)
        return _mixed(step(batch), step(perturbed), self.ratio)

    def _perturb(self, trainer: pl.Trainer, loss: Callable[[Tensor], Tensor], inputs: Tensor, radius: Tensor) -> Tensor:
        settings: dict[str, Any] = {"record": self._record, "generator": self._generator(trainer, inputs.device)}
        if self.method == "nfgsm":
            return nfgsm(loss, inputs, radius, **settings)
        size = None if self._relative_step is None else radius * self._relative_step
        settings |= {"norm": self.norm, "bounds": self._inputs.range}
        if self.method in ("pgd", "trades") or self._guard.use_pgd:
            return pgd(loss, inputs, radius, steps=self.steps, step_size=size, **settings)
        random = self.method == "fgsm_rs"
        size = (radius * (1.25 if random else 1.0) if size is None else size) * self._guard.step_scale
        return fgsm(loss, inputs, radius, step_size=size, random_start=random, **settings)

    def _is_probed(self, trainer: pl.Trainer) -> bool:
        every = self.guard_every_n_steps
        return self.method in _SINGLE_STEP and every > 0 and batches_before(trainer) % every == 0

    def _probe(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        step: Callable[[Any], Any],
        radii: list[float],
    ) -> None:
        """Attack a part of the batch with the method in use and with PGD, and let the guard compare the losses."""
        part = take_rows(batch, slice(_PROBED), len(self._inputs.read(batch)[0]))
        objective = AttackObjective(trainer, pl_module, step, part, self._inputs, self.attack_precision)

        def strong(loss: Callable[[Tensor], Tensor], inputs: Tensor, radius: Tensor) -> Tensor:
            generator = self._generator(trainer, inputs.device)
            return pgd(loss, inputs, radius, steps=10, norm=self.norm, bounds=self._inputs.range, generator=generator)

        attacks = (functools.partial(self._perturb, trainer), strong)
        perturbed = [objective.attacked(attack, radii) for attack in attacks]
        with objective.quiet(), torch.no_grad():
            losses = [objective.loss_of(each).mean() for each in perturbed]
        self._guard.judge(trainer, pl_module, *losses)

    def _trades(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, objective: AttackObjective, radii: list[float]
    ) -> Tensor:
        r"""Cross entropy on clean inputs and the divergence to attacked ones, in one forward pass of both."""
        (key,) = self._inputs.keys
        inputs, classes = get_item(objective.batch, key), get_item(objective.batch, self.target_key)
        with objective.quiet(), torch.no_grad():
            goal = pl_module(inputs).log_softmax(1)

        def divergence(batch: Any) -> Tensor:
            found = pl_module(get_item(batch, key)).log_softmax(1)
            return kl_div(found, goal, reduction="none", log_target=True).flatten(1).sum(1)

        attacked = objective.attacked(functools.partial(self._perturb, trainer), radii, divergence)
        logits = pl_module(torch.cat([inputs, get_item(attacked, key)]))
        clean, moved = logits.chunk(2)
        natural = cross_entropy(clean, classes)
        robust = kl_div(moved.log_softmax(1), clean.log_softmax(1), reduction="batchmean", log_target=True)
        pl_module.log_dict({"adversarial/natural_loss": natural, "adversarial/divergence": robust})
        return natural + self.beta * robust

    def _train_on_embedding(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, step: Callable[[Any], Any]
    ) -> Any:
        embedding = self._embedding(pl_module)
        objective = AttackObjective(trainer, pl_module, step, batch, self._inputs, self.attack_precision)
        radius = self._scale(trainer) * self._radii[0]
        size = None if self.step_size is None else parse_fraction(self.step_size, "step_size")
        if self.method == "freelb":
            generator = self._generator(trainer, pl_module.device)
            settings = {} if size is None else {"step_size": size}
            adversarial = freelb_loss(
                lambda: loss_in(step(batch)),
                embedding,
                steps=self.steps,
                magnitude=radius,
                generator=generator,
                **settings,
            )
            return adversarial if self.ratio == 1 else _mixed(step(batch), adversarial, self.ratio)
        steps = 1 if self.method == "fgm" else self.steps
        with objective.quiet():
            deltas = perturb_embedding(lambda: objective.loss_of(batch), embedding, radius, steps=steps, step_size=size)
        with deltas.applied():
            adversarial = step(batch)
        return adversarial if self.ratio == 1 else _mixed(step(batch), adversarial, self.ratio)

    def _embedding(self, pl_module: pl.LightningModule) -> torch.nn.Module:
        try:
            return pl_module.get_submodule(str(self.embedding))
        except AttributeError as error:
            names = [name for name, part in pl_module.named_modules() if isinstance(part, torch.nn.Embedding)]
            raise MisconfigurationException(
                f"Expected a module at embedding={self.embedding!r}, but there is none. Embeddings are at {names}."
            ) from error

    def _scale(self, trainer: pl.Trainer) -> float:
        """How much of eps has been reached."""
        if self.warmup_epochs == 0:
            return 1.0
        batches = max(trainer.num_training_batches, 1)
        done = trainer.current_epoch + (batch_in_epoch(trainer) + 1) / batches
        return min(done / self.warmup_epochs, 1.0)

    def _generator(self, trainer: pl.Trainer, device: torch.device) -> torch.Generator:
        step = batches_before(trainer) + 1
        return torch.Generator(device).manual_seed(self.seed + _LARGE * step + trainer.global_rank)

    def _validate(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or self.embedding is not None or not self._val_radii:
            return
        first = self._radii[0]
        wanted = sorted(self._val_radii)
        radii = [[radius * own / first if first > 0 else radius for own in self._radii] for radius in wanted]
        solved = self.target_key if self.val_drop_solved else None
        checked = RobustValidation(
            self._val_inputs, self.norm, self.val_steps, self.val_restarts, self.val_batches, self.seed, solved
        )
        try:
            found = checked.metrics(trainer, pl_module, self._original or pl_module.training_step, radii)
        except Exception as error:
            self._warn(f"robust validation failed ({type(error).__name__}: {error}). Training goes on.")
            return
        for radius, metrics in zip(wanted, found, strict=True):
            named = {f"adversarial/{name.replace('/', '_')}@{radius:g}": value for name, value in metrics.items()}
            pl_module.log_dict(named, sync_dist=True, add_dataloader_idx=False)
        for doubt in checked.doubts:
            self._warn(f"robust metrics may mean little: {doubt}.")
        if checked.record.zero_share > 0.05:
            share = checked.record.zero_share
            self._warn(f"{share:.0%} of the gradients are zero at validation: robustness is masked.")

    def _warn(self, message: str, category: type[Warning] = UserWarning) -> None:
        if message[-40:] not in self._warned:
            self._warned.add(message[-40:])
            rank_zero_warn(f"AdversarialCallback: {message}", category=category)


def _as_list(key: Key | list[Key]) -> list[Key]:
    return key if isinstance(key, list) else [key]


def _mixed(clean: Any, adversarial: Any, ratio: float) -> Any:
    if clean is None or adversarial is None:
        return clean
    loss = (1 - ratio) * loss_in(clean) + ratio * loss_in(adversarial)
    return {**clean, "loss": loss} if isinstance(clean, dict) else loss
