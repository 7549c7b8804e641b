"""What the mixins share: one training step that adds terms to the host's own loss, whatever the order of the bases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_robust.callbacks.adversarial.callback import AdversarialCallback
from lightning_robust.harness.compat import batches_before, is_attached
from lightning_robust.harness.quiet import muted
from lightning_robust.harness.replacement import replaced
from lightning_robust.harness.steps import call_step
from lightning_robust.harness.trainers import find_callbacks, refuse_sharded
from lightning_robust.structures import Key, get_item, loss_in, map_tensors, replace_items

_LARGE = 1_000_003


@dataclass
class HostStep:
    """One training step of the host, and what mixins see of it.

    The host's ``training_step`` is called with batches; the outputs that its loss is computed from are those of its
    method ``logits`` if it has one, else of ``forward``. They are noted where that method is given the very inputs of
    the batch, and given back to a later loss of the same inputs, so that several losses cost one pass. A host that
    passes its inputs twice gets two passes, and each loss both.
    """

    module: ObjectiveMixin
    host: Callable[..., Any]
    batch: Any
    batch_idx: int
    extra: Tensor | None = None
    """Inputs that join the host's own in its forward pass."""
    around: list[AbstractContextManager[Any]] = field(default_factory=list)
    """Entered around the host's own step."""
    notes: dict[str, Any] = field(default_factory=dict)
    """What mixins keep from before the host's step until after it."""
    known: list[tuple[Tensor, Any]] = field(default_factory=list)
    """Inputs and the outputs for them, in the order of the passes."""

    @property
    def inputs(self) -> Tensor:
        """What the host takes."""
        inputs = get_item(self.batch, self.module.input_key)
        if not isinstance(inputs, Tensor):
            raise TypeError(
                f"Expected a tensor at input_key={self.module.input_key!r}, but got {type(inputs).__name__}. Set "
                "`input_key` to the pictures of a batch."
            )
        return inputs

    @property
    def targets(self) -> Any:
        """What the host's loss compares with."""
        return get_item(self.batch, self.module.target_key)

    def run(self) -> Any:
        """The host's training step as it would run alone."""
        with ExitStack() as stack:
            for context in [self._noting(), *self.around]:
                stack.enter_context(context)
            return self.host(self.batch, self.batch_idx)

    def loss_of(self, inputs: Tensor, targets: Any) -> Tensor:
        """The host's loss for other inputs and targets; nothing is logged. Equal inputs are passed through once."""
        keys = self.module.input_key, self.module.target_key
        batch = replace_items(self.batch, dict(zip(keys, (inputs, targets), strict=True)))
        with self._noting(), muted(self.module):
            loss: Tensor = loss_in(self.host(batch, self.batch_idx))
        return loss

    @contextmanager
    def _noting(self) -> Iterator[None]:
        name = self.module.output_method
        real = getattr(self.module, name)
        own = self.inputs

        told: list[int] = []

        def method(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if args or kwargs or not isinstance(inputs, Tensor):
                return real(inputs, *args, **kwargs)
            for place, (seen, outputs) in enumerate(self.known):
                if inputs is seen and place not in told:
                    told.append(place)
                    return outputs
            if inputs is own and self.extra is not None and not self.known:
                both, count = real(torch.cat([own, self.extra])), len(own)
                self.known.append((own, map_tensors(lambda t: t[:count], both)))
                self.known.append((self.extra, map_tensors(lambda t: t[count:], both)))
                told.append(0)
                return self.known[0][1]
            told.append(len(self.known))
            self.known.append((inputs, real(inputs)))
            return self.known[-1][1]

        with replaced(self.module, name, method):
            yield


@dataclass(frozen=True)
class Term:
    """One summand of the objective."""

    name: str
    loss: Tensor
    weight: float


class ObjectiveMixin(pl.LightningModule):
    """Base of the mixins: put them before a LightningModule in the bases, in any order.

    .. code-block:: python

        class Robust(RegMixupMixin, RotationSSLMixin, UATMixin, MyModule): ...

    The host's ``training_step`` is not edited; its loss gets terms, whose means over an epoch are logged. In evaluation
    mode, in which AdversarialCallback attacks, the training step is the host's own.

    Args:
        input_key: Where the inputs are in a batch: position, name or path.
        target_key: Where the targets are.
        **kwargs: For the next class.

    Raises:
        TypeError: At the creation of a class in which the mixin would never be reached.
        MisconfigurationException: For manual optimisation, sharded strategies, and adversarial training by trades,
            whose loss is not the module's.
    """

    def __init__(self, *, input_key: int | str = 0, target_key: int | str = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.input_key: Key = input_key
        self.target_key: Key = target_key
        self._seed: int | None = None
        self._told: set[str] = set()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse an order of bases that would leave the mixin without effect."""
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        place = order.index(ObjectiveMixin)
        before = [each for each in order[:place] if "training_step" in vars(each)]
        hosts = [c for c in order[place + 1 :] if "training_step" in vars(c) and c is not pl.LightningModule]
        if any(not issubclass(each, ObjectiveMixin) for each in before) or (before and not hosts):
            mixins = [c.__name__ for c in order[:place] if ObjectiveMixin in c.__bases__]
            raise TypeError(
                f"Expected the mixins before the LightningModule whose `training_step` they add to, as "
                f"class {cls.__name__}({', '.join(mixins)}, Host), but {before[0].__name__}.training_step comes first "
                "and hides them. Give the host a class of its own and put it last in the bases."
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
        names = " and ".join(c.__name__ for c in type(self).__mro__ if ObjectiveMixin in c.__bases__)
        refuse_sharded(self.trainer, names)
        self._seed = None
        if not self.automatic_optimization:
            raise MisconfigurationException(
                f"Expected automatic optimisation with {names}, since the host's `training_step` has to return its "
                "loss for terms to be added. Set the weights of the mixins to 0 or return the loss."
            )
        if any(callback.method == "trades" for callback in find_callbacks(self.trainer, AdversarialCallback)):
            raise MisconfigurationException(
                f"Expected another method of adversarial training with {names}: trades has a loss of its own, without "
                "the terms of the mixins. Use method='pgd' or 'fgsm_rs'."
            )

    @override
    def on_fit_start(self) -> None:
        """Take the seed of the run."""
        super().on_fit_start()
        if self._seed is None:
            self._seed = torch.initial_seed() % 2**62

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
    def training_step(self, batch: Any, batch_idx: int = 0) -> Any:
        """The host's, with terms added to its loss."""
        if not self._is_on():
            return self._host(batch, batch_idx)
        labelled = self._labelled(batch)
        if not self.training:
            return self._host(labelled, batch_idx)
        if labelled is None:
            return self._sum(None, self._terms(None, batch), self._host_weight())
        step = HostStep(self, self._host, labelled, batch_idx)
        self._prepare(step)
        output = step.run()
        return output if output is None else self._sum(output, self._terms(step, batch), self._host_weight())

    def _host(self, batch: Any, batch_idx: int) -> Any:
        """The host's training step; None for no batch."""
        return None if batch is None else call_step(super().training_step, batch, batch_idx)

    def _sum(self, output: Any, terms: list[Term], weight: float) -> Any:
        if not terms:
            return output
        self._note({term.name: term.loss.detach() for term in terms})
        total: Any = 0.0 if output is None else weight * loss_in(output)
        for term in terms:
            total = total + term.weight * term.loss
        return {**output, "loss": total} if isinstance(output, dict) else total

    def _note(self, values: dict[str, Tensor]) -> None:
        """Log means over the epoch and all ranks, once an epoch."""
        self.log_dict(values, on_step=False, on_epoch=True, sync_dist=True)

    def _is_on(self) -> bool:
        """Whether any term has a weight. Mixins add their own."""
        return False

    def _labelled(self, batch: Any) -> Any:
        """The part of a batch that the host's loss is for; None if there is none."""
        return batch

    def _prepare(self, step: HostStep) -> None:
        """Before the host's step."""

    def _terms(self, step: HostStep | None, batch: Any) -> list[Term]:
        """What is added; ``step`` is None where nothing in the batch has a label."""
        return []

    def _host_weight(self) -> float:
        """Of the host's own loss."""
        return 1.0

    def _generator(self, stream: int, device: torch.device | None = None) -> torch.Generator:
        """Random numbers of this step and rank: the same ones after a resume, others for each stream."""
        step, rank = (batches_before(self.trainer) + 1, self.global_rank) if is_attached(self) else (0, 0)
        seed = (self._seed or 0) + _LARGE * (step + _LARGE * (rank + _LARGE * stream))
        return torch.Generator(device or self.device).manual_seed(seed % 2**62)

    def _tell(self, message: str, category: type[Warning] = UserWarning) -> None:
        """Warn once."""
        if message not in self._told:
            self._told.add(message)
            rank_zero_warn(f"{type(self).__name__}: {message}", category=category)
