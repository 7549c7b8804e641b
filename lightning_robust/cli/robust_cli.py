"""A LightningCLI with one named key for each technique."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonargparse
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from lightning_robust.cli.config_saver import ConfigSaver
from lightning_robust.cli.messages import one_complaint
from lightning_robust.cli.parser import OneLineParser
from lightning_robust.cli.techniques import slots
from lightning_robust.cli.trainer import RobustTrainer
from lightning_robust.cli.training_parser import RobustParser, expand_switches
from lightning_robust.complaints import reads_weights, sentence
from lightning_robust.harness.checkpoints import read_checkpoint
from lightning_robust.harness.closing import warn


class RobustCLI(LightningCLI):
    """LightningCLI with the techniques as keys: ``true``, ``false``, or a mapping of the callback's arguments.

    Keys compose over several ``-c`` files in any order and can be edited from the shell. Within one key later values
    refine earlier ones, while a later ``true`` begins again from the defaults. The saved ``config.yaml`` reloads to an
    equal object: it holds every argument, of an attack's method and validation those that were given. The same classes
    also work under ``trainer.callbacks``; a technique in
    both places is an error.

    Example:
        >>> from lightning_robust import DeploymentParityCallback
        >>> model = "--model=lightning.pytorch.demos.boring_classes.BoringModel"
        >>> cli = RobustCLI(args=["--seed_everything=0", model, "--deployment_parity=true"], run=False)
        >>> [type(c).__name__ for c in cli.trainer.callbacks if isinstance(c, DeploymentParityCallback)]
        ['DeploymentParityCallback']
    """

    def __init__(self, args: ArgsType = None, run: bool = True, **settings: Any) -> None:
        defaults: dict[str, Any] = {
            "save_config_callback": ConfigSaver,
            "save_config_kwargs": {"overwrite": True},
            "parser_class": RobustParser,
            "trainer_class": RobustTrainer,
        }
        super().__init__(args=args, run=run, **(defaults | settings))

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The subcommands of LightningCLI, and ``soup``."""
        return {**LightningCLI.subcommands(), "soup": {"model", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add one key for each technique."""
        for slot in slots():
            methods = ", a method" if slot.words else ""
            parser.add_argument(
                f"--{slot.key}",
                type=slot.values,
                default=False,
                sub_configs=True,
                help=f"true, false{methods}, or arguments of {slot.cls.__name__}.",
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, then expand ``true`` and words to all arguments, so that a saved file outlives later defaults."""
        if isinstance(args, dict | jsonargparse.Namespace):
            self.config = parser.parse_object(args)
        else:
            self.config = parser.parse_args(args)
        section = self._section(self.config)
        for key in (slot.key for slot in slots() if section.get(slot.key) is None):
            parser.error(f"Expected `{key}` to be true, false or a mapping, but its value is empty.")
        for slot in slots():
            if section[slot.key] is True and slot.needs_arguments:
                parser.error(f"Expected `{slot.key}` to be one of {', '.join(slot.words)}, but it is true.")
        expand_switches(section)
        self._check_checkpoint(section)
        self._given = _model_arguments(section)

    def before_instantiate_classes(self) -> None:
        """Say which arguments of the model on the command line gave way to the checkpoint's, as Lightning has it."""
        for name, value in _model_arguments(self._section(self.config)).items():
            given = self._given.get(name)
            if given != value and any(re.match(rf"--model\.(init_args\.)?{name}\b", arg) for arg in OneLineParser.line):
                warn(f"`model.{name}`: {given!r} was given, but the checkpoint has {value!r}, which holds.")

    @staticmethod
    def _check_checkpoint(section: Any) -> None:
        """Refuse a file that is missing or no checkpoint before anything is built."""
        path = section.get("ckpt_path")
        if path is not None and not Path(path).exists() and Path(path).suffix == ".ckpt" and "://" not in str(path):
            raise ValueError(f"`ckpt_path`: Expected a checkpoint at {path}, but there is no such file.")
        if path is not None and Path(path).is_file() and section.get("weights_only") is not False:
            missing = {"state_dict", "pytorch-lightning_version"} - {*read_checkpoint(path)}
            if missing:
                raise ValueError(f"Expected a checkpoint of Lightning at {path}, but it has no {sorted(missing)[0]!r}.")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer with the techniques after its own callbacks, in the order of :func:`~.techniques.slots`.

        Raises:
            MisconfigurationException: If a technique is both a key and an entry of ``trainer.callbacks``.
        """
        section = self._section(self.config_init)
        listed = section["trainer"].get("callbacks") or []
        listed = listed if isinstance(listed, list) else [listed]
        switched_on = [(slot, section[slot.key]) for slot in slots() if isinstance(section.get(slot.key), Callback)]
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


def _model_arguments(section: Any) -> dict[str, Any]:
    model = section.get("model")
    arguments = None if model is None else model.get("init_args", model)
    return {} if arguments is None else dict(vars(arguments))


def training_complaint(error: Exception) -> str:
    """What is wrong with the arguments of a training, in one line that begins with the key."""
    message = str(error)
    if reads_weights(error):
        return (
            "`ckpt_path`: Expected a checkpoint, but the file is damaged or holds more than weights and plain values."
        )
    if "Union subtypes" not in message:
        return sentence(error)
    kinds, reason = message.split("Errors:")[0], one_complaint(message)
    keys = [slot.key for slot in slots() if f".{slot.cls.__name__}'" in kinds]
    return "".join(f"`{_as_written(key, reason)}`: " for key in keys) + reason


def _as_written(key: str, reason: str) -> str:
    """The argument of a technique that a complaint is about, where its value stands on the command line."""
    written = (arg[2:].split("=", 1) for arg in OneLineParser.line if arg.startswith(f"--{key}.") and "=" in arg)
    return next((name for name, value in written if f"got {value}" in reason or f"got {value!r}" in reason), key)
