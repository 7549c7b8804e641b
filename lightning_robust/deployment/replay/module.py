"""From recorded frames to lines through a module: what it needs for that, and a copy of it that does it.

What is compared with what stands in ``replay.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lightning_robust.deployment.engines import run_module
from lightning_robust.deployment.graph.export import frozen_copy
from lightning_robust.structures import flatten, rebuild


class Replayable(Protocol):
    """What a module needs so that recorded frames can be replayed: two methods beside ``forward``.

    For the pictures it also has attributes ``rows`` (at which rows its lines are found), ``frame_height`` and
    ``frame_width`` (of the frame in whose pixels rows and columns are given).
    """

    def preprocess(self, frames: Tensor) -> Any:
        """What ``forward`` takes (a tuple for several arguments) of RGB frames, uint8, ``(N, H, W, 3)``, any size."""

    def decode(self, outputs: Any) -> Mapping[str, Tensor]:
        """Named values of ``forward``'s outputs; the floating one of shape ``(N, lines, rows)`` holds the lines.

        Each number is a column in pixels, NaN where there is no line.
        """


@dataclass(frozen=True)
class Geometry:
    """Where lines lie: the rows, and the size of the frame in whose pixels rows and columns are given."""

    rows: Tensor
    height: float
    width: float


class LineFinder:
    """The way from frames to lines through a copy of one module.

    Args:
        module: A :class:`Replayable`.
        value: Which decoded value holds the lines; the first floating one of three dimensions if None.

    Raises:
        TypeError: If the module lacks a method; the message says what to write.
    """

    def __init__(self, module: nn.Module, value: str | None) -> None:
        for method, what in _WANTED.items():
            if not callable(getattr(module, method, None)):
                raise TypeError(
                    f"Expected {type(module).__name__} to have a method `{method}`, but it has none. Write `{what}`"
                )
        self.module: Any = frozen_copy(module)
        self.value = value
        self._template: Any = None

    def inputs(self, frames: Tensor) -> tuple[Any, ...]:
        """The arguments of ``forward``."""
        with torch.no_grad():
            made = self.module.preprocess(frames)
        args = made if type(made) is tuple else (made,)
        first = next(iter(flatten(args).values()))
        if first.ndim == 0 or len(first) != len(frames):
            raise ValueError(
                f"Expected `preprocess` to return one sample for each of {len(frames)} frames, but got a tensor of "
                f"shape {tuple(first.shape)}."
            )
        return args

    def run(self, args: tuple[Any, ...]) -> list[Tensor]:
        """Flattened outputs of PyTorch in fp32."""
        if self._template is None:
            with torch.no_grad():
                self._template = self.module(*args)
        return run_module(self.module, args)

    def lines(self, outputs: list[Tensor]) -> Tensor:
        """Columns, float64, of the flattened outputs of any runtime."""
        values = self.module.decode(rebuild(self._template, iter(outputs)))
        name = self.value or next((k for k, v in values.items() if v.is_floating_point() and v.ndim == 3), None)
        if name not in values or values[name].ndim != 3 or not values[name].is_floating_point():
            found = {key: tuple(tensor.shape) for key, tensor in values.items()}
            raise ValueError(
                f"Expected `decode` to return lines as a floating tensor (frames, lines, rows)"
                f"{f' named {name!r}' if name else ''}, but got {found}."
            )
        self.value = name
        return values[name].detach().cpu().double()

    def geometry(self) -> Geometry | None:
        """Rows and frame size, where the module has them."""
        try:
            rows, height, width = self.module.rows, self.module.frame_height, self.module.frame_width
        except AttributeError:
            return None
        return Geometry(torch.as_tensor(rows).double().cpu(), float(height), float(width))


_WANTED = {
    "preprocess": "def preprocess(self, frames: Tensor) -> Tensor: it takes RGB frames, uint8 (N, H, W, 3), of any "
    "size and returns what `forward` takes, resized, normalised, channels first.",
    "decode": "def decode(self, outputs) -> dict[str, Tensor]: it takes what `forward` returns and gives lines as "
    "columns in pixels, floating (N, lines, rows), NaN where there is none.",
}
