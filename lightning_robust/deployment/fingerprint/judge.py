"""A fingerprint held against a budget; without one, nothing may differ."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lightning_robust.deployment.budget_keys import FINGERPRINT_NUMBERS
from lightning_robust.deployment.fingerprint.words import Fingerprint
from lightning_robust.gate.check import Check, Judgement

NOTHING = "the default, that nothing differs"
"""The budget where nobody set one."""


def judge_fingerprint(found: Fingerprint, limits: Mapping[str, float], budget: str = "") -> Judgement:
    """Say whether pictures differ by more than is allowed.

    Args:
        found: From :func:`~.search.fingerprint`.
        limits: ``"distance"`` and ``"unexplained"`` -> levels (root mean square of 255); ``"causes"`` -> how many
            may be found; the name of a cause -> 1 if it may be found, 0 if not. Without the first three, none may be.
            Other units, which distances in levels do not show, may be found only where a limit names them or
            ``"causes"``.
        budget: Where the limits are from.

    Example:
        >>> print(judge_fingerprint(Fingerprint((), 0.01, 0.01), {}).text())
        verdict: within the default, that nothing differs: no difference (0.01 levels)
    """
    limits = dict(limits)
    if not limits.keys() & {*FINGERPRINT_NUMBERS}:
        limits["causes"] = 0.0
        budget = " and ".join(filter(None, [budget, NOTHING]))
    if not found.conclusive:
        lost = Check("", "distance", math.nan, limits.get("distance"), note=found.note, demanded=True)
        return Judgement("fingerprint", (lost,), budget)
    checks = [_check_of_number(found, name, limit) for name, limit in limits.items()]
    if "causes" not in limits:
        checks += [_check_of_number(found, name, 0.0) for name in _names_of_units(found) if name not in limits]
    checks += [] if "distance" in limits else [Check("", "distance", found.distance, unit="levels")]
    return Judgement("fingerprint", tuple(checks), budget)


def _names_of_units(found: Fingerprint) -> list[str]:
    """The causes that say that the network is fed values of another type or normalisation."""
    return [cause.name for cause in found.causes if cause.name == "input_type" or "trained" in cause.parameters]


def _check_of_number(found: Fingerprint, name: str, limit: float) -> Check:
    if name in ("distance", "unexplained"):
        place = "; ".join(cause.sentence for cause in found.causes)
        return Check("", name, getattr(found, name), limit, unit="levels", place=place)
    if name == "causes":
        return _check_of_causes(found, limit)
    causes = [cause for cause in found.causes if cause.name == name]
    sentence = str(causes[0]) if causes else f"{name} was not found"
    return Check("", name, float(len(causes)), limit, sentence=sentence)


def _check_of_causes(found: Fingerprint, limit: float) -> Check:
    """How many causes there are; a difference that none explains is one."""
    sentence = "; ".join(map(str, found.causes)) or f"no difference ({found.distance:.2f} levels)"
    if found.differs and not found.causes:
        sentence = f"they differ by what no known cause explains ({found.unexplained:.2f} levels)"
    if found.mostly_unexplained:
        left = f"{found.unexplained:.2f} of {found.distance:.2f} levels are left"
        sentence = f"most of it is not explained ({left})" + (f"; {sentence}" if found.causes else "")
    return Check("", "causes", float(max(len(found.causes), found.differs)), limit, sentence=sentence)
