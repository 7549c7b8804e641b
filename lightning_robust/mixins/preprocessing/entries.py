"""Which entries of the catalogue are drawn, and how often each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from lightning_robust.deployment.pixels.catalogue import Perturbation, perturbations
from lightning_robust.deployment.pixels.draws import PARAMETER_OF, Ranges, check_ranges

MEASURED = "measured"


def read_entries(names: str | list[str]) -> tuple[Perturbation, ...]:
    """The entries of a setting; those of ``"measured"`` are the typical ones until a pass has measured others.

    Raises:
        ValueError: For unknown names, or none.
    """
    if names == "none" or not names:
        raise ValueError(
            f"Expected `preprocessing_entries` of at least one entry, but got {names!r}. preprocessing_weight=0 is off."
        )
    return perturbations("typical" if names == MEASURED else names)  # type: ignore[arg-type]


def check_drawn_ranges(ranges: Ranges, names: str | list[str]) -> None:
    """Refuse ranges outside of sense, and those of parameters that no entry draws.

    Raises:
        ValueError: Naming the parameter.
    """
    check_ranges(ranges)
    drawn = {PARAMETER_OF.get(entry.name) for entry in read_entries("all" if names == MEASURED else names)}
    unused = [name for name in ranges if name not in drawn]
    if unused:
        raise ValueError(
            f"Expected `preprocessing_ranges` of parameters that an entry draws, but none of {names!r} draws {unused}."
        )


def find_sensitivity(found: Mapping[str, float] | None) -> dict[str, float]:
    """Entry -> how sensitive the model was to it, of those that can be drawn and have a positive number.

    Example:
        >>> find_sensitivity({"bgr": 2.0, "gamma_09": float("nan"), "my_own": 1.0})
        {'bgr': 2.0}
    """
    known = {entry.name for entry in perturbations("all")}
    return {name: value for name, value in (found or {}).items() if name in known and 0 < value < math.inf}


def choose_entries(
    entries: Sequence[Perturbation], weights: Mapping[str, float], count: int, generator: torch.Generator
) -> list[Perturbation]:
    """Draw entries with replacement, in proportion to weights; uniformly where none has one.

    Example:
        >>> from lightning_robust.deployment.pixels.catalogue import perturbations
        >>> chosen = choose_entries(perturbations(["bgr", "nv12"]), {"bgr": 1.0}, 2, torch.Generator())
        >>> [entry.name for entry in chosen]
        ['bgr', 'bgr']
    """
    known = torch.tensor([weights.get(entry.name, 0.0) for entry in entries], dtype=torch.float64)
    shares = known if bool(known.any()) else torch.ones(len(entries), dtype=torch.float64)
    return [entries[place] for place in torch.multinomial(shares, count, True, generator=generator).tolist()]


def split_entries(
    entries: Sequence[Perturbation], keeps: Callable[[Perturbation], bool]
) -> tuple[list[Perturbation], str]:
    """The entries that are kept, and the names of the others in one line.

    Example:
        >>> from lightning_robust.deployment.pixels.catalogue import perturbations
        >>> kept, left = split_entries(perturbations(["crop", "bgr"]), lambda entry: entry.motion is None)
        >>> [entry.name for entry in kept], left
        (['bgr'], 'crop')
    """
    kept = [entry for entry in entries if keeps(entry)]
    return kept, ", ".join(entry.name for entry in entries if entry not in kept)
