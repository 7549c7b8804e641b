"""What an attack climbs in a LightningModule, and which part of a batch it perturbs in which units."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_robust.functional.pixels import PixelSpace
from lightning_robust.functional.weights import channels_last
from lightning_robust.harness.normalisation import pixel_space
from lightning_robust.harness.quiet import quietly
from lightning_robust.structures import Key, get_args, loss_in, map_tensors, replace_items, take_rows

AttackPrecision = Literal["bf16", "32", "same"]
Perturb = Callable[[Callable[..., Tensor], Tensor, Tensor], Tensor]
"""Takes the loss of perturbed inputs (and, as a second argument, of which rows of the batch they are), these inputs and
radii; gives the perturbed inputs."""


class NoLossError(ValueError):
    """A batch for which the module gives no loss, as a training step that returns None to leave it out."""


class AttackInputs:
    """The parts of a batch that are perturbed, as one tensor in units of pixels in [0, 1].

    Args:
        keys: Their positions or names.
        mean: Mean that pixels were normalised with; None takes the data module's.
        std: Standard deviation likewise.
        bounds: Smallest and largest pixel; ``"pixels"`` is [0, 1], ``"none"`` takes inputs as they are.
    """

    def __init__(
        self,
        keys: list[Key],
        mean: float | list[float] | None,
        std: float | list[float] | None,
        bounds: list[float] | Literal["pixels", "none"],
    ) -> None:
        limits = [0.0, 1.0] if bounds == "pixels" else bounds
        if isinstance(limits, list) and (len(limits) != 2 or not limits[0] < limits[1]):
            raise ValueError(f"Expected `bounds` as [smallest, largest], 'pixels' or 'none', but got {bounds}.")
        self.keys, self.mean, self.std = keys, mean, std
        self.bounds = limits if isinstance(limits, list) else None
        self.pixels: PixelSpace | None = None
        self.find_normalisation(None)

    @property
    def range(self) -> tuple[float, float] | None:
        """What the perturbed tensor may hold."""
        return None if self.bounds is None else (0.0, 1.0)

    def find_normalisation(self, trainer: pl.Trainer | None) -> None:
        """Take from the data module what was not given."""
        if self.bounds is None:
            return
        self.pixels = pixel_space(trainer, self.mean, self.std, *self.bounds)

    def read(self, batch: Any) -> list[Tensor]:
        """The inputs, checked.

        Raises:
            TypeError: If they are not floating point.
            ValueError: If they were not normalised as stated.
        """
        inputs = list(get_args(batch, self.keys))
        for key, part in zip(self.keys, inputs, strict=True):
            if not isinstance(part, Tensor) or not part.is_floating_point():
                kind = part.dtype if isinstance(part, Tensor) else type(part).__name__
                raise TypeError(
                    f"Expected a floating-point tensor at input_key={key!r} to perturb, but got {kind}. For token "
                    "indices set `embedding` to the module that embeds them; scale 8-bit pictures with / 255."
                )
            if self.pixels is not None and part.ndim >= 3:
                self.pixels.check(part)
        return inputs

    def to_pixels(self, part: Tensor) -> Tensor:
        """In units of the perturbation."""
        return part if self.pixels is None else self.pixels.to_pixels(part).clamp(0, 1)

    def from_pixels(self, part: Tensor) -> Tensor:
        """In units of the network."""
        return part if self.pixels is None else self.pixels.from_pixels(part)


class AttackObjective:
    """The loss of one batch as a function of its inputs.

    Args:
        trainer: The Trainer.
        pl_module: The module.
        step: Its training step on a batch.
        batch: The batch; never changed.
        inputs: What of it is perturbed.
        precision: In which arithmetic the attack runs.
        stage: What the Trainer says it is doing; an ``attack_loss`` may climb something else in training.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        step: Callable[[Any], Any],
        batch: Any,
        inputs: AttackInputs,
        precision: AttackPrecision,
        stage: Literal["training", "validating"] = "training",
    ) -> None:
        self.stage = stage
        self.trainer, self.module, self.step, self.inputs = trainer, pl_module, step, inputs
        # tensors of inference mode cannot take part in autograd
        self.batch = map_tensors(_outside_inference, batch)
        self.precision = precision
        self._in_bf16 = precision == "bf16" and computes_in_bf16(pl_module.device)

    def attacked(self, perturb: Perturb, radii: list[float], loss_of: Callable[[Any], Tensor] | None = None) -> Any:
        """The batch with perturbed inputs, which climb the module's loss or another function of the batch."""
        climbed = loss_of or self.loss_of
        parts = self.inputs.read(self.batch)
        shapes = [part.shape for part in parts]
        pixels = [self.inputs.to_pixels(part.detach()) for part in parts]
        if len(parts) == 1:
            joint, radius = pixels[0], torch.full([1] * pixels[0].ndim, radii[0], device=pixels[0].device)
        else:
            joint = torch.cat([part.flatten(1) for part in pixels], 1)
            radius = torch.cat([torch.full((1, part[0].numel()), r) for part, r in zip(parts, radii, strict=True)], 1)
            radius = radius.to(joint)

        def split(tensor: Tensor) -> list[Tensor]:
            if len(shapes) == 1:
                return [tensor]
            sizes = [shape[1:].numel() for shape in shapes]
            cut = zip(torch.split(tensor, sizes, 1), shapes, strict=True)
            return [part.reshape(-1, *shape[1:]) for part, shape in cut]

        def with_inputs(tensor: Tensor, rows: Tensor | None = None) -> Any:
            new = [self.inputs.from_pixels(part).to(old.dtype) for part, old in zip(split(tensor), parts, strict=True)]
            batch = self.batch if rows is None else take_rows(self.batch, rows, len(joint))
            return replace_items(batch, dict(zip(self.inputs.keys, new, strict=True)))

        with self.quiet(), channels_last(self.module) if self._in_bf16 else nullcontext():
            found = perturb(lambda *given: climbed(with_inputs(*given)), joint, radius)
        return with_inputs(found)

    def loss_of(self, batch: Any) -> Tensor:
        """A scalar or one value a sample, in full precision.

        Raises:
            NoLossError: If the module gives none for this batch.
        """
        with self._arithmetic():
            own = getattr(self.module, "attack_loss", None)
            output = own(batch) if own is not None else self.step(batch)
        loss = loss_in(output)
        if not isinstance(loss, Tensor):
            raise NoLossError(
                f"Expected `training_step` or `attack_loss` to return a loss, but got {type(loss).__name__}. Batches "
                "without a loss cannot be attacked."
            )
        return loss.float() * (len(get_args(batch, self.inputs.keys)[0]) if loss.ndim == 0 else 1)

    def quiet(self) -> AbstractContextManager[None]:
        """Nothing that the module does inside the block leaves a trace."""
        return quietly(self.trainer, self.module, self.stage)

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        kind = self.module.device.type
        context: AbstractContextManager[Any] = nullcontext()
        if self.precision == "32":
            context = torch.autocast(kind, enabled=False)
        elif self._in_bf16:
            context = torch.autocast(kind, torch.bfloat16)
        with context:
            yield


@functools.cache
def computes_in_bf16(device: torch.device) -> bool:
    """Whether the device multiplies in bf16 faster than in fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _outside_inference(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor
