"""The parser of the commands that train: one line for an error, with the nearest key for one that is misspelt."""

from __future__ import annotations

import inspect
import re
import sys
from typing import NoReturn

import jsonargparse
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from lightning_robust.cli.techniques import TECHNIQUES
from lightning_robust.suggest import did_you_mean


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


def _suggest_key(unknown: str) -> str:
    known = {"model", "data", "optimizer", "lr_scheduler", "seed_everything", *inspect.signature(Trainer).parameters}
    for slot in TECHNIQUES:
        known |= {slot.key, *jsonargparse.ArgumentParser().add_class_arguments(slot.cls)}
    return did_you_mean(unknown.rsplit(".", 1)[-1], sorted(known), 1)
