"""Golden tensors: the network's inputs and outputs in training, to check a dump of the deployed side against.

The deployed side feeds its own pictures of the same frames, or the golden inputs, and dumps inputs, outputs or both.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_robust.arrays import read_arrays
from lightning_robust.checks import check_file
from lightning_robust.complaints import one_line
from lightning_robust.deployment.engines import BuildSettings, Runtime, Subject, run_module
from lightning_robust.deployment.engines.execution import execute
from lightning_robust.deployment.engines.settings import DEFAULTS
from lightning_robust.deployment.fingerprint.search import fingerprint
from lightning_robust.deployment.fingerprint.words import Fingerprint
from lightning_robust.deployment.golden_arrays import ARGUMENTS, arguments_of, match_arrays, structure_of, to_tensor
from lightning_robust.deployment.graph.frozen import to_args
from lightning_robust.deployment.parity.distance import compare_outputs
from lightning_robust.deployment.parity.readout import Readout
from lightning_robust.deployment.parity.scale import Decode, Scale
from lightning_robust.deployment.pixels.layout import layout_of
from lightning_robust.rows import count_rows, take_rows
from lightning_robust.structures import flatten, map_tensors

Arrays = Mapping[str, NDArray[Any]]
_PREFIXES = ("input/", "output/")
_METADATA = "metadata"


@dataclass(frozen=True)
class Golden:
    """The inputs and outputs of a network.

    Args:
        inputs: Name -> samples as ``forward`` takes them, ``(N, ...)``.
        outputs: Name -> what PyTorch in fp32 computes from them.
        metadata: Plain values, e.g. versions, the checkpoint, ``mean`` and ``std`` of the pixels.
    """

    inputs: Arrays
    outputs: Arrays
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GoldenReport:
    """How a dump of the deployed side differs from the golden tensors.

    Args:
        pictures: Input -> how the deployed pictures differ from training's.
        inputs: Input -> distances of the deployed input to training's, from :func:`~.distance.compare_outputs`.
        whole: Distance of the deployed outputs to the golden ones; empty if none were dumped.
        preprocessing: The part that the deployed inputs alone cause in PyTorch; empty if none were dumped, or without
            a module.
        engine: The part between PyTorch on the deployed inputs (on the golden ones if none were dumped) and the
            deployed outputs.
        unit: The metric that :meth:`sentence` quotes: the first decoded value's p99, else ``rel_l2``.
        notes: Lines that a reader should see.
    """

    pictures: dict[str, Fingerprint]
    inputs: dict[str, dict[str, float]]
    whole: dict[str, float]
    preprocessing: dict[str, float]
    engine: dict[str, float]
    unit: str
    notes: tuple[str, ...] = ()

    def sentence(self) -> str:
        """How much of the distance comes from where; empty if no part is known."""
        parts = {"input": self.preprocessing, "engine": self.engine}
        shares = {name: metrics[self.unit] for name, metrics in parts.items() if metrics}
        if self.whole:
            split = ", ".join(f"{value:.3g} come from the {name}" for name, value in shares.items())
            whole = f"The deployed outputs are {self.whole[self.unit]:.3g} {self.unit} away"
            return f"{whole}: {split}." if split else f"{whole}."
        if "input" in shares:
            return f"The deployed inputs alone move PyTorch's outputs by {shares['input']:.3g} {self.unit}."
        return ""


def make_golden(module: nn.Module, args: tuple[Any, ...], metadata: Mapping[str, Any] | None = None) -> Golden:
    """Run a module in fp32 on the CPU on samples and keep its inputs and outputs.

    Args:
        module: In evaluation mode, from :func:`~.export.frozen_copy`.
        args: Positional arguments of its ``forward``.
        metadata: Stored as it is.

    Example:
        >>> golden = make_golden(torch.nn.Linear(2, 1).eval(), (torch.ones(3, 2),))
        >>> golden.inputs["input"].shape, golden.outputs["output"].shape
        ((3, 2), (3, 1))
    """
    with torch.no_grad():
        outputs = flatten(module(*map_tensors(Tensor.clone, args)))
    inputs = flatten(args[0] if len(args) == 1 else args, "input")
    # tensors alone are their own structure
    nested = {} if all(isinstance(each, Tensor) for each in args) else {ARGUMENTS: structure_of(args)}
    return Golden(_to_arrays(inputs), _to_arrays(outputs), {**(metadata or {}), **nested})


def write_golden(golden: Golden, path: str | Path) -> None:
    """Write an .npz file: ``input/<name>``, ``output/<name>`` and ``metadata``, a JSON text. No pickles."""
    arrays = {f"input/{name}": array for name, array in golden.inputs.items()}
    arrays |= {f"output/{name}": array for name, array in golden.outputs.items()}
    text = np.array(json.dumps(dict(golden.metadata)))
    with Path(path).open("wb") as stream:
        np.savez_compressed(stream, **arrays, **{_METADATA: text})  # type: ignore[arg-type]


def read_golden(path: str | Path) -> Golden:
    """Read what :func:`write_golden` wrote, or a dump of the deployed side: the same names, inputs, outputs or both.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no .npz file, or holds none of these names.
    """
    check_file("golden tensors", path)
    content = read_arrays(path, "an .npz file of arrays")
    arrays = content if isinstance(content, dict) else {}
    metadata = _read_metadata(str(arrays.pop(_METADATA)), path) if _METADATA in arrays else {}
    sides = [{n.removeprefix(p): a for n, a in arrays.items() if n.startswith(p)} for p in _PREFIXES]
    if not any(sides):
        raise ValueError(
            f"Expected arrays named input/<name> and output/<name> in {path}, but got {sorted(arrays)[:8]}. "
            "Write them under the names of the golden file."
        )
    return Golden(sides[0], sides[1], metadata)


def _read_metadata(text: str, path: str | Path) -> dict[str, Any]:
    try:
        metadata = json.loads(text)
    except ValueError:
        metadata = None
    if not isinstance(metadata, dict):
        raise ValueError(
            f"Expected `{_METADATA}` in {path} to be a mapping in JSON, as the golden file has it, but got "
            f"{text[:60]!r}. A dump needs none: leave it out."
        )
    return metadata


def check_golden(
    golden: Golden, dumped: Golden, module: nn.Module | None = None, decode: Decode | None = None
) -> GoldenReport:
    """Compare a dump of the deployed side: its inputs, its engine, and how far each of them moves the outputs.

    Args:
        golden: From training.
        dumped: From the deployed side, for the same samples in the same order.
        module: In evaluation mode, to separate inputs and engine; without it only the whole distance is known.
        decode: Turns outputs into named values in the task's own units.

    Raises:
        ValueError: If the dump has a name, shape or type that the golden file does not have.
    """
    notes: list[str] = []
    inputs = match_arrays(golden.inputs, dumped.inputs, "input", notes)
    outputs = match_arrays(golden.outputs, dumped.outputs, "output", notes)
    one = _arguments(golden, {name: array[:1] if array.ndim else array for name, array in golden.inputs.items()})
    scale = Scale(module, one, decode)
    exact = _read(scale, golden.outputs)
    # an output that was not dumped counts as right, an input that was not dumped is the golden one
    deployed = _read(scale, {**golden.outputs, **outputs}) if outputs else None
    predicted = _predict(scale, module, _arguments(golden, {**golden.inputs, **inputs})) if inputs else None
    return GoldenReport(
        _fingerprints(golden, inputs, notes),
        {name: compare_outputs([to_tensor(golden.inputs[name])], [to_tensor(a)]) for name, a in inputs.items()},
        _distance_between(exact, deployed),
        _distance_between(exact, predicted),
        _distance_between(predicted if inputs else exact, deployed),
        exact.unit,
        tuple(notes),
    )


def check_targets(
    golden: Golden,
    module: nn.Module,
    runtimes: Iterable[Runtime],
    settings: BuildSettings = DEFAULTS,
    decode: Decode | None = None,
    calibration: tuple[Any, ...] | None = None,
) -> dict[str, GoldenReport | str]:
    """Run the golden inputs through each runtime, and compare its outputs as a dump of the deployed side.

    Args:
        golden: From training.
        module: In evaluation mode.
        runtimes: From :func:`~.engines.targets.available`.
        settings: How engines are built and run.
        decode: As for :func:`check_golden`.
        calibration: Training inputs that int8 finds its ranges on; the golden ones if None.

    Returns:
        Target -> the comparison, or why there is none.
    """
    args = _arguments(golden, golden.inputs)
    count = count_rows(args)
    two = take_rows(args, torch.arange(max(count, 2)) % count, count)  # of a single sample no batch can be told
    subject = Subject(module, two, settings, calibration)
    return {made.name: _check_target(golden, subject, made, count, decode) for made in runtimes}


def _check_target(
    golden: Golden, subject: Subject, made: Runtime, count: int, decode: Decode | None
) -> GoldenReport | str:
    execution = execute(made, subject)
    if execution.status != "measured":
        return f"{execution.status}: {execution.note}"
    pairs = zip(golden.outputs.items(), execution.outputs, strict=True)
    outputs = {name: _rows_like(array, tensor, count) for (name, array), tensor in pairs}
    try:
        report = check_golden(golden, Golden({}, outputs), subject.module, decode)
    except ValueError as error:
        return f"failed: {one_line(error)}"
    return replace(report, notes=(*report.notes, *filter(None, [execution.note])))


def _rows_like(golden: NDArray[Any], tensor: Tensor, count: int) -> NDArray[Any]:
    """The samples that the golden file has, floats in its type."""
    rows = tensor[:count] if tensor.ndim else tensor
    return (rows.to(to_tensor(golden).dtype) if rows.is_floating_point() else rows).numpy()


def _arguments(golden: Golden, inputs: Arrays) -> tuple[Any, ...]:
    return arguments_of(golden.metadata.get(ARGUMENTS), [to_tensor(array) for array in inputs.values()])


def _predict(scale: Scale, module: nn.Module | None, args: tuple[Any, ...]) -> Readout | None:
    """What PyTorch computes from the deployed inputs."""
    if module is None:
        return None
    return scale.read(run_module(module, to_args(args, torch.float32)))


def _read(scale: Scale, arrays: Arrays) -> Readout:
    return scale.read([to_tensor(array) for array in arrays.values()])


def _distance_between(reference: Readout | None, deployed: Readout | None) -> dict[str, float]:
    return {} if reference is None or deployed is None else reference.distance(deployed)


def _fingerprints(golden: Golden, inputs: Arrays, notes: list[str]) -> dict[str, Fingerprint]:
    """How the deployed pictures differ; those that no fingerprint can be taken of are left out, with a note."""
    mean, std = golden.metadata.get("mean"), golden.metadata.get("std")
    found = {}
    for name, deployed in inputs.items():
        layout = layout_of(deployed.shape)
        if layout is not None:
            trained, other = (layout.pictures(to_tensor(array)) for array in (golden.inputs[name], deployed))
            try:
                found[name] = fingerprint(trained, other, mean=mean, std=std)
            except (ValueError, TypeError) as error:
                notes.append(f"What differs in the pictures of input {name!r} is not named: {error}")
    return found


def _to_arrays(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
