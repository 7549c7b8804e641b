"""The metric of out-of-distribution detection that a rotation head is judged by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.utilities import dim_zero_cat
from typing_extensions import override


class OutOfDistributionAUROC(Metric):
    """How well a score tells pictures from elsewhere from those of the training distribution: area under the ROC.

    1 if every picture from elsewhere scores higher than every other, 0.5 for a coin.

    Example:
        >>> auroc = OutOfDistributionAUROC()
        >>> auroc.update(torch.tensor([0.1, 0.4]), False)
        >>> auroc.update(torch.tensor([0.3, 0.9]), True)
        >>> auroc.compute()
        tensor(0.7500)
    """

    higher_is_better = True
    full_state_update = False
    scores: list[Tensor]
    elsewhere: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("elsewhere", [], dist_reduce_fx="cat")

    @override
    def update(self, scores: Tensor, elsewhere: bool) -> None:
        """Take in the scores ``(N,)`` of pictures that are all from elsewhere, or all not."""
        self.scores.append(scores.detach())
        self.elsewhere.append(torch.full_like(scores, int(elsewhere), dtype=torch.long))

    @override
    def compute(self) -> Tensor:
        """The area; NaN as long as one kind is missing."""
        kinds = dim_zero_cat(self.elsewhere) if self.elsewhere else torch.zeros(0, dtype=torch.long)
        if kinds.sum() in (0, len(kinds)):
            return torch.tensor(torch.nan, device=self.device)
        # ranks: the functional would send scores outside [0, 1] through a sigmoid, where large ones become equal
        ranks = torch.unique(dim_zero_cat(self.scores), return_inverse=True)[1]
        return binary_auroc(ranks / len(ranks), kinds)
