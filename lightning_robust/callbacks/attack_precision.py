"""Which arithmetic attacks may compute in."""

from __future__ import annotations

import functools

import torch

from lightning_robust.processor import processor_flags


@functools.cache
def computes_in_bf16(device: torch.device) -> bool:
    """Whether the device multiplies in bf16 faster than in fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and not processor_flags().isdisjoint({"avx512_bf16", "amx_bf16"})
