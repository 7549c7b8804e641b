"""How a parity pass builds and runs engines: the arguments of DeploymentParityCallback that concern nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_robust.deployment.engines import Subject
from lightning_robust.deployment.numerics.rounding import OutOfRange, check_choices


@dataclass(frozen=True)
class EngineSettings:
    """How engines are built and run.

    Args:
        max_batch: The largest batch that engines are built for.
        weakly_typed: Build ``tensorrt-fp16`` with the fp16 flag of TensorRT 10, which chooses precisions itself.
        keep_fp32: ONNX nodes or PyTorch modules (with all in them) that stay fp32 in the emulated and built half
            precisions; ``keep_fp32.json`` of an earlier run proposes them. None takes the list ``keep_fp32`` of the
            LightningModule, if it has one.
        out_of_range: What becomes of weights beyond the range of a half precision: ``"clamp"`` takes the nearest number
            in it, as TensorRT's builder does; ``"keep"`` keeps the nodes that read them in fp32; ``"inf"`` makes them
            infinite, as ``module.half()`` does.
        tf32: Let what stays fp32 in half precision multiply in TF32, in the emulation and in the engines that are
            built. ``trtexec`` allows it unless it is called with ``--noTF32``; deploy an engine that is built likewise.
        refit: Where engines can be run, set new weights in the engine of an earlier validation instead of building
            another. A refittable engine may be optimised less than the one that is deployed.
        background: During ``fit``, build and run engines while training goes on. Their numbers arrive at a later
            validation or when training ends, with the step whose weights they belong to in ``parity/<target>/step``; do
            not let a checkpoint be chosen by them.
        perturb_targets: Run every target that is measured on the perturbed inputs too:
            ``sensitivity/<perturbation>/<target>/<unit>``.

    Raises:
        ValueError: For a batch without samples, or another choice for weights beyond the range.
    """

    max_batch: int = 16
    weakly_typed: bool = False
    keep_fp32: list[str] | None = None
    out_of_range: OutOfRange = "clamp"
    tf32: bool = False
    refit: bool = False
    background: bool = False
    perturb_targets: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_positive(max_batch=self.max_batch)
        check_choices(out_of_range=(self.out_of_range, OutOfRange))

    def subject(self, module: nn.Module, example: tuple[Any, ...], device: str, time_limit: float) -> Subject:
        """A module and its samples with these settings."""
        return Subject(
            module,
            example,
            max_batch=self.max_batch,
            device=device,
            time_limit=time_limit,
            weakly_typed=self.weakly_typed,
            refit=self.refit,
            keep_fp32=None if self.keep_fp32 is None else tuple(self.keep_fp32),
            out_of_range=self.out_of_range,
            tf32=self.tf32,
        )


def check_positive(**values: float) -> None:
    """Refuse arguments that are zero or negative.

    Raises:
        ValueError: Naming the argument.
    """
    for name, value in values.items():
        if value <= 0:
            raise ValueError(f"Expected `{name}` to be positive, but got {value}.")
