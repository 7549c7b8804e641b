"""What an attack climbs in a LightningModule, and which part of a batch it perturbs in which units."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_robust.functional.pixels import PixelSpace
from lightning_robust.utilities.evaluation import quietly
from lightning_robust.utilities.structures import Key, get_args, map_tensors, replace_items

AttackPrecision = Literal["bf16", "32", "same"]
Perturb = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]


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
        data = getattr(trainer, "datamodule", None)
        mean = self.mean if self.mean is not None else getattr(data, "mean", 0.0)
        std = self.std if self.std is not None else getattr(data, "std", 1.0)
        self.pixels = PixelSpace(mean, std, *self.bounds)

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
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        step: Callable[[Any], Any],
        batch: Any,
        inputs: AttackInputs,
        precision: AttackPrecision,
    ) -> None:
        self.trainer, self.module, self.step, self.inputs = trainer, pl_module, step, inputs
        # tensors of inference mode cannot take part in autograd
        self.batch = map_tensors(_outside_inference, batch)
        self.precision = precision

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
            return [part.reshape(shape) for part, shape in zip(torch.split(tensor, sizes, 1), shapes, strict=True)]

        def with_inputs(tensor: Tensor) -> Any:
            new = [self.inputs.from_pixels(part).to(old.dtype) for part, old in zip(split(tensor), parts, strict=True)]
            return replace_items(self.batch, dict(zip(self.inputs.keys, new, strict=True)))

        with self.quiet():
            found = perturb(lambda tensor: climbed(with_inputs(tensor)), joint, radius)
        return with_inputs(found)

    def loss_of(self, batch: Any) -> Tensor:
        """A scalar or one value a sample, in full precision."""
        with self._arithmetic():
            own = getattr(self.module, "attack_loss", None)
            output = own(batch) if own is not None else self.step(batch)
        loss = output["loss"] if isinstance(output, dict) else output
        if not isinstance(loss, Tensor):
            raise ValueError(
                f"Expected `training_step` or `attack_loss` to return a loss, but got {type(loss).__name__}. Batches "
                "without a loss cannot be attacked."
            )
        return loss.float() * (len(get_args(batch, self.inputs.keys)[0]) if loss.ndim == 0 else 1)

    def quiet(self) -> AbstractContextManager[None]:
        """Nothing that the module does inside the block leaves a trace."""
        return quietly(self.trainer, self.module, "training")

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        kind = self.module.device.type
        context: AbstractContextManager[Any] = nullcontext()
        if self.precision == "32":
            context = torch.autocast(kind, enabled=False)
        elif self.precision == "bf16" and computes_in_bf16(self.module.device):
            context = torch.autocast(kind, torch.bfloat16)
        with context:
            yield


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
