"""Quarter turns as a second, self-supervised task."""

from lightning_robust.mixins.rotation_ssl.mixin import RotationSSLMixin as RotationSSLMixin
