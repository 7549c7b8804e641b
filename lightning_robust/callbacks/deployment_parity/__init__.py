"""How far the deployed model is from the trained one, at every validation."""

from lightning_robust.callbacks.deployment_parity.callback import DeploymentParityCallback as DeploymentParityCallback
