"""The ``lightning-robust`` command: a LightningCLI with one named key for each technique.

A new technique joins by one line of :data:`TECHNIQUES`.
"""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, NoReturn

import jsonargparse
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from lightning_robust.callbacks import (
    AdversarialCallback,
    DatapathCallback,
    DeploymentParityCallback,
    GreedySoupCallback,
    LayerCriticalityCallback,
    LazyTrainingCallback,
    RobustValidationCallback,
    SWACallback,
    WiSEFTCallback,
)
from lightning_robust.commands import COMMANDS, run_command
from lightning_robust.suggest import did_you_mean


class Slot(NamedTuple):
    """A key of the command line and the callback that it switches on."""

    key: str
    cls: type[Callback]


TECHNIQUES: tuple[Slot, ...] = (
    Slot("adversarial", AdversarialCallback),
    Slot("robust_validation", RobustValidationCallback),
    Slot("layer_criticality", LayerCriticalityCallback),
    Slot("lazy_training", LazyTrainingCallback),
    Slot("datapath", DatapathCallback),
    Slot("swa", SWACallback),
    Slot("greedy_soup", GreedySoupCallback),
    Slot("wise_ft", WiSEFTCallback),
    Slot("deployment_parity", DeploymentParityCallback),
)
"""The keys in the order in which they are instantiated."""


class RobustTrainer(Trainer):
    """A Trainer that also averages checkpoints of finished runs."""

    def soup(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        *,
        ingredients: str | list[str],
        recipe: Literal["greedy", "uniform", "learned", "stock"] = "greedy",
        monitor: str | None = None,
        mode: Literal["max", "min"] | None = None,
        strict: bool = True,
        drop: bool = False,
        best_possible: float | None = None,
        bn_refresh: bool = True,
        bn_samples: int | None = None,
        dirpath: str = "soup",
    ) -> None:
        """Average checkpoints of finished runs where that helps on the validation data, and validate the result.

        The arguments are those of :class:`~lightning_robust.GreedySoupCallback`; the stock recipe takes its initial
        weights from the module as it is built.

        Args:
            model: The module that the checkpoints belong to.
            datamodule: The data.
            ingredients: Paths and globs of .ckpt, .pt or .safetensors files.
            recipe: How to mix.
            monitor: Metric to judge by.
            mode: Whether larger or smaller is better.
            strict: Accept only improvements.
            drop: Afterwards remove ingredients whose removal helps.
            best_possible: The best value that any sample can have.
            bn_refresh: Recompute BatchNorm statistics of mixtures.
            bn_samples: Roughly how many training samples to recompute them from; all if None.
            dirpath: Folder for soup.ckpt and soup.json.
        """
        callback = GreedySoupCallback(
            recipe,
            ingredients=[ingredients] if isinstance(ingredients, str) else ingredients,
            monitor=monitor,
            mode=mode,
            strict=strict,
            drop=drop,
            best_possible=best_possible,
            bn_refresh=bn_refresh,
            bn_samples=bn_samples,
            dirpath=dirpath,
            on_failure="raise",
        )
        callback.keep_base(model)
        self.callbacks.append(_CookBeforeValidation(callback))  # type: ignore[attr-defined]
        self.validate(model, datamodule=datamodule)


class _CookBeforeValidation(Callback):
    """Puts the soup into the module before it is validated."""

    def __init__(self, soup: GreedySoupCallback) -> None:
        self.soup = soup

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.soup.cook(trainer, pl_module)


class RobustParser(LightningArgumentParser):
    """Prints an error without fifty lines of usage, and the nearest key for one that is misspelt."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the complaint and exit with 2."""
        sys.stderr.write(f"error: {self.complaint(message)}\nRun with --help for all keys.\n")
        raise SystemExit(2)

    @staticmethod
    def complaint(message: str) -> str:
        """The parser's message, with the nearest known key for one that is misspelt."""
        unknown = re.search(r"(?:Key '|nrecognized arguments: --|[Oo]ption ')([\w.]+)", message)
        return f"{message.splitlines()[0]}.{_suggest_key(unknown[1])}" if unknown else message


