"""What a Trainer takes: hooks, state and logging. The work itself is done in ``functional`` and ``deployment``."""

from lightning_robust.callbacks.adversarial import AdversarialCallback as AdversarialCallback
from lightning_robust.callbacks.datapath import DatapathCallback as DatapathCallback
from lightning_robust.callbacks.deployment_parity import DeploymentParityCallback as DeploymentParityCallback
from lightning_robust.callbacks.greedy_soup import GreedySoupCallback as GreedySoupCallback
from lightning_robust.callbacks.layer_criticality import LayerCriticalityCallback as LayerCriticalityCallback
from lightning_robust.callbacks.lazy_training import LazyTrainingCallback as LazyTrainingCallback
from lightning_robust.callbacks.swa import SWACallback as SWACallback
from lightning_robust.callbacks.wise_ft import WiSEFTCallback as WiSEFTCallback
