"""How a parity pass builds and runs engines: the arguments of DeploymentParityCallback that concern nothing else."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_robust.deployment.engines.settings import BuildSettings


@dataclass(frozen=True)
class EngineSettings(BuildSettings):
    """How the engines of a training are built and run: :class:`~.engines.settings.BuildSettings` and when.

    Args:
        background: During ``fit``, build and run engines while training goes on. Their numbers arrive at a later
            validation or when training ends, with the step whose weights they belong to in ``parity/<target>/step``; do
            not let a checkpoint be chosen by them.
        perturb_targets: Run every target that is measured on the perturbed inputs too:
            ``sensitivity/<perturbation>/<target>/<unit>``.
    """

    background: bool = False
    perturb_targets: bool = False
