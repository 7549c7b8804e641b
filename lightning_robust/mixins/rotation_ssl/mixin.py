"""RotationSSLMixin: telling quarter turns apart as a second task."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import Metric
from typing_extensions import override

from lightning_robust.functional.batchnorm import evaluating
from lightning_robust.functional.rotation import TURNS, rotate_each, rotate_quadrants, rotation_anomaly, square
from lightning_robust.harness.batches import first_training_batch
from lightning_robust.harness.quiet import quietly
from lightning_robust.harness.steps import call_step, loss_in
from lightning_robust.mixins.host_step import HostStep, tensor_inputs
from lightning_robust.mixins.objective import ObjectiveMixin, Term, WeightedLoss
from lightning_robust.mixins.rotation_ssl.features import Features
from lightning_robust.mixins.rotation_ssl.metric import OutOfDistributionAUROC

HEAD = "rotation_head"


class RotationSSLMixin(ObjectiveMixin):
    r"""Rotation self-supervision for any LightningModule with features of pictures.

    .. math:: L(x, y) + w \, \frac{1}{|R|} \sum_{r \in R} \mathrm{CE}\left(h(f(\mathrm{rot}_{90 r}\, x)), r\right)

    `Hendrycks et al. 2019 <https://arxiv.org/abs/1906.12340>`_: one linear layer :math:`h` on the features :math:`f`
    tells how pictures were turned. Features are those of the host's ``features(inputs)``, or the output of a named
    module, at which the pass then stops; maps ``(N, F, H, W)`` and tokens ``(N, T, F)`` are averaged over their places.
    The layer is sized by the features of one picture, trained in the first group of the optimizer where that does not
    have it, and saved with the weights; the graph of ``forward`` does not hold it.

    With AdversarialCallback the perturbation climbs both losses (``attack_loss``), as in the paper; every turn sees the
    same perturbed picture, whereas the authors' code perturbs each copy by itself. Validation attacks the host's loss
    alone.

    Logged: ``rotation/loss``, ``rotation/acc``; with ``rotation_ood_loader`` also ``rotation/ood_auroc``.

    Square pictures that are not turned are not passed through again: one turn for each costs three quarters of another
    pass on average, all four cost three more.

    Args:
        rotation_weight: :math:`w`; 0 is off, the paper has 0.5.
        rotation_turns: ``"one"`` random turn for each picture, or ``"all"`` four.
        rotation_features: Path of a module whose output is taken, e.g. ``"network.coarse"``; None calls ``features``.
        rotation_fit: Pictures that are not square are cut to their middle (``"crop"``) or set amid zeros (``"pad"``).
        rotation_ood_loader: Index of a validation loader with pictures from elsewhere; how well the rotation head and
            the prediction tell them from those of loader 0 is logged.
        **kwargs: For the next class; ``input_key`` and ``target_key`` say where inputs and targets are in a batch.

    Raises:
        ValueError: For a negative weight, an unknown setting, or features of other shapes.
        MisconfigurationException: If the host has no features; the message lists near names. For a named module, if
            ``forward`` needs more than pictures.
    """

    rotation_head: nn.Linear

    def __init__(
        self,
        *,
        rotation_weight: float = 0.0,
        rotation_turns: Literal["one", "all"] = "one",
        rotation_features: str | None = None,
        rotation_fit: Literal["crop", "pad"] = "crop",
        rotation_ood_loader: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not (math.isfinite(rotation_weight) and rotation_weight >= 0):
            raise ValueError(f"Expected `rotation_weight` of at least 0, but got {rotation_weight}.")
        if rotation_turns not in ("one", "all") or rotation_fit not in ("crop", "pad"):
            raise ValueError(
                "Expected `rotation_turns` 'one' or 'all' and `rotation_fit` 'crop' or 'pad', but got "
                f"{rotation_turns!r} and {rotation_fit!r}."
            )
        self.rotation_weight, self.rotation_turns = rotation_weight, rotation_turns
        self.rotation_features, self.rotation_fit = rotation_features, rotation_fit
        self.rotation_ood_loader = rotation_ood_loader
        self._features = Features(self, rotation_features)
        self._terms.append(Term(self._turns_pictures, self._turn_loss, self._keep_features))
        if rotation_ood_loader is not None:
            self.rotation_ood: Metric = OutOfDistributionAUROC()

    @override
    def setup(self, stage: str) -> None:
        """Make the head, if there is none yet."""
        super().setup(stage)
        if stage == "fit" and self.rotation_weight > 0 and not hasattr(self, HEAD):
            with quietly(self.trainer, self, "training"), torch.no_grad():
                size = self._features.of(self._turnable(self._blank_pictures())).shape[1]
            self._make_head(size)

    @override
    def on_fit_start(self) -> None:
        """Let the optimizer train the head, also one that was made before it or of some parameters alone."""
        super().on_fit_start()
        if self.rotation_weight == 0:
            return
        groups = [group["params"] for optimizer in self.trainer.optimizers for group in optimizer.param_groups]
        known = {id(tensor) for tensors in groups for tensor in tensors}
        groups[0] += [tensor for tensor in self.rotation_head.parameters() if id(tensor) not in known]

    @override
    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Load as the host does; a saved head is made first."""
        weight = state_dict.get(f"{HEAD}.weight")
        if weight is not None and not hasattr(self, HEAD) and self.rotation_weight > 0:
            self._make_head(weight.shape[1])
        return super().load_state_dict(state_dict, *args, **kwargs)

    def attack_loss(self, batch: Any) -> Tensor:
        """What AdversarialCallback climbs: the host's loss, and while training that of the turns as well."""
        # mypy does not know what comes after this class
        host_loss = getattr(super(), "attack_loss", None)
        loss: Tensor = host_loss(batch) if host_loss is not None else loss_in(call_step(super().training_step, batch))
        if self.rotation_weight == 0 or not isinstance(loss, Tensor) or not self.trainer.training:
            return loss
        turned, turns = self._turned(tensor_inputs(self, self._labelled(batch)))
        each = cross_entropy(self.turn_logits(turned), turns.to(self.device), reduction="none")
        each = each.reshape(-1, len(turned) // self._copies)
        return loss + self.rotation_weight * (each.mean(0) if loss.ndim else each.mean())

    def turn_logits(self, images: Tensor) -> Tensor:
        """Logits of how pictures ``(N, C, S, S)`` are turned, ``(N, 4)``."""
        logits: Tensor = self.rotation_head(self._features.of(images))
        return logits

    @torch.no_grad()
    def anomaly(self, images: Tensor) -> Tensor:
        """How unlike the training pictures each of ``(N, C, H, W)`` is, ``(N,)``: higher for those from elsewhere.

        The loss of the rotation head over all turns, and for logits ``(N, classes)`` the confidence of the prediction;
        see :func:`~lightning_robust.functional.rotation.rotation_anomaly`.
        """
        with evaluating(self):
            outputs = getattr(self, self.output_method)(images)
            logits = outputs if isinstance(outputs, Tensor) and outputs.ndim == 2 else None
            return rotation_anomaly(self._turnable(images), self.turn_logits, logits)

    @override
    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score the batch, if it is of one of the two loaders."""
        super().on_validation_batch_end(outputs, batch, batch_idx, dataloader_idx)
        if self._scores() and dataloader_idx in (0, self.rotation_ood_loader):
            scores = self.anomaly(tensor_inputs(self, batch))
            self.rotation_ood.update(scores, dataloader_idx == self.rotation_ood_loader)

    @override
    def on_validation_epoch_end(self) -> None:
        """Log how well the scores tell the loaders apart."""
        super().on_validation_epoch_end()
        if self._scores():
            self.log("rotation/ood_auroc", self.rotation_ood)

    def _scores(self) -> bool:
        has_head = hasattr(self, HEAD)  # which a validation before any fit has not
        return self.rotation_ood_loader is not None and self.rotation_weight > 0 and has_head

    @property
    def _copies(self) -> int:
        return TURNS if self.rotation_turns == "all" else 1

    def _turns_pictures(self) -> bool:
        return self.rotation_weight > 0

    def _keep_features(self, step: HostStep) -> list[Tensor]:
        """Filled with the features that the host computes of its own inputs, which are those of the turn by 0."""
        features: list[Tensor] = []
        if step.inputs.ndim == 4 and step.inputs.shape[2] == step.inputs.shape[3]:
            step.around.append(self._features.kept(features))
        return features

    def _turn_loss(self, step: HostStep, upright: list[Tensor]) -> list[WeightedLoss]:
        turned, turns = self._turned(step.inputs)
        known = _of_inputs(upright, step)
        if known is None:
            features = self._features.of(turned)
        else:
            features, turns = self._complete(known, turned, turns)
        turns, logits = turns.to(self.device), self.rotation_head(features)
        self._log_means({"rotation/acc": (logits.argmax(1) == turns).float().mean()})
        return [WeightedLoss("rotation/loss", cross_entropy(logits, turns), self.rotation_weight)]

    def _complete(self, upright: Tensor, turned: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
        """Features and turns of all pictures, where those that are not turned have been passed through already."""
        # on the CPU, so that no device waits
        still, rest = (turns == 0).nonzero().flatten(), turns.nonzero().flatten()
        if len(rest) == 1:  # alone it has no BatchNorm statistics
            return self._features.of(turned), turns
        features = upright[still.to(upright.device) % len(upright)]
        if len(rest) > 0:
            features = torch.cat([features, self._features.of(turned[rest.to(turned.device)])])
        return features, torch.cat([turns[still], turns[rest]])

    def _turned(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Turned pictures, and their turns on the CPU; the same ones again within a step."""
        images = self._turnable(images)
        if self.rotation_turns == "all":
            return rotate_quadrants(images)[0], torch.arange(TURNS).repeat_interleave(len(images))
        turns = torch.randint(TURNS, (len(images),), generator=self._generator(2, torch.device("cpu")))
        return rotate_each(images, turns.to(images.device)), turns

    def _turnable(self, images: Tensor) -> Tensor:
        return square(images, self.rotation_fit)

    def _blank_pictures(self) -> Tensor:
        """Two black pictures of the size that the module takes."""
        example = self.example_input_array
        if not isinstance(example, Tensor):
            example = tensor_inputs(self, self._labelled(first_training_batch(self.trainer, self)))
        return torch.zeros(2, *example.shape[1:], device=self._place()).to(self.dtype)

    def _make_head(self, size: int) -> None:
        self.rotation_head = nn.Linear(size, TURNS, device=self._place(), dtype=self.dtype)

    def _place(self) -> torch.device:
        """Where the weights lie; in ``setup`` Lightning already names the device that it moves them to afterwards."""
        return next((weight.device for weight in self.parameters()), self.device)


def _of_inputs(kept: list[Tensor], step: HostStep) -> Tensor | None:
    """The features of a step's own inputs, out of those of its passes, in which extra inputs come behind them.

    None where they cannot be told: the features were not kept, or not of one row for each picture.
    """
    if not kept or len(kept) % step.passes:
        return None
    parts = step.inputs.chunk(step.passes)
    found = kept[:: len(kept) // step.passes]
    if any(len(features) < len(part) for features, part in zip(found, parts, strict=True)):
        return None
    return torch.cat([features[: len(part)] for features, part in zip(found, parts, strict=True)])
