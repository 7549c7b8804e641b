"""Recorded frames through every engine."""

from lightning_robust.deployment.replay.measure import replay as replay
