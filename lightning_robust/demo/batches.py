"""What the loaders of the demos have in common."""

from __future__ import annotations

from typing import Any


def keep_batch(batch: Any) -> Any:
    """The batch as a data set's ``__getitems__`` made it; a ``collate_fn``."""
    return batch
