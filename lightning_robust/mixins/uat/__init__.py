"""Unsupervised adversarial training: pictures without labels."""

from lightning_robust.mixins.uat.mixin import UATMixin as UATMixin
