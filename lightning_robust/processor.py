"""What this machine's processor can do."""

from __future__ import annotations

import functools
from pathlib import Path


@functools.cache
def processor_flags() -> frozenset[str]:
    """The instruction sets that Linux names, such as ``"avx512_bf16"``; none where it cannot be asked."""
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return frozenset()
    return frozenset(words)
