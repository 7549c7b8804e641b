"""RotationSSLMixin: telling quarter turns apart as a second task. The turns stand in ``functional``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import Metric
from typing_extensions import override

from lightning_robust.functional.rotation import TURNS, rotate_each, rotate_quadrants, rotation_anomaly, square
from lightning_robust.harness.batches import first_training_batch
from lightning_robust.harness.quiet import in_evaluation_mode, quietly
from lightning_robust.harness.replacement import replaced
from lightning_robust.harness.steps import call_step
from lightning_robust.mixins.objective import HostStep, ObjectiveMixin, Term
from lightning_robust.mixins.rotation_ssl.metric import OutOfDistributionAUROC
from lightning_robust.structures import get_item, loss_in
from lightning_robust.suggest import nearest

HEAD = "rotation_head"


class RotationSSLMixin(ObjectiveMixin):
    r"""Rotation self-supervision for any LightningModule with features of pictures.

    .. math:: L(x, y) + w \, \frac{1}{|R|} \sum_{r \in R} \mathrm{CE}\left(h(f(\mathrm{rot}_{90 r}\, x)), r\right)

    `Hendrycks et al. 2019 <https://arxiv.org/abs/1906.12340>`_: one linear layer :math:`h` on the features :math:`f`
    tells how pictures were turned. Features are those of the host's ``features(inputs)``, or the output of a named
    module, at which the pass then stops; maps ``(N, C, H, W)`` are averaged over their places. The layer is made before
    the optimizer, sized by the features of one picture, and saved with the weights; the graph of ``forward`` does not
    hold it.

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
        ValueError: For a negative weight, an unknown setting, or features that are neither 2-D nor 4-D.
        MisconfigurationException: If there are no features to be had; the message lists near names.
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
        if rotation_ood_loader is not None:
            self.rotation_ood: Metric = OutOfDistributionAUROC()

    @override
    def setup(self, stage: str) -> None:
        """Make the head, if there is none yet."""
        super().setup(stage)
        if stage == "fit" and self.rotation_weight > 0 and not hasattr(self, HEAD):
            with quietly(self.trainer, self, "training"), torch.no_grad():
                size = self._features(self._turnable(self._sample())).shape[1]
            self._make_head(size)

    @override
    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """As of the host; a head that was saved is made first."""
        weight = state_dict.get(f"{HEAD}.weight")
        if weight is not None and not hasattr(self, HEAD) and self.rotation_weight > 0:
            self._make_head(weight.shape[1])
        return super().load_state_dict(state_dict, *args, **kwargs)

    def attack_loss(self, batch: Any) -> Tensor:
        """What AdversarialCallback climbs: the host's loss, and while training that of the turns as well."""
        # mypy does not know what comes after this class
        own = getattr(super(), "attack_loss", None)
        loss: Tensor = own(batch) if own is not None else loss_in(call_step(super().training_step, batch))
        if self.rotation_weight == 0 or not isinstance(loss, Tensor) or not self.trainer.training:
            return loss
        turned, turns = self._turned(get_item(self._labelled(batch), self.input_key))
        each = cross_entropy(self.turn_logits(turned), turns.to(self.device), reduction="none")
        each = each.reshape(-1, len(turned) // self._copies)
        return loss + self.rotation_weight * (each.mean(0) if loss.ndim else each.mean())

    def turn_logits(self, images: Tensor) -> Tensor:
        """Logits of how pictures ``(N, C, S, S)`` are turned, ``(N, 4)``."""
        logits: Tensor = self.rotation_head(self._features(images))
        return logits

    @torch.no_grad()
    def anomaly(self, images: Tensor) -> Tensor:
        """How unlike the training pictures each of ``(N, C, H, W)`` is, ``(N,)``: higher for those from elsewhere.

        The loss of the rotation head over all turns, and for logits ``(N, classes)`` the confidence of the prediction;
        see :func:`~lightning_robust.functional.rotation.rotation_anomaly`.
        """
        with in_evaluation_mode(self):
            outputs = getattr(self, self.output_method)(images)
            logits = outputs if isinstance(outputs, Tensor) and outputs.ndim == 2 else None
            return rotation_anomaly(self._turnable(images), self.turn_logits, logits)

    @override
    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score the batch, if it is of one of the two loaders."""
        super().on_validation_batch_end(outputs, batch, batch_idx, dataloader_idx)
        if self._scores() and dataloader_idx in (0, self.rotation_ood_loader):
            scores = self.anomaly(get_item(batch, self.input_key))
            self.rotation_ood.update(scores, dataloader_idx == self.rotation_ood_loader)

    @override
    def on_validation_epoch_end(self) -> None:
        """Log how well the scores tell the loaders apart."""
        super().on_validation_epoch_end()
        if self._scores():
            self.log("rotation/ood_auroc", self.rotation_ood)

    def _scores(self) -> bool:
        return self.rotation_ood_loader is not None and self.rotation_weight > 0

    @property
    def _copies(self) -> int:
        return TURNS if self.rotation_turns == "all" else 1

    @override
    def _is_on(self) -> bool:
        return self.rotation_weight > 0 or super()._is_on()

    @override
    def _prepare(self, step: HostStep) -> None:
        super()._prepare(step)
        if self.rotation_weight > 0 and step.inputs.ndim == 4 and step.inputs.shape[2] == step.inputs.shape[3]:
            step.around.append(self._noting_features(step))

    @override
    def _terms(self, step: HostStep | None, batch: Any) -> list[Term]:
        terms = super()._terms(step, batch)
        if self.rotation_weight == 0 or step is None:
            return terms
        upright = step.notes.get("rotation")
        turned, turns = self._turned(step.inputs)
        if upright is None:
            features = self._features(turned)
        else:
            # what is not turned has been passed through; rows are told apart on the CPU, so that no device waits
            still, moved = (rows.flatten() for rows in ((turns == 0).nonzero(), turns.nonzero()))
            turns = torch.cat([turns[still], turns[moved]])
            features = upright[still.to(upright.device) % len(upright)]
            if len(moved) > 0:
                features = torch.cat([features, self._features(turned[moved.to(turned.device)])])
        turns, logits = turns.to(self.device), self.rotation_head(features)
        self._note({"rotation/acc": (logits.argmax(1) == turns).float().mean()})
        return [*terms, Term("rotation/loss", cross_entropy(logits, turns), self.rotation_weight)]

    def _turned(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Turned pictures, and their turns on the CPU; the same ones again within a step."""
        images = self._turnable(images)
        if self.rotation_turns == "all":
            return rotate_quadrants(images)[0], torch.arange(TURNS).repeat_interleave(len(images))
        turns = torch.randint(TURNS, (len(images),), generator=self._generator(2, torch.device("cpu")))
        return rotate_each(images, turns.to(images.device)), turns

    def _turnable(self, images: Tensor) -> Tensor:
        return square(images, self.rotation_fit)

    def _features(self, images: Tensor) -> Tensor:
        """``(N, features)`` of pictures."""
        if self.rotation_features is None:
            own = getattr(self, "features", None)
            if own is None:
                raise MisconfigurationException(
                    f"Expected a method `features(inputs)` on {type(self).__name__}, or `rotation_features` with the "
                    f"path of a module, but got neither. Modules are {self._near('')}."
                )
            found = own(images)
        else:
            found = self._output_of(self.rotation_features, images)
        return self._pooled(found)

    def _pooled(self, features: Any) -> Tensor:
        if isinstance(features, Tensor) and features.ndim in (2, 4):
            return features if features.ndim == 2 else features.mean((2, 3))
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(
            f"Expected features (N, F) or (N, F, H, W) for rotation self-supervision, but got {shape}. Name another "
            "module in `rotation_features`, or define `features(inputs)`."
        )

    def _output_of(self, path: str, images: Tensor) -> Any:
        """The output of a module in a forward pass that ends there."""
        module = self._named(path)

        def stop(_: nn.Module, args: Any, output: Any) -> None:
            raise _Reached(output)

        handle = module.register_forward_hook(stop)
        try:
            self(images)
        except _Reached as reached:
            return reached.output
        finally:
            handle.remove()
        raise MisconfigurationException(
            f"Expected the forward pass to go through rotation_features={path!r}, but it does not."
        )

    def _named(self, path: str) -> nn.Module:
        try:
            return self.get_submodule(path)
        except AttributeError as error:
            raise MisconfigurationException(
                f"Expected a module at rotation_features={path!r}, but there is none. Near are {self._near(path)}."
            ) from error

    def _near(self, path: str) -> list[str]:
        names = [name for name, _ in self.named_modules() if name]
        return nearest(path, names, 5) or names[:10]

    @contextmanager
    def _noting_features(self, step: HostStep) -> Iterator[None]:
        """Keep the features that the host computes of its own inputs, which are those of the turn by 0 degrees."""
        count = len(step.inputs)

        def keep(features: Any) -> None:
            step.notes.setdefault("rotation", self._pooled(features)[:count])

        if self.rotation_features is not None:
            handle = self._named(self.rotation_features).register_forward_hook(lambda _, args, output: keep(output))
            try:
                yield
            finally:
                handle.remove()
            return
        real = getattr(self, "features", None)

        def features(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            found = real(inputs, *args, **kwargs) if real is not None else None
            keep(found)
            return found

        with replaced(self, "features", features):
            yield

    def _sample(self) -> Tensor:
        """A black picture of the size that the module takes."""
        example = self.example_input_array
        if not isinstance(example, Tensor):
            example = get_item(self._labelled(first_training_batch(self.trainer, self)), self.input_key)
        return torch.zeros(2, *example.shape[1:], device=self.device).to(self.dtype)

    def _make_head(self, size: int) -> None:
        self.rotation_head = nn.Linear(size, TURNS, device=self.device, dtype=self.dtype)


class _Reached(Exception):  # noqa: N818 - it tells of no error
    """The forward pass has come to the module whose output is wanted."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output
