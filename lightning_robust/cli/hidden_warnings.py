"""Warnings of a run that the user can do nothing about."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def others_warnings_hidden() -> Iterator[None]:
    """Hide deprecation warnings of Lightning, torch and the exporter, and show those of the user's modules."""
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=category, module=r"(lightning|torch|onnxscript)\.")
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        yield
