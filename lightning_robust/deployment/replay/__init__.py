"""Recorded frames through every engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_robust.lazy_names import lazy_names

if TYPE_CHECKING:
    from lightning_robust.deployment.replay.measure import replay as replay
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
