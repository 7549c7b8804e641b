"""TensorRT and TensorRT-RTX as engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from lightning_robust.deployment.engines import abilities, builder
from lightning_robust.deployment.engines.abilities import Ability, Backend
from lightning_robust.deployment.engines.base import HALF, Built, Runtime, feed
from lightning_robust.deployment.engines.child.process import EngineError
from lightning_robust.deployment.engines.profile import make_profile
from lightning_robust.deployment.engines.settings import DEFAULTS, BuildSettings
from lightning_robust.deployment.engines.subject import Subject
from lightning_robust.deployment.graph.batches import Arrays, fixed_batches, run_in_fixed_batches
from lightning_robust.deployment.numerics.convert import Conversion
from lightning_robust.deployment.numerics.rounding import Half


class TensorRTRuntime(Runtime):
    """TensorRT or TensorRT-RTX through Polygraphy, strongly typed, built and run in a child process."""

    slow = True

    @property
    def _backend(self) -> Backend:
        return cast(Backend, self.runtime)

    def can_build(self, settings: BuildSettings = DEFAULTS) -> Ability:
        """Whether the package (and, for full TensorRT, a GPU) is there."""
        return abilities.can_build(self._backend, settings.command)

    def can_run(self, settings: BuildSettings = DEFAULTS) -> Ability:
        """Whether there is a CUDA device to execute the engine on."""
        return abilities.can_run(self._backend, settings.command)

    def build(self, subject: Subject) -> Built:
        """Build the engine, or take it from the cache."""
        exported = subject.exported
        weakly = subject.settings.weakly_typed and self.name == "tensorrt-fp16"
        model, notes = exported.model, ["weakly typed"] * weakly
        if self.precision in HALF and not weakly:
            half = cast(Half, self.precision)
            conversion = Conversion(model, half, subject.fp32_nodes(), subject.settings.out_of_range)
            model = conversion.build()
            notes += conversion.notes
        able = self.can_run(subject.settings)
        settings: dict[str, Any] = {
            "backend": self._backend,
            "profile": make_profile(exported, subject),
            "directory": Path(subject.settings.cache) if subject.settings.cache else None,
            "time_limit": subject.settings.time_limit,
            "command": subject.settings.command,
            "weakly_typed": "fp16" if weakly else None,
            "tf32": subject.settings.tf32 and self.precision in HALF,
        }
        refit = subject.settings.refit and bool(able)
        engine, warning = _build_or_refit(model.SerializeToString(), settings, refit=refit)
        if not able:
            return Built(None, engine.size, ", ".join([f"not run: {able.reason}", *notes]))

        fixed = fixed_batches(exported.model.graph)

        def run_once(arrays: Arrays) -> list[Tensor]:
            results = builder.run_engine(engine, arrays, time_limit=subject.settings.time_limit)
            return [torch.from_numpy(results[name]) for name in exported.outputs]

        def run(args: tuple[Any, ...]) -> list[Tensor]:
            return run_in_fixed_batches(run_once, feed(args, exported), fixed)

        notes += ["refittable"] * ("REFIT" in engine.flags.split())
        return Built(run, engine.size, ", ".join(notes), warning)


def _build_or_refit(model: bytes, settings: dict[str, Any], *, refit: bool) -> tuple[builder.Engine, str]:
    """An engine, with new weights in an existing one if possible; and a warning where a refit failed."""
    if not refit:
        return builder.build_engine(model, **settings), ""
    try:
        return builder.build_engine(model, refit=True, **settings), ""
    except EngineError as error:
        if error.kind == "cancelled":
            raise
        reason = str(error).splitlines()[0]
    return builder.build_engine(model, **settings), f"the engine was built anew, for it could not be refitted. {reason}"
