"""The same draws for a test whichever tests ran before it."""

import numpy as np
import pytest

from . import operators


@pytest.fixture(autouse=True)
def _same_draws(monkeypatch):
    monkeypatch.setattr(operators, "RNG", np.random.default_rng(0))
