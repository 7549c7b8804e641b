"""The parser of the commands that train, which knows the keys of the Trainer and of all techniques."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any

import jsonargparse
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from lightning_robust import mixins
from lightning_robust.cli.parser import OneLineParser
from lightning_robust.cli.techniques import slots

_REFUSED = re.compile(r"(.*Option '(?:model\.)?(\w+)[\w.]*' is not accepted\.)")


class RobustParser(OneLineParser, LightningArgumentParser):
    """Suggests the nearest key of the Trainer or of a technique for one that is misspelt."""

    def known_keys(self) -> Iterable[str]:
        """The keys of the command line, the arguments of the Trainer and of all techniques, and those of a class."""
        known = {
            *vars(self.get_defaults()),
            "model",
            "data",
            "optimizer",
            "lr_scheduler",
            "seed_everything",
            *inspect.signature(Trainer).parameters,
        }
        for slot in slots():
            known |= {slot.key, *jsonargparse.ArgumentParser().add_class_arguments(slot.cls)}
        return sorted(known | {*_arguments_of_mixins()})

    def complaint(self, message: str) -> str:
        """The parser's message in one line; where the module lacks a mixin, with its name."""
        text = super().complaint(message)
        refused = _REFUSED.match(text)
        if refused is None or (mixin := _arguments_of_mixins().get(refused[2])) is None:
            return text
        return f"{refused[1]} It is an argument of {mixin}: put that before your module in the bases."

    def parse_object(self, given: Any, *base: Any, **settings: Any) -> jsonargparse.Namespace:
        """Parse values; hyperparameters out of a checkpoint alone do not say of which class they are, and are left out.

        LightningCLI reads them over what was asked for. Those of a model that was built in Python have no class path,
        so that none of them would be taken.
        """
        if base and isinstance(base[0], jsonargparse.Namespace) and _lacks_class(given):
            return base[0]
        return super().parse_object(given, *base, **settings)

    def dump(self, cfg: jsonargparse.Namespace, **settings: Any) -> str:
        """Write a configuration, with all arguments of a technique that is switched on by ``true``."""
        cfg = cfg.clone()
        expand_switches(cfg)
        return super().dump(cfg, **settings)


def _lacks_class(given: Any) -> bool:
    """Whether these are one command's arguments of a model without its class."""
    sections = list(given.values()) if isinstance(given, dict) else []
    return len(sections) == 1 and [*sections[0]] == ["model"] and "class_path" not in sections[0]["model"]


def _arguments_of_mixins() -> dict[str, str]:
    """Argument -> the mixin that has it."""
    return {
        key: name
        for name, mixin in vars(mixins).items()
        if name.endswith("Mixin")
        for key, argument in inspect.signature(mixin).parameters.items()
        if argument.kind is argument.KEYWORD_ONLY
    }


def expand_switches(section: Any) -> None:
    """Put all arguments of a technique in place of ``true`` or of a method, so that a file outlives later defaults."""
    for slot in slots():
        value = section.get(slot.key)
        if value is True or value in slot.words:
            parser = jsonargparse.ArgumentParser()
            parser.add_argument("--technique", type=slot.cls)
            arguments = {} if value is True else {"method": value}
            technique = {"class_path": f"{slot.cls.__module__}.{slot.cls.__name__}", "init_args": arguments}
            section[slot.key] = parser.parse_object({"technique": technique}).technique
