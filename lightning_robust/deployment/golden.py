"""Golden tensors: what goes into the network and what comes out, for the car to replay, and what its dump says.

The car feeds its own pictures of the same frames, or the golden inputs themselves, and dumps inputs, outputs or both
under the same names. Which files are read and written is the command's business.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_robust.deployment.engines import run_module
from lightning_robust.deployment.fingerprint.search import fingerprint
from lightning_robust.deployment.fingerprint.words import Fingerprint
from lightning_robust.deployment.parity.distance import compare, compare_decoded
from lightning_robust.structures import flatten, rebuild

Arrays = Mapping[str, NDArray[Any]]
Decode = Callable[[Any], Mapping[str, Tensor]]
_PREFIXES = ("input/", "output/")
_METADATA = "metadata"


@dataclass(frozen=True)
class Golden:
    """What training feeds and gets.

    Args:
        inputs: Name -> samples as ``forward`` takes them, ``(N, ...)``.
        outputs: Name -> what PyTorch in fp32 made of them.
        metadata: Plain values, e.g. versions, the checkpoint, ``mean`` and ``std`` of the pixels.
    """

    inputs: Arrays
    outputs: Arrays
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GoldenReport:
    """What a dump of the car says.

    Args:
        pictures: Input -> what differs between training's pictures and the car's.
        inputs: Input -> distances of the car's input to training's, from :func:`~.compare.compare`.
        whole: Distance of the car's outputs to the golden ones; empty where the car dumped none.
        preprocessing: The part that its inputs alone make in PyTorch; empty where it dumped none, or without a module.
        engine: The part between PyTorch on the car's inputs (on the golden ones where it dumped none) and the car's
            outputs.
        unit: Metric in which the parts are told: the first decoded value's p99, else ``rel_l2``.
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
        """How much of the distance comes from where."""
        parts = {"input": self.preprocessing.get(self.unit), "engine": self.engine.get(self.unit)}
        told = [f"{value:.3g} come from the {name}" for name, value in parts.items() if value is not None]
        if not self.whole:
            return (
                f"The car's inputs alone move PyTorch's outputs by {told[0].split(' ')[0]} {self.unit}." if told else ""
            )
        return f"The car's outputs are {self.whole[self.unit]:.3g} {self.unit} away" + (
            f": {', '.join(told)}." if told else "."
        )


def make_golden(module: nn.Module, args: tuple[Any, ...], metadata: Mapping[str, Any] | None = None) -> Golden:
    """Run a module in fp32 on the CPU on samples and keep both sides.

    Args:
        module: In evaluation mode, from :func:`~.export.frozen_copy`.
        args: Positional arguments of its ``forward``.
        metadata: Kept as it is.

    Example:
        >>> golden = make_golden(torch.nn.Linear(2, 1).eval(), (torch.ones(3, 2),))
        >>> golden.inputs["input"].shape, golden.outputs["output"].shape
        ((3, 2), (3, 1))
    """
    with torch.no_grad():
        outputs = flatten(module(*args))
    inputs = {name: tensor.numpy() for name, tensor in _named(args).items()}
    return Golden(inputs, {name: tensor.cpu().numpy() for name, tensor in outputs.items()}, dict(metadata or {}))


def write_golden(golden: Golden, path: str | Path) -> None:
    """Write an .npz file: ``input/<name>``, ``output/<name>`` and ``metadata``, a JSON text. No pickles."""
    arrays = {f"input/{name}": array for name, array in golden.inputs.items()}
    arrays |= {f"output/{name}": array for name, array in golden.outputs.items()}
    text = np.array(json.dumps(dict(golden.metadata)))
    with Path(path).open("wb") as stream:
        np.savez_compressed(stream, **arrays, **{_METADATA: text})  # type: ignore[arg-type]


