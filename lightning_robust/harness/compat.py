"""Every private or internal name of Lightning and torch that the package uses, each behind a small function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature


def takes_batch_index(step: Callable[..., Any]) -> bool:
    """Whether Lightning passes the index of the batch to a user's step: always by position, whatever its name."""
    return is_param_in_hook_signature(step, "batch_idx", min_args=2)
