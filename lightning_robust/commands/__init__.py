"""Commands beside those of the LightningCLI, one file each: functions whose arguments are the options.

The work is done in ``deployment/``; here files are read and written and lines are printed.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Sequence

import jsonargparse

COMMANDS: dict[str, str] = {
    "compare": "finished runs side by side: what each technique buys and costs",
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
    first = next(iter(inspect.signature(function).parameters.values()))
    told = _gathered(args) if first.annotation == "list[str]" else list(args)
    try:
        jsonargparse.auto_cli(function, args=told, prog=f"lightning-robust {name}")
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from error


def _gathered(args: Sequence[str]) -> list[str]:
    """What is no option and no value of one, as the one list that the parser takes."""
    rest: list[str] = []
    items: list[str] = []
    for arg in args:
        awaited = bool(rest) and rest[-1].startswith("--") and "=" not in rest[-1]
        (rest if awaited or arg.startswith("-") else items).append(arg)
    return [json.dumps(items), *rest] if items else rest
