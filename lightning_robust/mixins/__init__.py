"""What a LightningModule inherits: terms that are added to its loss."""

from lightning_robust.mixins.regmixup import RegMixupMixin as RegMixupMixin
from lightning_robust.mixins.rotation_ssl import RotationSSLMixin as RotationSSLMixin
from lightning_robust.mixins.uat import UATMixin as UATMixin
