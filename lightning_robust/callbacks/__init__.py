"""What a Trainer takes: hooks, state and logging. The work itself is done in ``functional`` and ``deployment``."""

from lightning_robust.callbacks.deployment_parity import DeploymentParityCallback as DeploymentParityCallback
from lightning_robust.callbacks.swa import SWACallback as SWACallback
