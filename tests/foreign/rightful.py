"""Where a refusal or a "was not done" is right, and what is only an outcome of so short a run."""

from dataclasses import dataclass

from lightning.fabric.utilities.exceptions import MisconfigurationException


@dataclass(frozen=True)
class Refusal:
    """A pair of a module and a technique that cannot be.

    Args:
        message: Regular expression of what it says.
        raises: The error at the start; None for a warning.
        measures: Whether its numbers are there all the same, and compared.
    """

    message: str
    raises: type[Exception] | None = None
    measures: bool = False


_DEAD = Refusal("of the gradients are zero", measures=True)
"""One of seven samples switches all rectifiers of DemoModel off."""
_NOISE = Refusal(r"BatchNorm statistics could not be refreshed, and their averages are used", measures=True)
"""The batches of a GAN hold pictures, which its ``forward`` does not take: nothing can be passed through it."""
_INDICES = Refusal(r"could not measure (single gradient step|FGSM)\. .* for token indices", measures=True)
RIGHTFUL: dict[tuple[str, str], Refusal] = {
    **{("demo", technique): _DEAD for technique in ("fgsm", "fgsm_rs", "pgd", "robust_validation")},
    **{("gan", technique): _NOISE for technique in ("swa", "ema", "swalp", "soup", "wise_ft")},
    ("gan", "initialise"): Refusal("Gan.forward to take the first training batch", MisconfigurationException),
    ("gan", "lazy"): Refusal(r"could not measure"),
    ("gan", "datapath"): Refusal(r"not all was measured"),
    ("gan", "parity"): Refusal(r"the parity pass failed|nothing was measured"),
    ("bert", "lazy"): _INDICES,
    ("words", "lazy"): _INDICES,
    ("lora", "soup"): Refusal(r"both factors of an adapter, .* are trained", ValueError),
    ("bert", "parity"): Refusal(r"to take its inputs by position, but it takes .* by any name"),
    ("graph_classifier", "parity"): Refusal(r"one row for each sample"),
    ("node_regression", "parity"): Refusal(r"one row for each sample"),
    ("tft", "parity"): Refusal(r"emulated-fp16 has no numbers\. .* The graph fixes the batch size"),
    ("words", "parity"): Refusal(r"torch-bf16 has no numbers\. .* to have the same dtype|emulated-fp16 has no numbers"),
}
OUTCOMES: dict[str, list[str]] = {
    "soup": [r"the soup is its best ingredient alone"],
    "wise_ft": [r"the fine-tuned weights are the best of the curve", r"look like a fresh initialisation"],
    "fgsm": [r"a single step reaches a higher loss"],
    "fgsm_rs": [r"a single step reaches a higher loss"],
    "pgd": [r"a single step reaches a higher loss"],
    "lazy": [r"^Training was lazy"],
}
"""Warnings that tell what came out, not that something was not done."""


def refusal_of(guest, technique):
    return RIGHTFUL.get((guest.name, technique.key))


def outcomes_of(technique):
    return OUTCOMES.get(technique.key, [])
