"""What the mixins share: one training step that adds a list of terms to the host's own loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from typing_extensions import override

from lightning_robust.callbacks.adversarial import AdversarialCallback
from lightning_robust.callbacks.adversarial.trades import PairedAscent
from lightning_robust.functional.shards import is_distributed
from lightning_robust.harness.batches import count_samples
from lightning_robust.harness.closing import warn
from lightning_robust.harness.compat import batches_before, is_attached, is_compiled_as_lightning_module
from lightning_robust.harness.memory import require_reversible
from lightning_robust.harness.steps import call_step, loss_in
from lightning_robust.harness.trainers import find_callbacks, is_sharded, refuse_sharded
from lightning_robust.mixins.epoch_means import EpochMeans
from lightning_robust.mixins.host_step import HostStep

_LARGE = 1_000_003


@dataclass(frozen=True)
class WeightedLoss:
    """A loss that is added to the host's, logged under its name.

    Args:
        name: In the log.
        loss: A scalar.
        weight: What it is multiplied by.
        replaces: The share of the host's own loss that it takes the place of.
    """

    name: str
    loss: Tensor
    weight: float
    replaces: float = 0.0


def no_preparation(step: HostStep) -> None:
    """Of terms that need nothing from before the host's own step."""


@dataclass(frozen=True)
class Term:
    """What a mixin adds to the host's loss.

    Args:
        is_on: Whether its weight is above 0.
        losses: Gives the losses of a step, and takes what ``prepare`` returned before the host's own step.
        prepare: Sees the step before the host's own loss is computed.
        needs_labels: Whether it is left out of batches without any label.
    """

    is_on: Callable[[], bool]
    losses: Callable[[HostStep, Any], list[WeightedLoss]]
    prepare: Callable[[HostStep], Any] = no_preparation
    needs_labels: bool = True


