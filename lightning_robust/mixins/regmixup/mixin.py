"""RegMixupMixin: the clean loss and, beside it, the loss of strong mixtures."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor

from lightning_robust.functional.mixing import regmixup_batch
from lightning_robust.mixins.host_step import HostStep, find_targets
from lightning_robust.mixins.objective import ObjectiveMixin, Term, WeightedLoss

Mixture = tuple[Tensor, Tensor, Tensor, float]


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
        regmixup_forward: ``"joint"`` passes clean and mixed inputs together, so that BatchNorm sees both;
            ``"separate"`` one after the other.
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
        regmixup_forward: Literal["joint", "separate"] = "joint",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not (math.isfinite(regmixup_weight) and regmixup_weight >= 0):
            raise ValueError(f"Expected `regmixup_weight` of at least 0, but got {regmixup_weight}.")
        if not (math.isfinite(regmixup_alpha) and regmixup_alpha > 0):
            raise ValueError(f"Expected `regmixup_alpha` to be positive, but got {regmixup_alpha}.")
        if regmixup_forward not in ("joint", "separate"):
            raise ValueError(f"Expected `regmixup_forward` 'joint' or 'separate', but got {regmixup_forward!r}.")
        self.regmixup_weight, self.regmixup_alpha = regmixup_weight, regmixup_alpha
        self.regmixup_forward = regmixup_forward
        self._terms.append(Term(self._mixes, self._mixture_loss, self._mix))

    def _mixes(self) -> bool:
        return self.regmixup_weight > 0

    def _mix(self, step: HostStep) -> Mixture:
        """The mixed inputs, both targets and the share."""
        inputs, targets = step.inputs, step.targets
        if not isinstance(targets, Tensor) or targets.ndim == 0 or len(targets) != len(inputs):
            key = find_targets(self, step.batch)
            raise TypeError(
                f"Expected one target tensor with a row for each of {len(inputs)} samples at target_key={key!r}, but "
                f"got {_describe_targets(targets)}. Set `target_key` to the tensor that the loss compares with, or "
                "regmixup_weight=0: targets such as lists of boxes have no mixture."
            )
        mixture = regmixup_batch(inputs, targets, self.regmixup_alpha, self._generator(1))
        if self.regmixup_forward == "joint":
            step.extras.append(mixture[0])
        return mixture

    def _mixture_loss(self, step: HostStep, mixture: Mixture) -> list[WeightedLoss]:
        mixed, targets, permuted, share = mixture
        if self.regmixup_forward == "joint":
            self._warn_unless_shared(step, mixed)
        first, second = step.losses_of(mixed, [targets, permuted])
        return [WeightedLoss("regmixup/loss", share * first + (1 - share) * second, self.regmixup_weight)]


def _describe_targets(targets: Any) -> str:
    if isinstance(targets, Tensor):
        return f"shape {tuple(targets.shape)}"
    return f"a dict with {list(targets)}" if isinstance(targets, dict) else type(targets).__name__