def read_golden(path: str | Path) -> Golden:
    """Read what :func:`write_golden` wrote, or a dump of the car's: the same names, inputs or outputs or both.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no .npz file, or holds none of these names.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Expected golden tensors at {path}, but there is no such file.")
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except Exception as error:
        raise ValueError(f"Expected an .npz file of arrays at {path}, but got: {error}.") from error
    metadata = json.loads(str(arrays.pop(_METADATA))) if _METADATA in arrays else {}
    sides = [{n.removeprefix(p): a for n, a in arrays.items() if n.startswith(p)} for p in _PREFIXES]
    if not any(sides):
        raise ValueError(
            f"Expected arrays named input/<name> and output/<name> in {path}, but got {sorted(arrays)[:8]}. "
            "Write them under the names of the golden file."
        )
    return Golden(sides[0], sides[1], metadata)


def check_golden(
    golden: Golden, dumped: Golden, module: nn.Module | None = None, decode: Decode | None = None
) -> GoldenReport:
    """Say what the car does differently: its inputs, its engine, and how much each of them moves the outputs.

    Args:
        golden: From training.
        dumped: From the car, for the same samples in the same order.
        module: In evaluation mode, to tell inputs and engine apart; without it only the whole is known.
        decode: Turns outputs into named values in the task's own units.

    Raises:
        ValueError: If the dump has a name, shape or type that the golden file has not.
    """
    notes: list[str] = []
    car_inputs = _matched(golden.inputs, dumped.inputs, "input", notes)
    car_outputs = _matched(golden.outputs, dumped.outputs, "output", notes)
    pictures = {
        name: fingerprint(golden.inputs[name], array, mean=golden.metadata.get("mean"), std=golden.metadata.get("std"))
        for name, array in car_inputs.items()
        if array.ndim == 4 and array.shape[1] in (1, 3)
    }
    scale = _Scale(golden, module, decode)
    outputs = scale.complete(car_outputs) if car_outputs else []
    # what PyTorch makes of the car's inputs; of none dumped, the golden outputs
    between = (scale.run(car_inputs) if module is not None else []) if car_inputs else scale.golden
    return GoldenReport(
        pictures,
        {name: compare([_tensor(golden.inputs[name])], [_tensor(array)]) for name, array in car_inputs.items()},
        scale.distance(scale.golden, outputs) if outputs else {},
        scale.distance(scale.golden, between) if car_inputs and between else {},
        scale.distance(between, outputs) if outputs and between else {},
        scale.unit,
        tuple(notes),
    )


class _Scale:
    """Distances between sets of outputs, in the task's units where there is a `decode`."""

    def __init__(self, golden: Golden, module: nn.Module | None, decode: Decode | None) -> None:
        self.golden = [_tensor(array) for array in golden.outputs.values()]
        self._names = list(golden.outputs)
        self._inputs, self._module = golden.inputs, module
        self._template: Any = None
        self._decode = decode
        if module is not None:
            with torch.no_grad():
                self._template = module(*(_tensor(array)[:1] for array in golden.inputs.values()))
        decoded = self._decoded(self.golden)
        floating = [name for name, value in decoded.items() if value.is_floating_point()]
        self.unit = f"{floating[0]}_p99" if floating else "rel_l2"

    def run(self, inputs: Arrays) -> list[Tensor]:
        """PyTorch on the car's inputs; one that the car did not dump is the golden one."""
        if self._module is None:
            return []
        args = tuple(_tensor(inputs.get(name, array)).float() for name, array in self._inputs.items())
        return run_module(self._module, args)

    def complete(self, outputs: Arrays) -> list[Tensor]:
        """All outputs; one that the car did not dump counts as right."""
        return [_tensor(outputs[n]) if n in outputs else g for n, g in zip(self._names, self.golden, strict=True)]

    def distance(self, reference: list[Tensor], outputs: list[Tensor]) -> dict[str, float]:
        return compare(reference, outputs) | compare_decoded(self._decoded(reference), self._decoded(outputs))

    def _decoded(self, outputs: list[Tensor]) -> dict[str, Tensor]:
        if self._decode is None or self._template is None:
            return {}
        return dict(self._decode(rebuild(self._template, iter(outputs))))


def _matched(golden: Arrays, dumped: Arrays, side: str, notes: list[str]) -> dict[str, NDArray[Any]]:
    """The car's arrays, in the golden order and as floating where the golden ones are; refuses what does not fit."""
    unknown = sorted(set(dumped) - set(golden))
    if unknown:
        raise ValueError(f"Expected {side}s named {sorted(golden)}, but got {unknown}. Rename them in the dump.")
    matched = {}
    for name, array in golden.items():
        if name in dumped:
            _check_shape(name, side, array.shape, dumped[name].shape)
            matched[name] = _as_type_of(array, dumped[name], f"{side} {name!r}", notes)
    if dumped and len(matched) < len(golden):
        notes.append(f"The car did not dump the {side}s {sorted(set(golden) - set(matched))}.")
    return matched


def _check_shape(name: str, side: str, wanted: tuple[int, ...], got: tuple[int, ...]) -> None:
    if wanted == got:
        return
    advice = "Dump the same samples, one for one."
    if len(wanted) == len(got) == 4 and got == (wanted[0], wanted[2], wanted[3], wanted[1]):
        advice = "Its channels come last: transpose(0, 3, 1, 2)."
    elif len(got) == len(wanted) - 1 and got == wanted[1:]:
        advice = "The dimension of samples is missing: array[None], or stack all frames."
    elif wanted[1:] == got[1:]:
        advice = f"It holds {got[0]} samples instead of {wanted[0]}."
    raise ValueError(f"Expected {side} {name!r} of shape {wanted}, but got {got}. {advice}")


def _as_type_of(golden: NDArray[Any], dumped: NDArray[Any], what: str, notes: list[str]) -> NDArray[Any]:
    if dumped.dtype == golden.dtype:
        return dumped
    if np.issubdtype(golden.dtype, np.floating) and np.issubdtype(dumped.dtype, np.floating):
        notes.append(f"The car dumped {what} as {dumped.dtype}; it was compared as {golden.dtype}.")
        return dumped.astype(golden.dtype)
    raise ValueError(
        f"Expected {what} as {golden.dtype}, but got {dumped.dtype}. Dump the tensor that the engine takes or gives, "
        "after normalisation."
    )


def _named(args: tuple[Any, ...]) -> dict[str, Tensor]:
    return flatten(args[0] if len(args) == 1 else args, "input")


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
