"""How engines are built and run: one set of settings for the callback, the commands and the functions below them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lightning_robust.checks import check_choices, check_positive
from lightning_robust.deployment.numerics.precisions import OutOfRange

Calibration = Literal["minmax", "entropy", "percentile"]
"""How the ranges of int8 are found: the extremes, the least loss of information, or all but the outermost values."""

NodeNames = list[str] | str | None
"""Names of nodes or modules, or the JSON file that holds them."""
Deployed = dict[str, str] | list[str] | str | None
"""One file that is deployed, several, or target -> file; :func:`~.deployed.deployed_files` tells the targets."""


def read_names(argument: str, names: NodeNames) -> list[str] | None:
    """The names of a list, or of a JSON file that is named in its place.

    Args:
        argument: What the error names.
        names: Names, one name, or a file ``*.json`` with a list of names or with one under ``nodes``, as
            ``keep_fp32.json`` has.

    Raises:
        ValueError: If there is no such file, or no list in it.

    Example:
        >>> read_names("keep_fp32", ["head"]), read_names("keep_fp32", "head"), read_names("keep_fp32", None)
        (['head'], ['head'], None)
    """
    if names is None or not isinstance(names, (str, Path)):
        return None if names is None else list(names)
    if Path(names).suffix != ".json":
        return [names]
    try:
        content: Any = json.loads(Path(names).read_text(encoding="utf-8"))
        found = content["nodes"] if isinstance(content, dict) else content
        if isinstance(found, list) and all(isinstance(name, str) for name in found):
            return found
        problem = f"{type(found).__name__} where the names should be"
    except (OSError, ValueError, KeyError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise ValueError(f"Expected a list of names, or one under `nodes`, in the file of `{argument}`, but got {problem}.")


@dataclass(frozen=True)
class BuildSettings:
    """How engines are built and run.

    Args:
        batch: Samples that an engine takes at a time, as it is deployed; engines are static in it.
        keep_fp32: ONNX nodes or PyTorch modules (with all in them) that stay fp32 in the emulated and built half
            precisions, or the file ``keep_fp32.json`` of an earlier run, which proposes them. None takes the list
            ``keep_fp32`` of the LightningModule, if it has one.
        exclude_int8: ONNX nodes or PyTorch modules that are not quantised in int8, or a file of them. None takes the
            list of that name of the LightningModule, if it has one.
        out_of_range: What becomes of weights beyond the range of a half precision: ``"clamp"`` takes the nearest number
            in it, as TensorRT's builder does; ``"keep"`` keeps the nodes that read them in fp32; ``"inf"`` makes them
            infinite, as ``module.half()`` does.
        tf32: Let what stays fp32 in half precision multiply in TF32, in the emulation and in the engines that are
            built. ``trtexec`` allows it unless it is called with ``--noTF32``; deploy an engine that is built likewise.
        weakly_typed: Build ``tensorrt-fp16`` with the fp16 flag of TensorRT 10, which chooses precisions itself.
        refit: Where engines can be run, set new weights in the engine of an earlier validation instead of building
            another. A refittable engine may be optimised less than the one that is deployed.
        workspace: GiB that TensorRT's builder may use for one layer; None leaves the library's own limit.
        calibration: How int8 finds its ranges.
        calibration_samples: Inputs that int8 is calibrated on, at most; training batches where there are any.
        calibration_data: An .npz with one array for each input of the graph, to calibrate on instead.
        deployed: The file that is really deployed, or several, measured beside what is built here: an ONNX file as
            ``deployed-<precision>``, an ``.engine`` as ``tensorrt-<precision>``. ``{"tensorrt-fp16": "model.plan"}``
            says which target a file is; TensorRT builds an engine of an ONNX file. The file's weights are those that it
            was made from: in a training it is measured beside weights that it may not have.
        command: Prefix of the command that starts the process of a TensorRT engine, such as
            ``["ssh", "orin", "python3"]``, to build and run on another machine; this interpreter if empty.
        cache: Folder of built engines; the user's cache folder if None.
        device: Where ``torch-fp16``, ``torch-bf16`` and engines run, e.g. ``"cuda:1"``; None takes the trainer's
            device, or the CPU without one.
        time_limit: Seconds that one engine build may take.

    Raises:
        ValueError: For a number that is not positive, an unknown choice, or a file of names that cannot be read.
    """

    batch: int = 1
    keep_fp32: NodeNames = None
    exclude_int8: NodeNames = None
    out_of_range: OutOfRange = "clamp"
    tf32: bool = False
    weakly_typed: bool = False
    refit: bool = False
    workspace: float | None = None
    calibration: Calibration = "minmax"
    calibration_samples: int = 128
    calibration_data: str | None = None
    deployed: Deployed = None
    command: list[str] = field(default_factory=list)
    cache: str | None = None
    device: str | None = None
    time_limit: float = 300.0

    def __post_init__(self) -> None:
        """Check numbers and choices, and read the names of nodes."""
        for argument in ("keep_fp32", "exclude_int8"):
            object.__setattr__(self, argument, read_names(argument, getattr(self, argument)))
        if isinstance(self.command, str) or not all(self.command):
            words = 'a list of words, such as ["ssh", "orin", "python3"]'
            raise ValueError(f"Expected argument `command` to be {words}, but got {self.command!r}")
        if self.deployed is not None and not self.deployed:
            raise ValueError(f"Expected a file in `deployed`, or None where there is none, but got {self.deployed!r}.")
        if self.calibration_data is not None and not Path(self.calibration_data).is_file():
            raise ValueError(
                f"Expected `calibration_data` to be an .npz file, but there is no {self.calibration_data}."
            )
        workspace = 1.0 if self.workspace is None else self.workspace
        check_positive(batch=self.batch, workspace=workspace, calibration_samples=self.calibration_samples)
        check_positive(time_limit=self.time_limit)
        check_choices(out_of_range=(self.out_of_range, OutOfRange), calibration=(self.calibration, Calibration))


DEFAULTS = BuildSettings()
"""What is built where nothing is asked for."""
