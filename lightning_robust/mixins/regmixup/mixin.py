"""RegMixupMixin: the clean loss and, beside it, the loss of strong mixtures. How to mix stands in ``functional``."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor
from typing_extensions import override

from lightning_robust.functional.mixing import regmixup_batch
from lightning_robust.mixins.objective import HostStep, ObjectiveMixin, Term


class RegMixupMixin(ObjectiveMixin):
    r"""RegMixup for any LightningModule: mixup as a regulariser of the clean loss instead of in its place.

    .. math:: L(x, y) + \eta \left[\lambda L(\tilde x, y) + (1 - \lambda) L(\tilde x, y_\pi)\right], \qquad
       \tilde x = \lambda x + (1 - \lambda) x_\pi, \quad \lambda \sim \mathrm{Beta}(\alpha, \alpha)

    `Pinto et al. 2022 <https://arxiv.org/abs/2206.14502>`_. Losses are mixed, not targets: whatever the host's
    ``training_step`` computes is used, with soft labels, label smoothing, several labels or a regression target. One
    forward pass gives the outputs that both losses of a mixture are taken of. The share and the permutation are drawn
    for each batch and rank from a stream that depends on the seed and the step alone.

    Logged: ``regmixup/loss``; the host's own ``train/loss`` stays that of the clean inputs.

    Cost: twice a training step. A batch of one is mixed with itself.

    Args:
        regmixup_weight: :math:`\eta`; 0 is off.
        regmixup_alpha: :math:`\alpha`; with 20 the shares lie around one half.
        regmixup_scaling: ``"paper"`` is the sum above; ``"official"`` divides it by two, as the mean over clean and
            mixed samples in the authors' code does, which halves the learning rate of plain SGD.
        regmixup_forward: ``"joint"`` passes clean and mixed inputs together, so that BatchNorm sees both;
            ``"separate"`` one after the other.
        regmixup_derange: No sample is mixed with itself.
        **kwargs: For the next class; ``input_key`` and ``target_key`` say where inputs and targets are in a batch.

    Raises:
        ValueError: For a negative weight, an ``alpha`` that is not positive, or an unknown setting.
        TypeError: For targets that cannot be exchanged between samples.
    """

    def __init__(
        self,
        *,
        regmixup_weight: float = 0.0,
        regmixup_alpha: float = 20.0,
        regmixup_scaling: Literal["paper", "official"] = "paper",
        regmixup_forward: Literal["joint", "separate"] = "joint",
        regmixup_derange: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not (math.isfinite(regmixup_weight) and regmixup_weight >= 0):
            raise ValueError(f"Expected `regmixup_weight` of at least 0, but got {regmixup_weight}.")
        if not (math.isfinite(regmixup_alpha) and regmixup_alpha > 0):
            raise ValueError(f"Expected `regmixup_alpha` to be positive, but got {regmixup_alpha}.")
        if regmixup_scaling not in ("paper", "official") or regmixup_forward not in ("joint", "separate"):
            raise ValueError(
                "Expected `regmixup_scaling` 'paper' or 'official' and `regmixup_forward` 'joint' or 'separate', but "
                f"got {regmixup_scaling!r} and {regmixup_forward!r}."
            )
        self.regmixup_weight, self.regmixup_alpha = regmixup_weight, regmixup_alpha
        self.regmixup_scaling, self.regmixup_forward = regmixup_scaling, regmixup_forward
        self.regmixup_derange = regmixup_derange

    @override
    def _is_on(self) -> bool:
        return self.regmixup_weight > 0 or super()._is_on()

    @override
    def _host_weight(self) -> float:
        return super()._host_weight() * (0.5 if self._halves() else 1.0)

    def _halves(self) -> bool:
        return self.regmixup_weight > 0 and self.regmixup_scaling == "official"

    @override
    def _prepare(self, step: HostStep) -> None:
        super()._prepare(step)
        if self.regmixup_weight == 0:
            return
        inputs, targets = step.inputs, step.targets
        if not isinstance(targets, Tensor) or targets.ndim == 0 or len(targets) != len(inputs):
            held = f"a dict with {list(targets)}" if isinstance(targets, dict) else type(targets).__name__
            held = f"shape {tuple(targets.shape)}" if isinstance(targets, Tensor) else held
            raise TypeError(
                f"Expected one target tensor with a row for each of {len(inputs)} samples at "
                f"target_key={self.target_key!r}, but got {held}. Set `target_key` to the tensor that the loss "
                "compares with, or regmixup_weight=0: targets such as lists of boxes have no mixture."
            )
        mixture = regmixup_batch(
            inputs, targets, self.regmixup_alpha, self._generator(1), derange=self.regmixup_derange
        )
        step.notes["regmixup"] = mixture
        if self.regmixup_forward == "joint":
            step.extra = mixture[0]

    @override
    def _terms(self, step: HostStep | None, batch: Any) -> list[Term]:
        terms = super()._terms(step, batch)
        if self.regmixup_weight == 0 or step is None:
            return terms
        mixed, targets, permuted, share = step.notes["regmixup"]
        if self.regmixup_forward == "joint" and not any(inputs is mixed for inputs, _ in step.known):
            self._tell(
                f"the training step does not give the inputs of its batch to `{self.output_method}`, so each loss "
                "takes a pass of its own. What is done to inputs first is better done in `on_after_batch_transfer`."
            )
        loss = share * step.loss_of(mixed, targets) + (1 - share) * step.loss_of(mixed, permuted)
        return [*terms, Term("regmixup/loss", loss, self.regmixup_weight * (0.5 if self._halves() else 1.0))]
