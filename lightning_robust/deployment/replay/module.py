"""The way from recorded frames to lines: what a module needs for it, and a copy of the module that goes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lightning_robust.complaints import one_line
from lightning_robust.deployment.engines import run_module
from lightning_robust.deployment.graph.export import frozen_copy
from lightning_robust.deployment.parity.readout import Readout, Values
from lightning_robust.deployment.parity.scale import Scale, decoder_of
from lightning_robust.structures import flatten


class Replayable(Protocol):
    """A module that recorded frames can be replayed through: two methods beside ``forward``.

    With a ``"confidence"`` among the values, points that the model knows are told apart from those that it guesses.
    With a method ``moved(values, matrix)``, as parity takes it, what goes beyond the motion of the picture is told.

    For the pictures it also has attributes ``rows`` (the rows that its columns belong to), ``frame_height`` and
    ``frame_width`` (of the frame in whose pixels rows and columns are given).
    """

    def preprocess(self, frames: Tensor) -> Any:
        """Turn RGB frames, uint8, ``(N, H, W, 3)`` of any size, into what ``forward`` takes: a tuple for several."""

    def decode(self, outputs: Any) -> Mapping[str, Tensor]:
        """Named values of ``forward``'s outputs; the floating one of shape ``(N, lines, rows)`` holds the lines.

        Each number is a column in pixels, NaN where there is no line.
        """


class Lines(NamedTuple):
    """The lines in a few frames.

    Args:
        columns: ``(N, lines, rows)``, float64, in pixels, NaN where there is no line.
        known: Which points the model knows rather than guesses, by the ``"confidence"`` that ``decode`` gives; None
            where it gives none.
        values: All that ``decode`` gives.
    """

    columns: Tensor
    known: Tensor | None
    values: Values

    def bare(self) -> Lines:
        """The same without the values, which may be large and are not kept for all frames."""
        return self._replace(values={})


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
        decode: What its method ``decode`` is called.

    Raises:
        TypeError: If the module lacks a method; the message says what to write.
    """

    def __init__(self, module: nn.Module, value: str | None, decode: str = "decode") -> None:
        for method, template in (("preprocess", _PREPROCESS), (decode, _DECODE.format(decode))):
            if not callable(decoder_of(module, method) if method == decode else getattr(module, method, None)):
                raise TypeError(
                    f"Expected {type(module).__name__} to have a method `{method}`, but it has none. Write `{template}`"
                )
        self.module: Any = frozen_copy(module)
        self.value, self.decode = value, decode
        self._scale: Scale | None = None
        self.notes: list[str] = []
        """What a reader should know of the module's methods."""

    def inputs(self, frames: Tensor) -> tuple[Any, ...]:
        """The arguments of ``forward``."""
        with torch.no_grad():
            inputs = self.module.preprocess(frames)
        args = inputs if type(inputs) is tuple else (inputs,)
        first = next(iter(flatten(args).values()))
        if first.ndim == 0 or len(first) != len(frames):
            raise ValueError(
                f"Expected `preprocess` to return one sample for each of {len(frames)} frames, but got a tensor of "
                f"shape {tuple(first.shape)}."
            )
        return args

    def run(self, args: tuple[Any, ...]) -> list[Tensor]:
        """Flattened outputs of PyTorch in fp32."""
        if self._scale is None:
            self._scale = Scale(self.module, args, decoder_of(self.module, self.decode))
        return run_module(self.module, args)

    def lines(self, outputs: list[Tensor]) -> Lines:
        """The lines in the flattened outputs of any runtime; PyTorch has to :meth:`run` first."""
        readout = Readout(outputs, {}) if self._scale is None else self._scale.read(outputs)
        values = readout.values
        lines = {key: value for key, value in values.items() if isinstance(value, Tensor) and _are_lines(value)}
        name = next(iter(lines), "") if self.value is None else self.value
        if name not in lines:
            shapes = {key: tuple(value.shape) for key, value in values.items()}
            raise ValueError(
                f"Expected `{self.decode}` to return lines as a floating tensor (frames, lines, rows)"
                f"{f' named {name!r}' if name else ''}, but got {shapes}."
            )
        self.value = name
        known = {key: mask.cpu() for key, mask in readout.known.items()}.get(name)
        return Lines(_doubles(lines[name]), known, values)

    def expected(self, lines: Lines, matrix: Tensor) -> Tensor | None:
        """The right columns in a picture whose content was moved, by the module's `moved(values, matrix)`.

        Args:
            lines: Those of the picture as it was.
            matrix: The motion in pixels of the network's input.

        Returns:
            None where the module does not say it.
        """
        moved = getattr(self.module, "moved", None)
        if not callable(moved) or self.notes:
            return None
        try:
            values = {**lines.values, **moved(lines.values, matrix)}
            columns = values[str(self.value)]
            return _doubles(columns) if isinstance(columns, Tensor) else None
        except Exception as error:  # whatever a user's method raises
            self.notes.append(f"`moved` failed and is left out: {one_line(error)}")
            return None

    def geometry(self) -> Geometry | None:
        """Rows and frame size, where the module has them."""
        try:
            rows, height, width = self.module.rows, self.module.frame_height, self.module.frame_width
        except AttributeError:
            return None
        return Geometry(torch.as_tensor(rows).double().cpu(), float(height), float(width))

    def check_geometry(self, lines: Lines) -> None:
        """Refuse rows that are not those of the columns, before anything is drawn on them.

        Raises:
            ValueError: Saying what ``rows`` should be.
        """
        geometry, count = self.geometry(), lines.columns.shape[2]
        if geometry is not None and geometry.rows.shape != (count,):
            raise ValueError(
                f"Expected `rows` of {type(self.module).__name__} to be the {count} rows that the columns of "
                f"{self.value!r} belong to, but got shape {tuple(geometry.rows.shape)}."
            )


def _are_lines(value: Tensor) -> bool:
    return value.is_floating_point() and value.ndim == 3


def _doubles(columns: Tensor) -> Tensor:
    return columns.detach().cpu().double()


_PREPROCESS = (
    "def preprocess(self, frames: Tensor) -> Tensor: it takes RGB frames, uint8 (N, H, W, 3), of any size and returns "
    "what `forward` takes, resized, normalised, channels first."
)
_DECODE = (
    "def {}(self, outputs) -> dict[str, Tensor]: it takes what `forward` returns and gives lines as columns in pixels, "
    "floating (N, lines, rows), NaN where there is none."
)
