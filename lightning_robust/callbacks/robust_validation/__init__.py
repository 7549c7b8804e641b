"""Validate on attacked batches."""

from lightning_robust.callbacks.robust_validation.callback import RobustValidationCallback as RobustValidationCallback
