"""Which entries of the catalogue are drawn, and how often each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_robust.callbacks.deployment_parity import DeploymentParityCallback
from lightning_robust.deployment.pixels.catalogue import Perturbation, perturbations
from lightning_robust.deployment.pixels.draws import PARAMETER_OF, Ranges, check_ranges
from lightning_robust.deployment.pixels.layout import read_layout
from lightning_robust.harness.compat import is_attached
from lightning_robust.harness.trainers import find_callbacks
from lightning_robust.mixins.host_step import HostStep

if TYPE_CHECKING:
    from lightning_robust.mixins.preprocessing.mixin import PreprocessingMixin

MEASURED = "measured"


class EntryChoice:
    """The entries that a module draws from.

    Args:
        module: The module with its settings.

    Attributes:
        measured: Entry -> its sensitivity in the last parity pass that this module has seen.
    """

    def __init__(self, module: PreprocessingMixin) -> None:
        self._module = module
        self._entries = read_entries(module.preprocessing_entries)
        self.measured: dict[str, float] = {}

    def setup(self) -> None:
        """Take the entries that parity passes will measure, if those are asked for, and forget those of another fit."""
        self.measured = {}
        self._entries = read_entries(self._module.preprocessing_entries)
        if self._module.preprocessing_entries == MEASURED:
            self._entries = entries_of_parity(find_callbacks(self._module.trainer, DeploymentParityCallback))

    def sensitivity(self) -> dict[str, float]:
        """What entries are drawn in proportion to; empty before the first pass, and where they are drawn alike."""
        if self._module.preprocessing_entries != MEASURED:
            return {}
        trainer = self._module.trainer if is_attached(self._module) else None
        passes = [] if trainer is None else find_callbacks(trainer, DeploymentParityCallback)
        found = next((callback.sensitivity for callback in passes if callback.sensitivity is not None), None)
        if found is not None:
            self.measured = find_sensitivity(found)
            if not self.measured:
                self._module._warn_once(
                    "the parity pass measured no sensitivity to draw entries in proportion to, so all are drawn alike."
                )
        return self.measured

    def of(self, step: HostStep, values_move: bool) -> list[Perturbation]:
        """Those that apply to the pictures of a step and to its targets.

        Args:
            step: The step.
            values_move: Whether the module says that its values move with the picture.

        Raises:
            MisconfigurationException: If none does.
        """
        module, channels = self._module, read_layout(step.inputs.shape).channels
        measured = self.sensitivity()
        entries: Sequence[Perturbation] = perturbations(list(measured)) if measured else self._entries
        entries, left = split_entries(entries, lambda entry: entry.applies_to(channels))
        if left:
            module._warn_once(f"{left} need three channels and are left out, since the pictures have one.")
        if not self._moves_targets(step, values_move):
            entries, left = split_entries(entries, lambda entry: entry.motion is None)
            if left:
                module._warn_once(
                    f"{left} move the picture and are left out, since it is not known how the targets move. Define a "
                    "method `move_targets(targets, matrix)`."
                )
        if not entries:
            raise MisconfigurationException(
                f"Expected `preprocessing_entries` to have one that applies to these pictures of {channels} channel(s) "
                f"and their targets, but got {module.preprocessing_entries!r}. Choose others."
            )
        return entries

    def _moves_targets(self, step: HostStep, values_move: bool) -> bool:
        """Whether it is known what targets become when the picture moves."""
        if self._module.preprocessing_share == 0 or callable(getattr(self._module, "move_targets", None)):
            return True
        found = step.find_targets()
        return found is not None and stay(found[1], values_move)


def stay(targets: Any, values_move: bool) -> bool:
    """Whether targets say nothing about places: classes, or one number or vector a picture.

    Args:
        targets: What the loss compares with.
        values_move: Whether the module says that its values move with the picture.

    Example:
        >>> stay(torch.tensor([1, 2]), True), stay(torch.zeros(2, 4), False), stay(torch.zeros(2, 8, 8), False)
        (True, True, False)
    """
    if not isinstance(targets, Tensor) or targets.ndim > 2:
        return False
    return not targets.is_floating_point() or not values_move


def read_entries(names: str | list[str]) -> tuple[Perturbation, ...]:
    """The entries of a setting; those of ``"measured"`` are the typical ones until a pass has measured others.

    Raises:
        ValueError: For unknown names, or none.
    """
    if names == "none" or not names:
        raise ValueError(
            f"Expected `preprocessing_entries` of at least one entry, but got {names!r}. preprocessing_weight=0 is off."
        )
    return perturbations("typical" if names == MEASURED else names)  # type: ignore[arg-type]


def entries_of_parity(passes: Sequence[DeploymentParityCallback]) -> tuple[Perturbation, ...]:
    """The entries that parity passes will measure, which are drawn alike until the first.

    Raises:
        MisconfigurationException: If nothing will be measured.
    """
    if not passes or passes[0].perturbations == "none":
        got = "one without perturbations" if passes else "none"
        raise MisconfigurationException(
            f"Expected a DeploymentParityCallback whose passes preprocessing_entries='{MEASURED}' can follow, but got "
            f"{got}. Switch on `deployment_parity`, or name the entries."
        )
    return perturbations(passes[0].perturbations)


def check_drawn_ranges(ranges: Ranges, names: str | list[str]) -> None:
    """Refuse ranges outside of sense, and those of parameters that no entry draws.

    Raises:
        ValueError: Naming the parameter.
    """
    check_ranges(ranges)
    drawn = {PARAMETER_OF.get(entry.name) for entry in read_entries("all" if names == MEASURED else names)}
    unused = [name for name in ranges if name not in drawn]
    if unused:
        raise ValueError(
            f"Expected `preprocessing_ranges` of parameters that an entry draws, but none of {names!r} draws {unused}."
        )


def find_sensitivity(found: Mapping[str, float] | None) -> dict[str, float]:
    """Entry -> how sensitive the model was to it, of those that can be drawn and have a positive number.

    Example:
        >>> find_sensitivity({"bgr": 2.0, "gamma_09": float("nan"), "my_own": 1.0})
        {'bgr': 2.0}
    """
    known = {entry.name for entry in perturbations("all")}
    return {name: value for name, value in (found or {}).items() if name in known and 0 < value < math.inf}


def choose_entries(
    entries: Sequence[Perturbation], weights: Mapping[str, float], count: int, generator: torch.Generator
) -> list[Perturbation]:
    """Draw entries with replacement, in proportion to weights; without any, families alike and then their entries.

    Example:
        >>> from lightning_robust.deployment.pixels.catalogue import perturbations
        >>> chosen = choose_entries(perturbations(["bgr", "nv12"]), {"bgr": 1.0}, 2, torch.Generator())
        >>> [entry.name for entry in chosen]
        ['bgr', 'bgr']
    """
    known = torch.tensor([weights.get(entry.name, 0.0) for entry in entries], dtype=torch.float64)
    # a family of one entry, as the order of channels, is as common on the deployed side as one of nine filters
    sizes = Counter(entry.family for entry in entries)
    alike = torch.tensor([1 / sizes[entry.family] for entry in entries], dtype=torch.float64)
    shares = known if bool(known.any()) else alike
    return [entries[place] for place in torch.multinomial(shares, count, True, generator=generator).tolist()]


def split_entries(
    entries: Sequence[Perturbation], keeps: Callable[[Perturbation], bool]
) -> tuple[list[Perturbation], str]:
    """The entries that are kept, and the names of the others in one line.

    Example:
        >>> from lightning_robust.deployment.pixels.catalogue import perturbations
        >>> kept, left = split_entries(perturbations(["crop", "bgr"]), lambda entry: entry.motion is None)
        >>> [entry.name for entry in kept], left
        (['bgr'], 'crop')
    """
    kept = [entry for entry in entries if keeps(entry)]
    return kept, ", ".join(entry.name for entry in entries if entry not in kept)
