"""The loss of strong mixtures beside the clean loss."""

from lightning_robust.mixins.regmixup.mixin import RegMixupMixin as RegMixupMixin