class RobustCLI(LightningCLI):
    """LightningCLI with the techniques as keys: ``true``, ``false``, or a mapping of the callback's arguments.

    Keys compose over several ``-c`` files in any order and can be edited from the shell. Within one key later values
    refine earlier ones, while a later ``true`` begins again from the defaults. The saved ``config.yaml`` reloads to an
    equal object: it holds every argument, of an attack's method and validation those that were given. The same classes
    also work under ``trainer.callbacks``; a technique in
    both places is an error.

    Example:
        >>> model = "--model=lightning.pytorch.demos.boring_classes.BoringModel"
        >>> cli = RobustCLI(args=["--seed_everything=0", model, "--deployment_parity=true"], run=False)
        >>> [type(c).__name__ for c in cli.trainer.callbacks if isinstance(c, DeploymentParityCallback)]
        ['DeploymentParityCallback']
    """

    def __init__(self, args: ArgsType = None, run: bool = True, **settings: Any) -> None:
        defaults: dict[str, Any] = {
            "save_config_kwargs": {"overwrite": True},
            "parser_class": RobustParser,
            "trainer_class": RobustTrainer,
            "parser_kwargs": {"epilog": _describe_commands()},
        }
        super().__init__(args=args, run=run, **(defaults | settings))

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The subcommands of LightningCLI, and ``soup``."""
        return {**LightningCLI.subcommands(), "soup": {"model", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add one key for each technique."""
        for key, cls in TECHNIQUES:
            parser.add_argument(
                f"--{key}",
                type=bool | cls,
                default=False,
                sub_configs=True,
                help=f"true, false, or arguments of {cls.__name__}.",
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, then expand ``true`` to all arguments, so that a saved file does not depend on later defaults."""
        if isinstance(args, dict | jsonargparse.Namespace):
            self.config = parser.parse_object(args)
        else:
            self.config = parser.parse_args(args)
        section = self._section(self.config)
        for key, cls in TECHNIQUES:
            if section.get(key) is True:
                section[key] = _default_config(cls)
            elif section.get(key) is None:
                parser.error(f"Expected `{key}` to be true, false or a mapping, but its value is empty.")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer with the techniques after its own callbacks, in the order of :data:`TECHNIQUES`.

        Raises:
            MisconfigurationException: If a technique is both a key and an entry of ``trainer.callbacks``.
        """
        section = self._section(self.config_init)
        listed = section["trainer"].get("callbacks") or []
        listed = listed if isinstance(listed, list) else [listed]
        switched_on = [(slot, section[slot.key]) for slot in TECHNIQUES if isinstance(section.get(slot.key), Callback)]
        for slot, technique in switched_on:
            if any(isinstance(callback, slot.cls) for callback in listed):
                raise MisconfigurationException(
                    f"Expected {type(technique).__name__} once, but got it as `{slot.key}` and under "
                    f"`trainer.callbacks`. Take it out of the list, or set `{slot.key}: false`."
                )
        return super().instantiate_trainer(**kwargs, callbacks=[*listed, *(technique for _, technique in switched_on)])

    @staticmethod
    def _section(config: Any) -> Any:
        """The part of the configuration that belongs to the subcommand, or all of it where there is none."""
        return config.get(str(config.get("subcommand")), config)


def _describe_commands() -> str:
    """The end of the help: the commands that take no Trainer."""
    commands = "; ".join(f"{name}: {purpose}" for name, purpose in COMMANDS.items())
    return f"Commands with options of their own (--help after the name) - {commands}."


def _default_config(cls: type[Callback]) -> jsonargparse.Namespace:
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--technique", type=cls)
    return parser.parse_object({"technique": {"class_path": f"{cls.__module__}.{cls.__name__}"}}).technique


def _suggest_key(unknown: str) -> str:
    known = {"model", "data", "optimizer", "lr_scheduler", "seed_everything", *inspect.signature(Trainer).parameters}
    for slot in TECHNIQUES:
        known |= {slot.key, *jsonargparse.ArgumentParser().add_class_arguments(slot.cls)}
    return did_you_mean(unknown.rsplit(".", 1)[-1], sorted(known), 1)


def main(args: ArgsType = None) -> None:
    """Run the command line, see ``lightning-robust --help``."""
    line = sys.argv[1:] if args is None else args
    if isinstance(line, list) and line and line[0] in COMMANDS:
        run_command(line[0], line[1:])
        return
    with others_warnings_hidden():
        RobustCLI(args)


@contextmanager
def others_warnings_hidden() -> Iterator[None]:
    """Hide deprecation warnings of Lightning, torch and the exporter, and show those of the user's modules."""
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=category, module=r"(lightning|torch|onnxscript)\.")
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        yield
