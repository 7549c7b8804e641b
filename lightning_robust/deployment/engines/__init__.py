"""What executes a model: PyTorch, ONNX Runtime, an emulation of low precision, TensorRT."""

from typing import TYPE_CHECKING

from lightning_robust.lazy_names import lazy_names

if TYPE_CHECKING:
    from lightning_robust.deployment.engines.abilities import Ability as Ability
    from lightning_robust.deployment.engines.abilities import can_build as can_build
    from lightning_robust.deployment.engines.abilities import can_run as can_run
    from lightning_robust.deployment.engines.base import Built as Built
    from lightning_robust.deployment.engines.base import Runtime as Runtime
    from lightning_robust.deployment.engines.base import run_module as run_module
    from lightning_robust.deployment.engines.builder import Engine as Engine
    from lightning_robust.deployment.engines.builder import build_engine as build_engine
    from lightning_robust.deployment.engines.child.process import EngineError as EngineError
    from lightning_robust.deployment.engines.runs import EngineRun as EngineRun
    from lightning_robust.deployment.engines.runs import load_engine_file as load_engine_file
    from lightning_robust.deployment.engines.runs import run_batches as run_batches
    from lightning_robust.deployment.engines.runs import run_engine as run_engine
    from lightning_robust.deployment.engines.settings import BuildSettings as BuildSettings
    from lightning_robust.deployment.engines.subject import Subject as Subject
    from lightning_robust.deployment.engines.targets import TARGETS as TARGETS
    from lightning_robust.deployment.engines.targets import available as available
    from lightning_robust.deployment.engines.targets import runtime as runtime
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
