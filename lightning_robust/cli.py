"""The ``lightning-robust`` command: a LightningCLI with one named key for each technique.

What a technique does stands in its class; a new one joins here by one line of :data:`TECHNIQUES`.
"""

from __future__ import annotations

import difflib
import inspect
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import jsonargparse
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from lightning_robust.callbacks import DeploymentParityCallback


class Slot(NamedTuple):
    """A key of the command line and the callback that it switches on."""

    key: str
    cls: type[Callback]


# In the order of instantiation: adversarial, layer_criticality, lazy_training, datapath, swa, greedy_soup, wise_ft,
# deployment_parity.
TECHNIQUES: tuple[Slot, ...] = (Slot("deployment_parity", DeploymentParityCallback),)


class RobustParser(LightningArgumentParser):
    """Says what is wrong without fifty lines of usage before it; a misspelt key in one line with the nearest one."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the complaint and exit with 2."""
        unknown = re.search(r"(?:Key '|nrecognized arguments: --|Option ')([\w.]+)", message)
        complaint = f"{message.splitlines()[0]}.{self._hint(unknown[1])}" if unknown else message
        sys.stderr.write(f"error: {complaint}\nRun with --help for all keys.\n")
        raise SystemExit(2)

    def _hint(self, unknown: str) -> str:
        name = unknown.rsplit(".", 1)[-1]
        known = {key.rsplit(".", 1)[-1] for key in self._keys(self)}
        near = difflib.get_close_matches(name, known, 1)
        return f" Did you mean {near[0]!r}?" if near else ""

    def _keys(self, parser: jsonargparse.ArgumentParser) -> Iterator[str]:
        yield from (action.dest for action in parser._actions)
        for slot in TECHNIQUES:
            yield from (slot.key, *inspect.signature(slot.cls).parameters)


class RobustCLI(LightningCLI):
    """LightningCLI with the techniques as keys: ``true``, ``false``, or a mapping of the callback's arguments.

    Keys compose over several ``-c`` files in any order and are edited from the shell; the saved ``config.yaml`` holds
    every argument and reloads to an equal object. The same classes may stand under ``trainer.callbacks`` instead; a
    technique in both places is an error.

    Example:
        >>> cli = RobustCLI(args=["--model", "BoringModel", "--deployment_parity=true"], run=False)
        >>> [type(c).__name__ for c in cli.trainer.callbacks if isinstance(c, DeploymentParityCallback)]
        ['DeploymentParityCallback']
    """

    def __init__(self, args: ArgsType = None, run: bool = True, **settings: Any) -> None:
        defaults: dict[str, Any] = {
            "save_config_kwargs": {"overwrite": True},
            "parser_class": RobustParser,
        }
        super().__init__(args=args, run=run, **(defaults | settings))

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """One key for each technique."""
        for key, cls in TECHNIQUES:
            parser.add_argument(
                f"--{key}",
                type=bool | cls,
                default=False,
                sub_configs=True,
                help=f"true, false, or arguments of {cls.__name__}.",
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, then write out what ``true`` stands for, so that a saved file does not depend on later defaults."""
        if isinstance(args, dict | jsonargparse.Namespace):
            self.config = parser.parse_object(args)
        else:
            self.config = parser.parse_args(args)
        section = self._section(self.config)
        for key, cls in TECHNIQUES:
            if section.get(key) is True:
                section[key] = _with_defaults(cls)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer with the techniques after its own callbacks, in the order of :data:`TECHNIQUES`.

        Raises:
            MisconfigurationException: If a technique is both a key and an entry of ``trainer.callbacks``.
        """
        section = self._section(self.config_init)
        listed = section["trainer"].get("callbacks") or []
        listed = listed if isinstance(listed, list) else [listed]
        techniques = [section[key] for key, _ in TECHNIQUES if isinstance(section.get(key), Callback)]
        for (key, cls), technique in ((slot, t) for slot in TECHNIQUES for t in techniques if isinstance(t, slot.cls)):
            if any(isinstance(callback, cls) for callback in listed):
                raise MisconfigurationException(
                    f"Expected {type(technique).__name__} once, but got it as `{key}` and under `trainer.callbacks`. "
                    f"Take it out of the list, or set `{key}: false`."
                )
        return super().instantiate_trainer(**kwargs, callbacks=[*listed, *techniques])

    @staticmethod
    def _section(config: Any) -> Any:
        """The part of the configuration that belongs to the subcommand, or all of it where there is none."""
        return config.get(str(config.get("subcommand")), config)


def _with_defaults(cls: type[Callback]) -> jsonargparse.Namespace:
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--technique", type=cls)
    return parser.parse_object({"technique": {"class_path": f"{cls.__module__}.{cls.__name__}"}}).technique


def main(args: ArgsType = None) -> None:
    """Run the command line, see ``lightning-robust --help``."""
    with warnings.catch_warnings():
        # LightningCLI itself uses what jsonargparse deprecates, and torch's exporter what torch deprecates
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        RobustCLI(args)
