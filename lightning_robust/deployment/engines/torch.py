"""PyTorch itself as an engine."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from lightning_robust.deployment.engines.base import HALF, Built, Runtime, host_clock, run_module
from lightning_robust.deployment.engines.subject import Subject
from lightning_robust.deployment.graph.export import to_args

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class TorchRuntime(Runtime):
    """PyTorch in another precision. Half precision runs on the subject's device, the rest on the CPU."""

    def build(self, subject: Subject) -> Built:
        """Copy the module into the precision."""
        dtype = DTYPES[self.precision]
        device = (subject.settings.device or "cpu") if self.precision in HALF else "cpu"
        module = copy.deepcopy(subject.module).to(device, dtype)

        def run(args: tuple[Any, ...]) -> list[Tensor]:
            outputs = run_module(module, to_args(args, dtype, device))
            # a decoder computes in fp32 behind every engine
            return [each.float() if each.dtype in (torch.float16, torch.bfloat16) else each for each in outputs]

        return Built(run, clock=host_clock(run))
