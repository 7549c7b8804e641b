"""The loss of MART: a classifier's perturbed predictions, and their stability where clean ones are unsure."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import kl_div, nll_loss

Logits = Float[Tensor, "batch classes"]
Losses = Float[Tensor, " batch"]


def mart_losses(clean: Logits, perturbed: Logits, classes: Int[Tensor, " batch"]) -> tuple[Losses, Losses]:
    r"""The two terms of misclassification-aware adversarial training, for each sample.

    .. math::
        \mathrm{BCE} &= -\log p_y(x') - \log\left(1 - \max_{k \ne y} p_k(x')\right) \\
        \mathrm{KL} &= \mathrm{KL}(p(x) \,\|\, p(x')) \, (1 - p_y(x))

    `Wang et al. 2020 <https://openreview.net/forum?id=rklOg6EFwS>`_; they train on :math:`\mathrm{BCE} + \lambda\,
    \mathrm{KL}`. The authors' code adds 1e-4 and 1e-12 within the logarithms; here they are taken of sums of
    exponentials, which stay finite. The gradient flows into both predictions and into the weight.

    Args:
        clean: Logits of the clean inputs.
        perturbed: Logits of the perturbed ones.
        classes: The right ones.

    Returns:
        The boosted cross entropy, and the weighted divergence.

    Raises:
        ValueError: For other shapes, or fewer than two classes.

    Example:
        >>> even, classes = torch.zeros(1, 2), torch.tensor([0])
        >>> mart_losses(even, even, classes)  # 2 log 2, and no divergence
        (tensor([1.3863]), tensor([0.]))
    """
    if clean.shape != perturbed.shape or clean.ndim != 2 or clean.shape[1] < 2:
        raise ValueError(
            "Expected logits (batch, classes) of one shape and of at least two classes for clean and perturbed inputs, "
            f"but got {tuple(clean.shape)} and {tuple(perturbed.shape)}."
        )
    before, after = clean.log_softmax(1), perturbed.log_softmax(1)
    right = classes[:, None]
    likeliest = after.scatter(1, right, -torch.inf).argmax(1, keepdim=True)
    others = after.scatter(1, likeliest, -torch.inf).logsumexp(1)
    boosted = nll_loss(after, classes, reduction="none") - others
    divergence = kl_div(after, before, reduction="none", log_target=True).sum(1)
    return boosted, divergence * (1 - before.gather(1, right).exp().flatten())
