"""The int8 graph of a subject, shared by all its int8 engines: what it is calibrated on, and its notes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_robust.deployment.engines.settings import BuildSettings
from lightning_robust.deployment.graph.export import Exported
from lightning_robust.deployment.graph.frozen import named_inputs, to_args
from lightning_robust.deployment.graph.inputs import check_inputs, read_inputs
from lightning_robust.deployment.numerics.calibration import Ranges, calibrate
from lightning_robust.deployment.numerics.quantise import (
    Quantised,
    is_quantised,
    operands,
    quantise_products,
    take_quantised,
)


@dataclass(frozen=True)
class Calibrated:
    """The ranges of a graph, whatever is quantised in it.

    Args:
        ranges: Of every tensor that a product reads; empty for a graph that was quantised already.
        note: What they were found on.
    """

    ranges: Ranges
    note: str


def calibrate_graph(
    exported: Exported, settings: BuildSettings, calibration: tuple[Any, ...] | None, example: tuple[Any, ...]
) -> Calibrated:
    """Find the ranges of a graph on the file that the settings name, else on a training's inputs, else on the example.

    Args:
        exported: The graph.
        settings: What to calibrate on, how, and on how many samples.
        calibration: Positional arguments of ``forward``, from training; None if there are none.
        example: Positional arguments of ``forward`` that engines are measured on.

    Raises:
        FileNotFoundError: If the file is not there.
        ValueError: If its arrays are not what the graph takes; for NaN in the inputs; if the graph cannot be followed.
    """
    if is_quantised(exported.model):
        return Calibrated({}, "")
    path = settings.calibration_data
    if path is not None:
        arrays, origin = read_inputs(path), f"samples of {Path(path).name}"
        check_inputs(exported.model, arrays)
        arrays = {name: arrays[name] for name in exported.inputs if name in arrays}
    else:
        origin = "samples it is measured on" if calibration is None else "training samples"
        args = to_args(example if calibration is None else calibration, torch.float32)
        tensors = named_inputs(args).values()
        arrays = {name: tensor.detach().numpy() for name, tensor in zip(exported.inputs, tensors, strict=True)}
    arrays, count = _first(arrays, settings.calibration_samples)
    graph, names = operands(exported.model)
    ranges = calibrate(graph, arrays, names, settings.calibration)
    return Calibrated(ranges, f"calibrated by {settings.calibration} on {count} {origin}")


def quantise_graph(exported: Exported, calibrated: Calibrated, exclude: Collection[str]) -> Quantised:
    """The graph in int8; one that holds Q/DQ already is taken as it is.

    Raises:
        ValueError: For Q/DQ with scales that mean nothing, or a graph that the quantiser refuses.
    """
    if is_quantised(exported.model):
        return take_quantised(exported.model)
    return quantise_products(exported.model, calibrated.ranges, exclude)


def describe_int8(quantised: Quantised, calibrated: Calibrated) -> str:
    """What is quantised in an int8 graph, and what it is calibrated on.

    Raises:
        ValueError: If nothing is quantised, for what is measured then is fp32.
    """
    if not quantised.nodes:
        raise ValueError(
            f"Expected products to quantise, but got {'; '.join(quantised.notes)}. Measure the fp32 graph."
        )
    return ", ".join(filter(None, [*quantised.notes, calibrated.note]))


def _first(arrays: dict[str, NDArray[np.generic]], most: int) -> tuple[dict[str, NDArray[np.generic]], int]:
    """The first samples of a graph's inputs, and how many these are."""
    count = next((len(array) for array in arrays.values() if array.ndim), 1)
    if count <= most:
        return arrays, count
    batched = {name for name, array in arrays.items() if array.ndim and len(array) == count}
    return {name: array[:most] if name in batched else array for name, array in arrays.items()}, most