class ObjectiveMixin(pl.LightningModule):
    """Base of the mixins: put them before a LightningModule in the bases, in any order.

    .. code-block:: python

        class Robust(RegMixupMixin, RotationSSLMixin, UATMixin, MyModule): ...

    The host's ``training_step`` is not edited; its loss gets terms, whose means over an epoch are logged. In evaluation
    mode, in which AdversarialCallback attacks, the training step is the host's own.

    Args:
        input_key: Where the inputs are in a batch: position, name or path; None infers it from the signature of
            ``forward`` (of ``logits`` where there is such a method).
        target_key: Where the targets are; None is behind the inputs of a sequence, or a usual name as ``"label"``.
        **kwargs: For the next class.

    Raises:
        TypeError: At the creation of a class in which the mixin would never be reached.
        MisconfigurationException: For a module compiled as a whole, manual optimisation, sharded strategies, and
            adversarial training by trades and mart, whose loss is not the module's.
    """

    def __init__(
        self, *, input_key: int | str | None = None, target_key: int | str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.input_key, self.target_key = input_key, target_key
        self._terms: list[Term] = []
        """The objective beside the host's loss, one term for each mixin, in the reverse order of the bases."""
        self._seed: int | None = None
        self._objective_samples = 1
        self._means = EpochMeans()
        self._warned: set[str] = set()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse an order of bases that would leave the mixin without effect."""
        super().__init_subclass__(**kwargs)
        place = cls.__mro__.index(ObjectiveMixin)
        before, after = _with_training_step(cls.__mro__[:place]), _with_training_step(cls.__mro__[place + 1 :])
        if all(issubclass(each, ObjectiveMixin) for each in before) and (after or not before):
            return
        raise TypeError(
            f"Expected the mixins before the LightningModule whose `training_step` they add to, as "
            f"class {cls.__name__}({', '.join(_mixins_of(cls))}, Host), but {before[0].__name__}.training_step comes "
            "first and hides them. Give the host a class of its own and put it last in the bases."
        )

    @property
    def output_method(self) -> str:
        """The method that gives what the host's loss is computed from: ``logits`` if there is one, else ``forward``."""
        return "logits" if callable(getattr(type(self), "logits", None)) else "forward"

    @override
    def setup(self, stage: str) -> None:
        """Refuse what cannot work."""
        super().setup(stage)
        if stage != "fit" or not self._is_on():
            return
        names = " and ".join(_mixins_of(type(self)))
        refuse_sharded(self.trainer, names, by_dtensors=True)
        self._seed, self._means, self._warned = None, EpochMeans(), set()
        if not self.automatic_optimization:
            raise MisconfigurationException(
                f"Expected automatic optimisation with {names}, since the host's `training_step` has to return its "
                "loss for terms to be added. Set the weights of the mixins to 0 or return the loss."
            )
        if is_compiled_as_lightning_module(self):
            raise MisconfigurationException(
                f"Expected {type(self).__name__} not to be compiled as a whole, since {names} exchange methods in its "
                "training step, which a graph cannot hold. Compile the network in it: `module.net.compile()`, or "
                "`self.net = torch.compile(net)`."
            )
        attacks = [callback.attack for callback in find_callbacks(self.trainer, AdversarialCallback)]
        if any(isinstance(attack, PairedAscent) for attack in attacks):
            raise MisconfigurationException(
                f"Expected another method of adversarial training with {names}: trades and mart have a loss of their "
                "own, without the terms of the mixins. Use method='pgd' or 'fgsm_rs'."
            )

    @override
    def on_fit_start(self) -> None:
        """Take the seed of the run."""
        super().on_fit_start()
        if self._is_on():
            require_reversible(self)
            self._require_all_sharded()
        if self._seed is None:
            self._seed = self.trainer.strategy.broadcast(torch.initial_seed() % 2**62, 0)

    def _require_all_sharded(self) -> None:
        """Refuse parameters, such as those of a mixin's head, that FSDP2 leaves each rank to train by itself.

        Raises:
            MisconfigurationException: Naming them.
        """
        trained = {name: tensor for name, tensor in self.named_parameters() if tensor.requires_grad}
        loose = [name for name, tensor in trained.items() if not is_distributed(tensor)]
        if is_sharded(self.trainer) and loose:
            raise MisconfigurationException(
                f"Expected every parameter that is trained to be sharded, but {', '.join(loose)} are not, and FSDP2 "
                "would leave each rank with its own. Give their modules to `fully_shard` in `configure_model` too."
            )

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the seed."""
        super().on_save_checkpoint(checkpoint)
        if self._is_on():
            checkpoint["objective_seed"] = self._seed

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the seed."""
        super().on_load_checkpoint(checkpoint)
        self._seed = checkpoint.get("objective_seed", self._seed)

    @override
    def on_train_epoch_end(self) -> None:
        """Log the means of the epoch."""
        super().on_train_epoch_end()
        self._means.log(self)

    @override
    def training_step(self, batch: Any, batch_idx: int = 0) -> Any:
        """The host's, with terms added to its loss."""
        terms = [term for term in self._terms if term.is_on()]
        if not terms:
            return self._host(batch, batch_idx)
        self._objective_samples = count_samples(batch)
        labelled = self._labelled(batch)
        if not self.training:
            return self._host(labelled, batch_idx)
        if labelled is None:
            terms = [term for term in terms if not term.needs_labels]
        return self._run(HostStep(self, self._host, labelled, batch, batch_idx), terms)

    def _run(self, step: HostStep, terms: list[Term]) -> Any:
        """The host's step, and the terms behind it; a batch that the host leaves out has no loss at all."""
        states = [term.prepare(step) for term in terms]
        output = step.run()
        if output is None and step.batch is not None:
            return None
        losses = [loss for term, state in zip(terms, states, strict=True) for loss in term.losses(step, state)]
        return self._add(output, losses)

    def _host(self, batch: Any, batch_idx: int) -> Any:
        """The host's training step; None for no batch."""
        return None if batch is None else call_step(super().training_step, batch, batch_idx)

    def _add(self, output: Any, losses: list[WeightedLoss]) -> Any:
        """What the host returned, with the losses added to its own."""
        if not losses:
            return output
        self._log_means({each.name: each.loss.detach() for each in losses})
        total: Any = 0.0 if output is None else loss_in(output)
        replaced = sum(each.replaces for each in losses)
        if replaced:
            total = (1 - replaced) * total
        for each in losses:
            total = total + each.weight * each.loss
        return {**output, "loss": total} if isinstance(output, dict) else total

    def _log_means(self, values: dict[str, Tensor]) -> None:
        """Log means over the epoch and all ranks, once an epoch."""
        self._means.add(values, self._objective_samples)

    def _is_on(self) -> bool:
        """Whether any term has a weight."""
        return any(term.is_on() for term in self._terms)

    def _labelled(self, batch: Any) -> Any:
        """The part of a batch that the host's loss is for; None if there is none."""
        return batch

    def _generator(self, stream: int, device: torch.device | None = None) -> torch.Generator:
        """Random numbers of this step and rank: the same ones after a resume, others for each stream."""
        step, rank = (batches_before(self.trainer) + 1, self.global_rank) if is_attached(self) else (0, 0)
        seed = (self._seed or 0) + _LARGE * (step + _LARGE * (rank + _LARGE * stream))
        return torch.Generator(device or self.device).manual_seed(seed % 2**62)

    def _warn_unless_shared(self, step: HostStep, inputs: Tensor) -> None:
        """Say that inputs did not join the host's pass, if they did not."""
        if not step.has_passed(inputs):
            self._warn_once(
                f"the training step does not give the inputs of its batch to `{self.output_method}`, so each loss "
                "takes a pass of its own. What is done to inputs first is better done in `on_after_batch_transfer`."
            )

    def _warn_once(self, message: str, category: type[Warning] = UserWarning) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warn(f"{type(self).__name__}: {message}", category=category)


def _with_training_step(classes: Iterable[type]) -> list[type]:
    """Classes that define a step of their own."""
    return [each for each in classes if "training_step" in vars(each) and each is not pl.LightningModule]


def _mixins_of(cls: type) -> list[str]:
    return [each.__name__ for each in cls.__mro__ if ObjectiveMixin in each.__bases__]
