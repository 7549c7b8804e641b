"""The optimisation profile of an engine: the smallest, usual and largest shape of each input."""

from __future__ import annotations

import onnx

from lightning_robust.deployment.engines.base import input_tensors
from lightning_robust.deployment.engines.subject import Subject
from lightning_robust.deployment.graph.export import Exported
from lightning_robust.deployment.graph.types import static_size

Shape = tuple[int, ...]
Shapes = tuple[Shape, Shape, Shape]
Profile = dict[str, Shapes]
"""Input -> its smallest, its usual and its largest shape."""


def make_profile(exported: Exported, subject: Subject) -> Profile:
    """The profile of a subject: the batch as it is deployed, and sizes as in its samples."""
    profile: Profile = {}
    tensors = dict(zip(exported.inputs, input_tensors(subject.example), strict=True))
    for value in exported.model.graph.input:  # without the arguments that the module does not use
        shape, dims = tuple(tensors[value.name].shape), value.type.tensor_type.shape.dim
        if dims and static_size(dims[0]) is None:
            fixed = (subject.settings.batch, *shape[1:])
        else:
            fixed = tuple(static_size(dim) or size for dim, size in zip(dims, shape, strict=True))
        profile[value.name] = fixed, fixed, fixed
    return profile


def complete_profile(model: bytes, profile: Profile) -> Profile:
    """The profile with static inputs filled in, after a check against the model's inputs.

    Raises:
        ValueError: If the model is not ONNX, or the profile does not fit its inputs.
    """
    inputs = _input_dims(model)
    if unknown := sorted(profile.keys() - inputs.keys()):
        raise ValueError(f"Expected a profile for the inputs {sorted(inputs)}, but got one for {unknown}")
    return {
        name: _check_shapes(name, dims, profile[name]) if name in profile else _static_shapes(name, dims)
        for name, dims in inputs.items()
    }


def _input_dims(model: bytes) -> dict[str, list[int | str]]:
    """Input -> its dimensions, a number or the name of a dynamic one."""
    try:
        graph = onnx.load_model_from_string(model).graph
    except Exception as error:
        raise ValueError(
            f"Expected argument `model` to be a serialised ONNX model, but got other bytes: {error}"
        ) from error
    weights = {tensor.name for tensor in graph.initializer}
    return {
        value.name: [static_size(dim) or dim.dim_param or "?" for dim in value.type.tensor_type.shape.dim]
        for value in graph.input
        if value.name not in weights
    }


def _static_shapes(name: str, dims: list[int | str]) -> Shapes:
    shape = tuple(size for size in dims if isinstance(size, int))
    if len(shape) < len(dims):
        raise ValueError(f"Expected a profile for every dynamic input, but none came for {name!r} of shape {dims}")
    return shape, shape, shape


def _check_shapes(name: str, dims: list[int | str], shapes: Shapes) -> Shapes:
    """The three shapes of one input, if they have its rank and its static sizes and do not shrink."""
    least, best, most = (tuple(int(size) for size in shape) for shape in shapes)
    if not len(least) == len(best) == len(most) == len(dims):
        raise ValueError(f"Expected shapes of {len(dims)} dimensions in the profile of {name!r}, but got {shapes}")
    known = tuple(size if isinstance(size, int) else None for size in dims)
    if not all(map(_fits, known, least, best, most)):
        raise ValueError(
            f"Expected smallest <= usual <= largest in the profile of {name!r}, and the static sizes of {known}, "
            f"but got {shapes}"
        )
    return least, best, most


def _fits(known: int | None, least: int, best: int, most: int) -> bool:
    """Whether the sizes of one dimension do not shrink, and are the known size where it is static."""
    return 0 <= least <= best <= most and (known is None or least == most == known)
