"""What a LightningModule inherits: terms added to its loss, a folder with its card for each."""

from lightning_robust.mixins.preprocessing import PreprocessingMixin as PreprocessingMixin
from lightning_robust.mixins.regmixup import RegMixupMixin as RegMixupMixin
from lightning_robust.mixins.rotation_ssl import RotationSSLMixin as RotationSSLMixin
from lightning_robust.mixins.uat import UATMixin as UATMixin
