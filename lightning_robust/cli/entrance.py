"""The entrance of ``lightning-robust``: which command is it? What a command needs is imported after that is known."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_robust.cli.parser import refuse
from lightning_robust.commands import COMMANDS, run_command
from lightning_robust.complaints import is_about_arguments
from lightning_robust.suggest import did_you_mean
from lightning_robust.version import package_version

if TYPE_CHECKING:
    from lightning.pytorch.cli import ArgsType

TRAINING: dict[str, str] = {
    "fit": "train, with each technique as one switch",
    "validate": "one pass over the validation data",
    "test": "one pass over the test data",
    "predict": "predictions of a checkpoint",
    "soup": "an average of checkpoints of finished runs, where that helps on the validation data",
}
"""Commands with a Trainer, name -> what it does, in one line; their options are those of a LightningCLI."""


def main(args: ArgsType = None) -> None:
    """Run the command line, see ``lightning-robust --help``.

    Modules in the working folder can be named, as with ``python -m``; what is installed comes before them.
    """
    _find_modules_here()
    line = sys.argv[1:] if args is None else args
    if not isinstance(line, list):
        _train(line)  # a configuration, from Python
        return
    name = line[0] if line else "--help"
    if name in COMMANDS:
        run_command(name, line[1:])
    elif name in ("-h", "--help"):
        sys.stdout.write(list_commands())
        raise SystemExit(0 if line else 2)
    elif name == "--version":
        sys.stdout.write(f"lightning-robust {package_version()}\n")
    elif name in TRAINING or name.startswith("-"):
        _train(args)
    else:
        known = [*TRAINING, *COMMANDS]
        hint = did_you_mean(name, known, 1)
        refuse(f"Expected a command out of {', '.join(known)}, but got {name!r}.{hint}", "what each does")


def _find_modules_here() -> None:
    """Let modules of the working folder be imported, behind those that are installed, which none of them replaces."""
    if not {"", str(Path.cwd())} & {*sys.path}:
        sys.path.append(str(Path.cwd()))


def list_commands() -> str:
    """All commands, one line each."""
    commands = TRAINING | COMMANDS
    width = max(map(len, commands))
    lines = (f"  {name:{width}}  {purpose}\n" for name, purpose in commands.items())
    return (
        "usage: lightning-robust <command> [options]\n\n"
        f"Train robustly, and measure how far the deployed model is from the trained one.\n\n{''.join(lines)}\n"
        "lightning-robust <command> --help lists the options of one of them, --version says which version this is.\n"
    )


def _train(args: ArgsType) -> None:
    """Run a command that has a Trainer. What is wrong with the arguments is one line and exit status 2."""
    from lightning_robust.cli.hidden_warnings import others_warnings_hidden
    from lightning_robust.cli.robust_cli import RobustCLI, training_complaint

    try:
        with others_warnings_hidden():
            RobustCLI(args)
    except Exception as error:
        if not is_about_arguments(error):
            raise
        sys.stderr.write(f"error: {training_complaint(error)}\n")
        raise SystemExit(2) from error
