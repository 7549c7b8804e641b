"""The links of the chain from PyTorch to the engine: their names, their order, and the engine that they lead to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lightning_robust.statistics import Interval

History = Sequence[tuple[int, dict[str, float]]]
"""``(epoch, attribution)`` of each pass of a run."""
LINKS = ("export", "tf32", "fp16", "bf16", "quantisation", "engine", "preprocessing")
"""The names of links, in the chain's order."""
EXPORTED = "onnxruntime-fp32"
GRAPHS = {
    EXPORTED: "export",
    "emulated-tf32": "tf32",
    "emulated-fp16": "fp16",
    "emulated-bf16": "bf16",
    "emulated-int8": "quantisation",
}
"""What is computed as a graph says it, and the link that leads there; engines are compared with these."""
_ENGINES = ("tensorrt", "tensorrt_rtx", "deployed", "openvino", "onnxruntime")
_PRECISIONS = ("fp16", "bf16", "int8", "tf32", "fp32")


class Basis(NamedTuple):
    """What a number rests on.

    Args:
        samples: Number of inputs.
        low: Lower end of its 95 % interval, by bootstrap over the inputs.
        high: Upper end.
    """

    samples: int
    low: float
    high: float


@dataclass(frozen=True)
class Link:
    """One step of the chain: what it alone does to the outputs.

    Args:
        name: One of :data:`LINKS`.
        source: Whose outputs it starts from: the reference, or a target.
        target: Whose outputs it arrives at.
        value: The distance between these two sets of outputs, in the report's unit. It is no difference of two
            distances to the reference, so that links do not add up, and one that leads back shows too.
        bias: The signed mean of the deviations, of the same values as the unit; NaN for decisions, which have none.
        interval: Of ``value``, 95 %; NaN where it is not known.
        samples: Number of inputs.
    """

    name: str
    source: str
    target: str
    value: float
    bias: float
    interval: Interval
    samples: int

    @property
    def key(self) -> str:
        """What tells the link from the others of a chain, as in the tag ``attribution/<key>``: of several engines each.

        Example:
            >>> Link("engine", "emulated-bf16", "openvino-bf16", 0.1, 0.0, Interval(0.0, 0.2), 16).key
            'engine/openvino-bf16'
        """
        return f"{self.name}/{self.target}" if self.name == "engine" else self.name

    @property
    def basis(self) -> Basis:
        """What the distance rests on."""
        return Basis(self.samples, *self.interval)


def link_bases(chain: Iterable[Link]) -> dict[str, Basis]:
    """What each link rests on, under its tag."""
    return {f"attribution/{link.key}": link.basis for link in chain}


def chain_scalars(chain: tuple[Link, ...]) -> dict[str, float]:
    """The links under their TensorBoard tags: distance and bias; the main engine's as ``engine`` too."""
    links = {link.key: link for link in chain}
    engine = main_engine(chain)
    links |= {} if engine is None else {engine.name: engine}
    values = {f"attribution/{key}": link.value for key, link in links.items()}
    return values | {f"attribution/{key}_bias": link.bias for key, link in links.items()}


def main_engine(chain: Sequence[Link]) -> Link | None:
    """The link of the engine that stands for the deployed one; None without any."""
    engines = {link.target: link for link in chain if link.name == "engine"}
    return engines.get(first_engine(engines))


def first_engine(names: Iterable[str]) -> str:
    """The one of these targets that stands for the deployed engine, low precisions first; empty without any engine.

    Example:
        >>> first_engine(["openvino-fp32", "openvino-bf16", "emulated-fp16"])
        'openvino-bf16'
    """
    measured = set(names)
    return next((name for name in engine_names() if name in measured), "")


def engine_names() -> Iterator[str]:
    """The targets that are engines, as a deployed one is looked for."""
    names = (f"{name}-{precision}" for precision in _PRECISIONS for name in _ENGINES)
    return (name for name in names if name not in GRAPHS)
