"""Commands beside those of the LightningCLI, one file each: functions whose arguments are the options.

The work is done in ``deployment/``; here files are read and written and lines are printed.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import jsonargparse

COMMANDS: dict[str, str] = {
    "fingerprint": "what differs between training's pictures and the car's",
    "golden": "inputs and outputs for the car to replay, and what its dump says",
    "parity": "parity report of a checkpoint or an ONNX file",
    "replay": "recorded frames through PyTorch, every runtime and every preprocessing perturbation",
    "sweep": "many configurations as Ray Tune trials, and a soup of them",
}
"""Name -> what it does, in one line; a command is the function of its name in the module of its name."""


def run_command(name: str, args: Sequence[str]) -> None:
    """Parse the options of one command and run it; what a user can mend ends in one line and exit status 2."""
    function = getattr(importlib.import_module(f"{__name__}.{name}"), name)
    try:
        jsonargparse.auto_cli(function, args=list(args), prog=f"lightning-robust {name}")
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from error
