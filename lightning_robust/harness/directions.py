"""Whether larger or smaller is better, as far as the words of a metric's name say."""

from __future__ import annotations

import re
from typing import Literal

Mode = Literal["max", "min"]

_LOWER_IS_BETTER = re.compile(
    r"loss(es)?|err|mce|errors?|mistakes|px|abs|abs_rel|rel_l2|max_abs|mae|r?mse|mape|nll|b?ce|kl|[wce]er|fid|lpips|perplexity|"
    r"ppl|brier|ece|ade|fde|epe|hd95|hausdorff|bend|swing|flips?|lost|miss(ed)?|nonfinite|divergence|distance|latency|"
    r"sec|seconds?|ms|time|memory|bytes|p\d\d"
)
_HIGHER_IS_BETTER = re.compile(
    r"acc|accuracy|f1|m?iou|auc|auroc|auprc|found|precision|recall|specificity|psnr|ssim|success|dice|r2|m?ap|mrr|ndcg|"
    r"bleu|rouge|kappa|mcc|jaccard|hits?|hota|mota"
)
_NEGATIONS = {"no", "not", "non", "without", "less"}
# before such a word a name says the opposite, or another thing: loss_reduction, time_to_collision, loss_scale
_TURNS = re.compile(
    r"to|free|reduction|improvement|gain|drop|decrease|increase|gap|margin|saved|weight|scale|count|std|var|variance|"
    r"sem|ratio"
)
_NUMBERED = re.compile(r"f1|r2|l2|hd95|p\d\d")


def named_direction(tag: str) -> Mode | None:
    """What the last word that is known says, for it names the thing: a dice_loss is a loss; None if none is.

    Example:
        >>> named_direction("val/acc"), named_direction("val/dice_loss"), named_direction("val/depth")
        ('max', 'min', None)
    """
    words = words_of(tag)
    if _NEGATIONS & {*words}:
        return None
    for end in range(len(words), 0, -1):
        names = words[end - 1], "_".join(words[max(end - 2, 0) : end])
        if any(map(_TURNS.fullmatch, names)):
            return None
        if any(map(_LOWER_IS_BETTER.fullmatch, names)):
            return "min"
        if any(map(_HIGHER_IS_BETTER.fullmatch, names)):
            return "max"
    return None


def words_of(tag: str) -> list[str]:
    """The words of a tag in lower case, without the number behind one: ``acc5`` is an ``acc``.

    Example:
        >>> words_of("val/top5Acc_lossless@0.1"), words_of("rel_l2/F1"), words_of("mIoU/MSELoss")
        (['val', 'top', 'acc', 'lossless'], ['rel', 'l2', 'f1'], ['miou', 'mse', 'loss'])
    """
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", tag.replace("IoU", "iou"))
    words = re.findall(r"[a-z]+\d*", parted.lower())
    return [word if _NUMBERED.fullmatch(word) else word.rstrip("0123456789") for word in words]
