"""What a Trainer takes: a folder for each technique, with its card as README.md.

``attacked_batches.py``, ``module_loss.py``, ``conditions.py``, ``judging.py`` and
``candidates.py`` hold what several of them share.
"""

from lightning_robust.callbacks.adversarial import AdversarialCallback as AdversarialCallback
from lightning_robust.callbacks.averaging import SWACallback as SWACallback
from lightning_robust.callbacks.datapath import DatapathCallback as DatapathCallback
from lightning_robust.callbacks.deployment_parity import DeploymentParityCallback as DeploymentParityCallback
from lightning_robust.callbacks.initialise import InitialiseCallback as InitialiseCallback
from lightning_robust.callbacks.layer_criticality import LayerCriticalityCallback as LayerCriticalityCallback
from lightning_robust.callbacks.lazy_training import LazyTrainingCallback as LazyTrainingCallback
from lightning_robust.callbacks.merging import GreedySoupCallback as GreedySoupCallback
from lightning_robust.callbacks.merging import WiSEFTCallback as WiSEFTCallback
from lightning_robust.callbacks.robust_validation import RobustValidationCallback as RobustValidationCallback
