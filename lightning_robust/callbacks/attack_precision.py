"""Which arithmetic attacks may compute in."""

from __future__ import annotations

import functools
from pathlib import Path

import torch


@functools.cache
def computes_in_bf16(device: torch.device) -> bool:
    """Whether the device multiplies in bf16 faster than in fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
