"""Commands beside those of the LightningCLI: one file each, with one function whose arguments are the options."""

from __future__ import annotations

import importlib
import inspect
import json
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from lightning_robust.cli.parser import OneLineParser
from lightning_robust.complaints import can_be_mended, sentence
from lightning_robust.deployment.budget_keys import RULES
from lightning_robust.gate.options import OPTIONS, add_gate_options, open_gate, report_failure

COMMANDS: dict[str, str] = {
    "choose": "the best of several initialisations and trainings, for a part of the cost of all",
    "compare": "finished runs side by side: what each technique buys and costs",
    "fingerprint": "what differs between training's pictures and those of the deployed side",
    "golden": "inputs and outputs for the deployed side to replay, and what its dump says",
    "parity": "parity report of a checkpoint or an ONNX file",
    "precision": "what must stay fp32 in a model, its strongly typed file and a report",
    "replay": "recorded frames through PyTorch, every runtime and every preprocessing perturbation",
    "sweep": "many configurations as Ray Tune trials, and a soup of them",
}
"""Name -> what it does, in one line; a command is the function of its name in the module of its name."""
_NUMBERS = {"precision"}  # whose budget may be one number


def run_command(name: str, args: Sequence[str]) -> None:
    """Parse the options of one command and run it.

    What a command returns is its exit status; that of a command that judges is its judgement, from which the status
    follows and whose verdict is printed last. An error that the user can mend is one line and exit status 2; another
    one keeps its traceback, and has the same status, for 1 says that something was measured and is beyond its budget.
    """
    function = getattr(importlib.import_module(f"{__name__}.{name}"), name)
    first = next(iter(inspect.signature(function).parameters.values()))
    options = _join_positionals(args) if first.annotation == "list[str]" else _name_positional(args, first)
    description = (inspect.getdoc(function) or "").split("\n\n")[0]
    # not jsonargparse's auto_cli, which drops an option named config
    parser = OneLineParser(prog=f"lightning-robust {name}", description=description)
    parser.add_function_arguments(function, as_group=False, as_positional=True, sub_configs=True, skip={"gate"})
    if _judges(function):
        add_gate_options(parser, number=name in _NUMBERS)
    config = parser.parse_args(options)
    try:
        status = _carry_out(name, function, dict(parser.instantiate_classes(config)), args)
    except Exception as error:
        if can_be_mended(error):
            sys.stderr.write(f"error: {sentence(error)}\n")
        else:
            traceback.print_exc()
        raise SystemExit(2) from error
    if status:
        raise SystemExit(status)


def _carry_out(name: str, function: Callable[..., Any], values: dict[str, Any], args: Sequence[str]) -> int | None:
    """Run a command; one that judges is given a gate, through which its judgement goes, or that there is none."""
    if not _judges(function):
        return function(**values)
    line = shlex.join(["lightning-robust", name, *args])
    given = {option: values.pop(option) for option in OPTIONS}
    try:
        gate = open_gate(name, given, RULES, number=name in _NUMBERS, line=line)
        judgement = function(**values, gate=gate)
    except Exception as error:
        report_failure(name, given, sentence(error))
        raise
    return None if judgement is None else gate.close(judgement)


def _judges(function: Callable[..., Any]) -> bool:
    return "gate" in inspect.signature(function).parameters


def _name_positional(args: Sequence[str], first: inspect.Parameter) -> list[str]:
    """A lone word as the value of a first argument that may be left out, which the parser takes by name only.

    Example:
        >>> first = inspect.Parameter("model", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None)
        >>> _name_positional(["--budget", "1", "a.onnx"], first), _name_positional(["--budget=1"], first)
        (['--model=a.onnx', '--budget', '1'], ['--budget=1'])
    """
    positionals, options = _split_positionals(args)
    optional = first.kind is first.POSITIONAL_OR_KEYWORD and first.default is not first.empty
    return [f"--{first.name}={positionals[0]}", *options] if optional and len(positionals) == 1 else list(args)


def _split_positionals(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words that are no option and no option's value, and the others."""
    options: list[str] = []
    positionals: list[str] = []
    for arg in args:
        is_value = bool(options) and options[-1].startswith("--") and "=" not in options[-1]
        (options if is_value or arg.startswith("-") else positionals).append(arg)
    return positionals, options


def _join_positionals(args: Sequence[str]) -> list[str]:
    """The positional arguments as one list, which is what the parser takes, before the options.

    Example:
        >>> _join_positionals(["runs/a", "--output", "page", "runs/b"])
        ['["runs/a", "runs/b"]', '--output', 'page']
    """
    positionals, options = _split_positionals(args)
    return [json.dumps(positionals), *options] if positionals else options
