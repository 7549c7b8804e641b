"""Every technique on every guest of a room: the test that the modules' files share."""

import re

import pytest

from .numbers import check_unchanged, check_validated
from .rightful import outcomes_of, refusal_of
from .runner import fit
from .techniques import TECHNIQUES


def pairs(guests):
    """A parameter for each pair that makes sense."""
    rows = [pair(guest, technique) for guest in guests for technique in TECHNIQUES if guest.kind in technique.to]
    return pytest.mark.parametrize(("guest", "technique"), rows)


def pair(guest, technique):
    """A pair with its id."""
    return pytest.param(guest, technique, id=f"{guest}-{technique}")


def check_pair(guest, technique, folder):
    """Nothing crashes, nothing is left undone without right, and the numbers are those found by hand."""
    refusal = refusal_of(guest, technique)
    if refusal is not None and refusal.raises is not None:
        with pytest.raises(refusal.raises, match=refusal.message):
            fit(guest, [technique.make(guest)], folder=folder)
        return
    run = fit(guest, [technique.make(guest)], folder=folder)
    said = [message for message in run.warnings if not any(re.search(p, message) for p in outcomes_of(technique))]
    if refusal is not None:
        assert said
        assert all(re.search(refusal.message, message) for message in said), said
    else:
        assert said == []
    if refusal is None or refusal.measures:
        technique.check(run)
    if not technique.chooses:
        check_validated(run)
    if technique.diagnostic:
        check_unchanged(run)
