"""Low-rank adapters (LoRA) in mixtures of weights: which mixtures of factors are mixtures of their products."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_robust.functional.averaging import State

_FIRST_FACTOR = re.compile(r"((?:^|\.)lora_(?:embedding_)?)([Aa])(?=\.|$)")
_MAGNITUDE = "lora_magnitude_vector"
_ADVICE = (
    "The mean of two products of rank r has rank 2r and does not fit into the factors. Merge the adapters into the "
    "layers first (`merge_and_unload` in peft), or train one factor only."
)


def adapter_pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """The names of the two factors of each adapter, as peft, loralib and torchtune call them.

    Example:
        >>> adapter_pairs(["q.weight", "q.lora_A.default.weight", "q.lora_B.default.weight"])
        [('q.lora_A.default.weight', 'q.lora_B.default.weight')]
    """
    known = dict.fromkeys(names)
    pairs = [(name, _FIRST_FACTOR.sub(lambda m: m[1] + chr(ord(m[2]) + 1), name)) for name in known]
    return [(first, second) for first, second in pairs if first != second and second in known]


def refuse_trained_pairs(module: nn.Module, start: Mapping[str, Tensor] | None = None) -> None:
    """Refuse, before it is trained, a module whose adapters could not be mixed afterwards.

    Args:
        module: The module.
        start: The weights that those after training will be interpolated with, see :func:`mixable_start`; None where
            several sets of trained weights will be mixed.

    Raises:
        ValueError: Naming two factors that are both trained, and what to do.

    Example:
        >>> module = nn.ParameterDict({"lora_A": torch.ones(1, 2), "lora_B": torch.zeros(2, 1)})
        >>> refuse_trained_pairs(module, module.state_dict())
        >>> refuse_trained_pairs(module)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: Expected weights that can be averaged, but both factors of an adapter, lora_A and lora_B, ...
    """
    trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    for pair in adapter_pairs(trained):
        if start is None or not any(name in start and not bool(start[name].any()) for name in pair):
            raise ValueError(
                f"Expected weights that can be averaged, but both factors of an adapter, {pair[0]} and {pair[1]}, are "
                f"trained{'' if start is None else ' and neither begins at zero'}. {_ADVICE}"
            )
    _refuse_magnitudes(trained)


def mixable_start(start: Mapping[str, Tensor], end: Mapping[str, Tensor]) -> State:
    r"""The start, written such that interpolating factors towards the end interpolates the products.

    Between :math:`B_0 A_0` and :math:`B_1 A_1` this holds where a factor is the same on both sides. An adapter that
    begins with :math:`B_0 = 0`, as they usually do, computes the same with :math:`A_1` in place of :math:`A_0`: then
    :math:`\alpha B_1` beside :math:`A_1` keeps :math:`\alpha` of the update exactly.

    Args:
        start: The weights at alpha 0.
        end: The weights at alpha 1.

    Raises:
        ValueError: For an adapter both of whose factors differ, and for which that is not so.

    Example:
        >>> start = {"lora_A": torch.ones(1, 2), "lora_B": torch.zeros(2, 1)}
        >>> end = {"lora_A": torch.full((1, 2), 3.0), "lora_B": torch.ones(2, 1)}
        >>> mixable_start(start, end)["lora_A"]
        tensor([[3., 3.]])
    """
    changed = dict(start)
    for pair in adapter_pairs(start):
        if any(torch.equal(start[name].to(end[name]), end[name]) for name in pair):
            continue
        for zero, other in (pair, pair[::-1]):
            if not bool(start[zero].any()):
                changed[other] = end[other]
                break
        else:
            raise ValueError(
                f"Expected a mixture of the products of {pair[0]} and {pair[1]}, but both factors differ and neither "
                f"is zero at the start. {_ADVICE}"
            )
    return changed


def require_one_basis(states: Sequence[Mapping[str, Tensor]]) -> None:
    """Refuse states whose mean is not that of their adapters' products: those in which both factors of one differ.

    Raises:
        ValueError: Naming the factors and what to do.

    Example:
        >>> one = {"lora_A": torch.ones(1, 2), "lora_B": torch.zeros(2, 1)}
        >>> require_one_basis([one, {**one, "lora_B": torch.ones(2, 1)}])
    """
    for pair in adapter_pairs(states[0] if states else ()):
        if not any(all(torch.equal(states[0][name], other[name]) for other in states) for name in pair):
            raise ValueError(
                f"Expected a mixture of the products of {pair[0]} and {pair[1]}, but both factors differ between the "
                f"ingredients. {_ADVICE}"
            )


def _refuse_magnitudes(trained: Iterable[str]) -> None:
    """DoRA divides by the norm of the sum of weight and product, which no scaling of factors keeps."""
    magnitude = next((name for name in trained if _MAGNITUDE in name), None)
    if magnitude is not None:
        raise ValueError(
            f"Expected weights that can be averaged, but {magnitude} belongs to an adapter with trained magnitudes "
            "(DoRA), which is not linear in its factors. Train without `use_dora`."
        )
