"""Training against differences of preprocessing between training and the deployed side."""

from lightning_robust.mixins.preprocessing.mixin import PreprocessingMixin as PreprocessingMixin
