"""Train robustly with PyTorch Lightning, and measure how far the deployed model is from the trained one."""

from typing import TYPE_CHECKING

from lightning_robust.lazy_names import lazy_names
from lightning_robust.version import package_version, require_versions

require_versions()
__version__ = package_version()

if TYPE_CHECKING:
    from lightning_robust.callbacks import AdversarialCallback as AdversarialCallback
    from lightning_robust.callbacks import DatapathCallback as DatapathCallback
    from lightning_robust.callbacks import DeploymentParityCallback as DeploymentParityCallback
    from lightning_robust.callbacks import GreedySoupCallback as GreedySoupCallback
    from lightning_robust.callbacks import InitialiseCallback as InitialiseCallback
    from lightning_robust.callbacks import LayerCriticalityCallback as LayerCriticalityCallback
    from lightning_robust.callbacks import LazyTrainingCallback as LazyTrainingCallback
    from lightning_robust.callbacks import RobustValidationCallback as RobustValidationCallback
    from lightning_robust.callbacks import SWACallback as SWACallback
    from lightning_robust.callbacks import WiSEFTCallback as WiSEFTCallback
    from lightning_robust.deployment.parity import ParityReport as ParityReport
    from lightning_robust.deployment.parity import measure_parity as measure_parity
    from lightning_robust.harness.checkpoints import load_averaged as load_averaged
    from lightning_robust.harness.trainers import NoEffectWarning as NoEffectWarning
    from lightning_robust.mixins import PreprocessingMixin as PreprocessingMixin
    from lightning_robust.mixins import RegMixupMixin as RegMixupMixin
    from lightning_robust.mixins import RotationSSLMixin as RotationSSLMixin
    from lightning_robust.mixins import UATMixin as UATMixin
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
