"""UATMixin: adversarial training on pictures without labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_robust.functional.attacks import pgd
from lightning_robust.functional.batchnorm import evaluating
from lightning_robust.functional.consistency import divergence, pseudo_label_loss
from lightning_robust.functional.pixels import PixelSpace
from lightning_robust.harness.arguments import parse_fraction
from lightning_robust.harness.normalisation import pixel_space
from lightning_robust.harness.schedule import parse_period
from lightning_robust.harness.trainers import NoEffectWarning
from lightning_robust.mixins.host_step import HostStep, find_inputs, find_targets, require_inputs_alone
from lightning_robust.mixins.objective import ObjectiveMixin, Term, WeightedLoss
from lightning_robust.mixins.uat.target_model import TargetModel
from lightning_robust.mixins.uat.unlabelled import (
    ALL_LABELLED,
    LOADER_ENDED,
    of_second_loader,
    require_floating,
    rows_without_label,
)
from lightning_robust.rows import take_rows
from lightning_robust.structures import get_item

_SAVED = "uat"


class UATMixin(ObjectiveMixin):
    r"""Unsupervised adversarial training: robustness from pictures without labels, beside the host's own loss.

    .. math:: L(x, y) + \lambda_{OT} \max_{\|\delta\| \le \epsilon} \mathrm{KL}\left(\bar p(u) \,\|\, p(u + \delta)
       \right) + \lambda_{FT} \max_{\|\delta\| \le \epsilon} \mathrm{CE}\left(\hat y(u), p(u + \delta)\right)

    `Uesato et al. 2019 <https://arxiv.org/abs/1905.13725>`_. *Online targets* (OT): the prediction on the unlabelled
    picture :math:`u`, stopped, in evaluation mode and computed once a batch. *Fixed targets* (FT): the class
    :math:`\hat y` that a target model gives it. Both weights together are UAT++. The inner maximum is found by PGD from
    a random start in evaluation mode, in units of pixels in [0, 1].

    Unlabelled pictures are the samples of a batch whose target is -1 everywhere, or come from a second loader at
    ``uat_unlabelled_key`` of what a CombinedLoader gives. The host's ``training_step`` only gets the labelled part. A
    loader that has ended gives None: then the other part is trained on alone.

    Outputs are logits with classes along ``uat_class_dim``, for each picture one or many: also those of segmentation,
    and distributions over cells.

    Logged: ``uat/ot``, ``uat/ft``, ``uat/share`` (of unlabelled samples whose class the attack has changed).

    Cost: k steps of PGD, one pass and one training step on the unlabelled part for each of the two terms; for FT also a
    pass of the target model, unless its answers are kept by ``uat_index_key``.

    Args:
        uat_ot_weight: :math:`\lambda_{OT}`; 0 is off.
        uat_ft_weight: :math:`\lambda_{FT}`; 0 is off.
        uat_eps: Radius: a number or ``"8/255"``.
        uat_steps: Of PGD.
        uat_step_size: None is 2.5 eps / steps.
        uat_unlabelled_key: Where unlabelled pictures are in a batch of several loaders, e.g. ``"unlabelled"`` or
            ``"unlabelled.0"``; None marks them by targets of -1.
        uat_labelled_key: Where the labelled batch is then.
        uat_target: The target model of FT: the path of a checkpoint of this module; ``"ema"`` for an average of the
            weights; ``"first"`` for the weights after ``uat_target_epochs`` epochs, before which FT is off.
        uat_target_epochs: Of ``"first"``.
        uat_half_life: Of ``"ema"``, in steps or as ``"2 epochs"``.
        uat_index_key: Where the numbers of the unlabelled samples in their data set are in a batch: the target model
            then answers once for each. Not for ``"ema"``, whose answers change.
        uat_class_dim: Along which the logits hold classes.
        uat_mean: Mean that pixels in [0, 1] were normalised with; None takes the data module's, else 0.
        uat_std: Standard deviation likewise, else 1.
        **kwargs: For the next class; ``input_key`` and ``target_key`` say where inputs and targets are in a labelled
            batch.

    Raises:
        ValueError: For settings out of range, or a target model of another shape.
        KeyError: If a batch has no part of the name.
        TypeError: For unlabelled inputs that are no pictures, such as tokens.
        MisconfigurationException: If ``logits``, or ``forward`` where there is none, needs more than pictures, or takes
            none by position.
    """

    def __init__(
        self,
        *,
        uat_ot_weight: float = 0.0,
        uat_ft_weight: float = 0.0,
        uat_eps: float | str = "8/255",
        uat_steps: int = 7,
        uat_step_size: float | str | None = None,
        uat_unlabelled_key: int | str | None = None,
        uat_labelled_key: int | str = "labelled",
        uat_target: str = "first",
        uat_target_epochs: int = 5,
        uat_half_life: float | str = "1 epoch",
        uat_index_key: int | str | None = None,
        uat_class_dim: int = 1,
        uat_mean: float | list[float] | None = None,
        uat_std: float | list[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, weight in (("uat_ot_weight", uat_ot_weight), ("uat_ft_weight", uat_ft_weight)):
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"Expected `{name}` of at least 0, but got {weight}.")
        if uat_steps < 1 or uat_target_epochs < 1:
            raise ValueError(
                f"Expected `uat_steps` and `uat_target_epochs` of at least 1, but got {uat_steps} and "
                f"{uat_target_epochs}."
            )
        if uat_target == "ema" and uat_index_key is not None:
            raise ValueError("Expected no `uat_index_key` with uat_target='ema': its answers change with the weights.")
        self.uat_ot_weight, self.uat_ft_weight = uat_ot_weight, uat_ft_weight
        self.uat_eps, self.uat_steps, self.uat_step_size = uat_eps, uat_steps, uat_step_size
        self.uat_unlabelled_key, self.uat_labelled_key = uat_unlabelled_key, uat_labelled_key
        self.uat_target, self.uat_target_epochs, self.uat_half_life = uat_target, uat_target_epochs, uat_half_life
        self.uat_index_key, self.uat_class_dim = uat_index_key, uat_class_dim
        self.uat_mean, self.uat_std = uat_mean, uat_std
        self._radius = parse_fraction(uat_eps, "uat_eps")
        self._step = None if uat_step_size is None else parse_fraction(uat_step_size, "uat_step_size")
        self._pixels: PixelSpace | None = None
        self._target = TargetModel(self, uat_target, parse_period(uat_half_life), self._classify)
        self._unlabelled_seen = 0
        self._terms.append(Term(self._uses_uat, self._unlabelled_losses, self._find_unlabelled, needs_labels=False))

    @override
    def setup(self, stage: str) -> None:
        """Find out how pictures were normalised."""
        super().setup(stage)
        if stage == "fit" and self._uses_uat():
            require_inputs_alone(self, self.output_method, "logits(inputs)")
            self._pixels = pixel_space(self.trainer, self.uat_mean, self.uat_std)
            self._target.reset()

    @override
    def on_train_start(self) -> None:
        """Make the target model that a checkpoint or an average gives."""
        super().on_train_start()
        if self.uat_ft_weight > 0:
            self._target.start(self.trainer)

    @override
    def on_train_epoch_start(self) -> None:
        """Fix the target model, if it was to be trained first."""
        super().on_train_epoch_start()
        self._unlabelled_seen = 0
        fixes = self.uat_ft_weight > 0 and self.uat_target == "first"
        if fixes and self.current_epoch >= self.uat_target_epochs:
            self._target.fix()

    @override
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Take the new weights into the average."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        self._target.update(self.trainer.global_step)

    @override
    def on_train_epoch_end(self) -> None:
        """Say so, if nothing was without a label."""
        super().on_train_epoch_end()
        if self._uses_uat() and self._unlabelled_seen == 0:
            self._warn_once(ALL_LABELLED, NoEffectWarning)

    @override
    def on_train_end(self) -> None:
        """Say so, if there never was a target model."""
        super().on_train_end()
        if self.uat_ft_weight > 0 and self.uat_target == "first" and self._target.weights is None:
            self._warn_once(
                f"fixed targets have done nothing: the target model of uat_target='first' is that after "
                f"uat_target_epochs={self.uat_target_epochs}, and training ended before. Train longer, or lower it.",
                NoEffectWarning,
            )

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the target model and its answers."""
        super().on_save_checkpoint(checkpoint)
        if self.uat_ft_weight > 0:
            checkpoint[_SAVED] = self._target.state_dict()

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with both."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get(_SAVED)
        if saved is not None and self.uat_ft_weight > 0:
            self._target.load_state_dict(saved)

    def _uses_uat(self) -> bool:
        return self.uat_ot_weight > 0 or self.uat_ft_weight > 0

    @override
    def _labelled(self, batch: Any) -> Any:
        if not self._uses_uat():
            return batch
        if self.uat_unlabelled_key is not None:
            try:
                return get_item(batch, self.uat_labelled_key)
            except KeyError:
                # attacks at validation run this step on batches of the host's own form
                if self.training:
                    raise
                return batch
        key = find_targets(self, batch)
        unlabelled = rows_without_label(get_item(batch, key), key)
        if not bool(unlabelled.any()):
            return batch
        return None if bool(unlabelled.all()) else take_rows(batch, ~unlabelled, len(unlabelled))

    def _find_unlabelled(self, step: HostStep) -> tuple[Tensor, Tensor | None] | None:
        """The pictures, and what the target model says; its weights lie in the module only before the host's pass."""
        pictures, indices = self._unlabelled(step.whole)
        if pictures is None or len(pictures) == 0:
            return None
        require_floating(pictures)
        self._unlabelled_seen += len(pictures)
        (self._pixels or PixelSpace()).check(pictures)
        return pictures, self._target.classes(pictures, indices) if self.uat_ft_weight > 0 else None

    def _unlabelled_losses(self, _: HostStep, found: tuple[Tensor, Tensor | None] | None) -> list[WeightedLoss]:
        if found is None:
            return []
        (pictures, classes), losses, dim = found, [], self.uat_class_dim
        if self.uat_ot_weight > 0:
            with torch.no_grad(), evaluating(self):
                goal = self._predict(pictures)
            loss = self._worst_loss(pictures, lambda logits: divergence(logits, goal, dim), goal.argmax(dim), stream=3)
            losses.append(WeightedLoss("uat/ot", loss, self.uat_ot_weight))
        if classes is not None:
            labels: Tensor = classes
            loss = self._worst_loss(pictures, lambda logits: pseudo_label_loss(logits, labels, dim), labels, stream=4)
            losses.append(WeightedLoss("uat/ft", loss, self.uat_ft_weight))
        return losses

    def _worst_loss(
        self, pictures: Tensor, loss_of: Callable[[Tensor], Tensor], classes: Tensor, stream: int
    ) -> Tensor:
        """The mean of the largest loss in the ball around each picture; logs how many classes that changes."""
        space = self._pixels or PixelSpace()
        with evaluating(self):
            neighbours = pgd(
                lambda pixels: loss_of(self._predict(space.from_pixels(pixels).to(pictures.dtype))),
                space.to_pixels(pictures.detach()).clamp(0, 1),
                self._radius,
                steps=self.uat_steps,
                step_size=self._step,
                bounds=(0.0, 1.0),
                generator=self._generator(stream, pictures.device),
            )
        logits = self._predict(space.from_pixels(neighbours).to(pictures.dtype))
        changed = (logits.argmax(self.uat_class_dim) != classes).float().mean()
        self._log_means({"uat/share": changed})
        return loss_of(logits).mean()

    def _unlabelled(self, batch: Any) -> tuple[Tensor | None, Tensor | None]:
        """The unlabelled pictures of a batch, and their indices in the data set."""
        if self.uat_unlabelled_key is not None:
            rows: Any = slice(None)
            pictures = of_second_loader(batch, self.uat_unlabelled_key)
            if pictures is None:
                self._warn_once(LOADER_ENDED)
                return None, None
        else:
            key = find_targets(self, batch)
            rows = rows_without_label(get_item(batch, key), key)
            pictures = get_item(batch, find_inputs(self, batch))[rows]
        return pictures, None if self.uat_index_key is None else get_item(batch, self.uat_index_key)[rows]

    def _predict(self, pictures: Tensor) -> Tensor:
        logits = getattr(self, self.output_method)(pictures)
        if not isinstance(logits, Tensor) or logits.ndim < 2:
            raise TypeError(
                f"Expected `{self.output_method}` to give logits (N, ...) for unsupervised adversarial training, but "
                f"got {type(logits).__name__}. Define a method `logits(inputs)`."
            )
        return logits

    def _classify(self, pictures: Tensor) -> Tensor:
        return self._predict(pictures).argmax(self.uat_class_dim)
