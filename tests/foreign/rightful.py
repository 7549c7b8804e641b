"""Where a refusal or a "was not done" is right, what is only an outcome of so short a run, and what is still to do."""

from dataclasses import dataclass


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
RIGHTFUL: dict[tuple[str, str], Refusal] = {
    **{("demo", technique): _DEAD for technique in ("fgsm", "fgsm_rs", "pgd", "robust_validation")},
    ("lora", "soup"): Refusal(r"both factors of an adapter, .* are trained", ValueError),
}
OUTCOMES: dict[str, list[str]] = {
    "soup": [r"the soup is its best ingredient alone"],
    "wise_ft": [r"the fine-tuned weights are the best of the curve", r"are better than those half way"],
    "fgsm_rs": [r"a single step reaches a higher loss"],
    "pgd": [r"a single step reaches a higher loss"],
    "lazy": [r"^Training was lazy"],
}
"""Warnings that tell what came out, not that something was not done."""


def refusal_of(guest, technique):
    return RIGHTFUL.get((guest.name, technique.key))


def outcomes_of(technique):
    return OUTCOMES.get(technique.key, [])
