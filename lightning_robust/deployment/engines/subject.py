"""The model that engines are built from, and its ONNX graph."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

from torch import nn

from lightning_robust.deployment.engines.int8 import Calibrated, calibrate_graph, quantise_graph
from lightning_robust.deployment.engines.settings import DEFAULTS, BuildSettings, read_names
from lightning_robust.deployment.graph.export import Exported, export
from lightning_robust.deployment.graph.lint import HALF_RULES, Finding, lint
from lightning_robust.deployment.numerics.quantise import Quantised
from lightning_robust.rows import count_rows, take_rows
from lightning_robust.suggest import did_you_mean

_Made = TypeVar("_Made")
CHUNK = 16
"""Samples that are exported, and run at a time where memory is all that counts."""


@dataclass
class Subject:
    """A model under examination, and the settings that its engines share.

    Args:
        module: An fp32 copy on the CPU in evaluation mode, from :func:`~.export.frozen_copy`.
        example: Positional arguments of its ``forward``, a batch of at least 2 for a graph of any number of samples.
        settings: How engines are built and run.
        calibration: Positional arguments of ``forward`` that int8 finds its ranges on, a training's inputs, unless the
            settings name a file; None takes the example.
        exporter: :func:`~.export.export`, or a :class:`~.keeper.GraphKeeper`'s method, which is quicker at the second
            of several subjects that differ in their weights.
    """

    module: nn.Module
    example: tuple[Any, ...]
    settings: BuildSettings = DEFAULTS
    calibration: tuple[Any, ...] | None = None
    exporter: Callable[..., Exported] = export
    reference: ClassVar[str | None] = None
    """The name of its own outputs where they are the only reference; None compares with PyTorch in fp64."""
    _exported: Exported | None = field(default=None, init=False, repr=False, compare=False)
    _error: Exception | None = field(default=None, init=False, repr=False, compare=False)
    _int8: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def kept(self) -> tuple[str, ...]:
        """What stays fp32 in half precision, as the settings say or else the module."""
        return self._named("keep_fp32")

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return count_rows(self.example)

    @property
    def deployed_batch(self) -> int:
        """How many samples one inference takes: the one batch of the graph where it is fixed, else the settings'."""
        fixed = None if self._exported is None else self._exported.batch
        return self.settings.batch if fixed is None else fixed

    def rows(self, window: slice) -> tuple[Any, ...]:
        """Some of the samples, as positional arguments of ``forward``."""
        rows: tuple[Any, ...] = take_rows(self.example, window, self.samples)
        return rows

    def keeping(self, names: Iterable[str]) -> Subject:
        """The same subject and the same graph, with more nodes or modules in fp32."""
        return self.keeping_only((*self.kept, *names))

    def keeping_only(self, names: Iterable[str]) -> Subject:
        """The same subject and the same graph, with these nodes or modules in fp32 and no others."""
        other = copy.copy(self)
        other.settings = replace(self.settings, keep_fp32=list(names))
        return other

    @property
    def exported(self) -> Exported:
        """The ONNX graph, exported at the first use. A failed export is not tried again.

        Raises:
            ExportError: If the module cannot be exported.
        """
        if self._error is not None:
            raise self._error
        if self._exported is None:
            try:
                self._exported = self.exporter(
                    self.module, self.rows(slice(CHUNK)), max_batch=max(CHUNK, self.settings.batch)
                )
            except Exception as error:
                self._error = error
                raise
        return self._exported

    @property
    def calibrated(self) -> Calibrated:
        """The ranges that int8 needs, found at the first use. A failure is not repeated.

        Raises:
            ValueError: As :func:`~.int8.calibrate_graph`.
        """
        return self._once("calibrated", self._calibrate)

    @property
    def quantised(self) -> Quantised:
        """The graph in int8 that all int8 engines take, made at the first use. A failure is not repeated.

        Raises:
            ExportError: If the module cannot be exported.
            ValueError: If nothing can be calibrated, the graph cannot be quantised, or a name in `exclude_int8` is
                unknown.
        """
        return self._once("quantised", self._quantise)

    def excluding_only(self, names: Iterable[str]) -> Subject:
        """The same subject, graph and ranges, with these nodes or modules not in int8 and no others."""
        other = copy.copy(self)
        other.settings = replace(self.settings, exclude_int8=list(names))
        other._int8 = {key: made for key, made in self._int8.items() if key != "quantised"}
        return other

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of its numbers should know of the graph; nothing before a runtime has asked for the graph."""
        return () if self._exported is None else self._exported.notes

    def fp32_nodes(self) -> tuple[str, ...]:
        """The nodes that :attr:`kept` names, in the graph's order.

        Raises:
            ValueError: If a name is neither a node's nor a module's; the message names the nearest.
        """
        return self._nodes("keep_fp32")

    def excluded_nodes(self) -> tuple[str, ...]:
        """The nodes that `exclude_int8` of the settings names, or else of the module, in the graph's order.

        Raises:
            ValueError: If a name is neither a node's nor a module's; the message names the nearest.
        """
        return self._nodes("exclude_int8")

    def _calibrate(self) -> Calibrated:
        return calibrate_graph(self.exported, self.settings, self.calibration, self.example)

    def _quantise(self) -> Quantised:
        excluded = self.excluded_nodes()  # a wrong name shows before the calibration
        return quantise_graph(self.exported, self.calibrated, excluded)

    def _once(self, name: str, make: Callable[[], _Made]) -> _Made:
        """What was made under this name before, or the error that came of it."""
        if name not in self._int8:
            try:
                self._int8[name] = make()
            except Exception as error:
                self._int8[name] = error
        made = self._int8[name]
        if isinstance(made, Exception):
            raise made
        result: _Made = made
        return result

    def _nodes(self, setting: str) -> tuple[str, ...]:
        """The nodes that a list of the settings or the module names, in the graph's order."""
        exported = self.exported
        nodes = [node.name for node in exported.model.graph.node]
        modules = {node: exported.origins[node].module for node in nodes if node in exported.origins}
        matches: set[str] = set()
        for name in self._named(setting):
            matches |= _match_nodes(name, nodes, modules, setting)
        return tuple(node for node in nodes if node in matches)

    def _named(self, setting: str) -> tuple[str, ...]:
        """A list of the settings, or else of the module."""
        names = getattr(self.settings, setting)
        given = read_names(setting, getattr(self.module, setting, None)) if names is None else names
        return tuple(given or ())

    def findings(self) -> tuple[Finding, ...]:
        """What :func:`~.lint.lint` finds in the graph; nothing before a runtime has asked for the graph.

        What fp16 alone would do to a node that stays fp32 is left out.
        """
        exported = self._exported
        if exported is None:
            return ()
        kept = set(self.fp32_nodes())
        found = lint(exported.model, exported.origins)
        return tuple(finding for finding in found if finding.node not in kept or finding.rule not in HALF_RULES)


def _match_nodes(name: str, nodes: list[str], modules: dict[str, str], setting: str) -> set[str]:
    """The node of this name, else all nodes of the module with this path."""
    if name in nodes:
        return {name}
    inside = {node for node, path in modules.items() if path == name or path.startswith(f"{name}.")}
    if not inside:
        hint = did_you_mean(name, [*nodes, *modules.values()])
        raise ValueError(f"Expected nodes or modules in `{setting}`, but got {name!r}.{hint}")
    return inside
