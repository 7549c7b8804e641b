"""The parser of the commands that train, which knows the keys of the Trainer and of all techniques."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import jsonargparse
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from lightning_robust.cli.parser import OneLineParser
from lightning_robust.cli.techniques import TECHNIQUES


class RobustParser(OneLineParser, LightningArgumentParser):
    """Suggests the nearest key of the Trainer or of a technique for one that is misspelt."""

    def known_keys(self) -> Iterable[str]:
        """The keys of the command line, and the arguments of the Trainer and of all techniques."""
        known = {
            "model",
            "data",
            "optimizer",
            "lr_scheduler",
            "seed_everything",
            *inspect.signature(Trainer).parameters,
        }
        for slot in TECHNIQUES:
            known |= {slot.key, *jsonargparse.ArgumentParser().add_class_arguments(slot.cls)}
        return sorted(known)

    def dump(self, cfg: jsonargparse.Namespace, **settings: Any) -> str:
        """Write a configuration, with all arguments of a technique that is switched on by ``true``."""
        cfg = cfg.clone()
        expand_switches(cfg)
        return super().dump(cfg, **settings)


def expand_switches(section: Any) -> None:
    """Put all arguments of a technique in place of ``true``, so that a file does not depend on later defaults."""
    for key, cls in TECHNIQUES:
        if section.get(key) is True:
            parser = jsonargparse.ArgumentParser()
            parser.add_argument("--technique", type=cls)
            arguments = {"class_path": f"{cls.__module__}.{cls.__name__}"}
            section[key] = parser.parse_object({"technique": arguments}).technique
