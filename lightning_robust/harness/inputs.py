"""What a network takes of a batch: as a user says by ``input_key``, or inferred from the signature of ``forward``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_robust.harness.signature import signature_of
from lightning_robust.harness.single_pictures import refuse_single_pictures
from lightning_robust.structures import (
    WHOLE,
    Key,
    get_args,
    get_item,
    parts_of_batch,
    tensor_paths,
)

_TARGETS = ("label", "labels", "target", "targets", "y")


def forward_arguments(
    module: nn.Module, batch: Any, input_key: Key | list[Key] | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and the named arguments of ``forward`` in a batch.

    Args:
        module: The network.
        batch: The batch.
        input_key: The parts that are its arguments, in the order of its parameters; None infers them.

    Raises:
        MisconfigurationException: If they cannot be inferred.
        KeyError: If the batch has no part of the given key.
    """
    if input_key is not None:
        return signature_of(module).split(get_args(batch, input_key))
    keys, by_name = signature_of(module).keys_in(batch)
    found = {name: get_item(batch, key) for name, key in keys.items()}
    return ((), found) if by_name else (tuple(found.values()), {})


def require_inputs(module: nn.Module, batch: Any, input_key: Key | list[Key] | None, technique: str) -> None:
    """Refuse a batch without the arguments of ``forward``; techniques call it at the first batch of an epoch.

    Raises:
        MisconfigurationException: Naming the technique.
    """
    try:
        forward_arguments(module, batch, input_key)
    except (MisconfigurationException, KeyError, ValueError) as error:
        raise MisconfigurationException(f"{technique}: {error.args[0]}") from error


def positional_arguments(module: nn.Module, batch: Any, input_key: Key | list[Key] | None = None) -> tuple[Any, ...]:
    """The arguments of ``forward`` in a batch in the order of its parameters, as an exported graph takes them.

    Raises:
        MisconfigurationException: If they cannot be inferred, or have no order.
    """
    if input_key is not None:
        return get_args(batch, input_key)
    args, named = forward_arguments(module, batch)
    if not named:
        return args
    signature = signature_of(module)
    places = [place for place, name in enumerate(signature.names, 1) if name in named]
    if not places:
        raise MisconfigurationException(
            f"Expected {signature.network}.forward to take its inputs by position, but it takes {list(named)} by any "
            "name, in no order. Name its parameters: `def forward(self, image, mask=None)`."
        )
    return tuple(named.get(name, signature.defaults.get(name)) for name in signature.names[: places[-1]])


def call_forward(module: nn.Module, batch: Any, input_key: Key | list[Key] | None = None) -> Any:
    """The network's output for a batch; see :func:`forward_arguments`."""
    args, named = forward_arguments(module, batch, input_key)
    return module(*args, **named)


def as_keys(input_key: Key | Sequence[Key] | None) -> list[Key] | None:
    """The argument ``input_key`` as a list, or None where it is to be inferred.

    Raises:
        ValueError: For an empty list.

    Example:
        >>> as_keys(0), as_keys(["image", "mask"]), as_keys(None)
        ([0], ['image', 'mask'], None)
    """
    if input_key is None:
        return None
    if not isinstance(input_key, int | str) and not input_key:
        raise ValueError("Expected `input_key` to name a part of a batch, or None to infer it, but got an empty list.")
    return [input_key] if isinstance(input_key, int | str) else list(input_key)


def refuse_several_in_l2(norm: str | None, keys: Sequence[Key] | None) -> None:
    """Refuse several inputs with the norm of all elements together, of which each input would have its own radius.

    Raises:
        ValueError: Naming the inputs.
    """
    if norm == "l2" and keys is not None and len(keys) > 1:
        raise ValueError(
            f"Expected one `input_key` with norm='l2', but got {keys}. Use norm='linf', or perturb one of them."
        )


def first_input(module: nn.Module, batch: Any, method: str = "forward") -> Key:
    """Where the first argument of ``forward``, or of another method, is in a batch.

    Raises:
        MisconfigurationException: If it cannot be inferred.
    """
    try:
        return next(iter(signature_of(module, method).keys_in(batch)[0].values()))
    except MisconfigurationException:
        return first_floating_input(module, batch)


def first_floating_input(module: nn.Module, batch: Any) -> Key:
    """Where the first floating-point tensor among the arguments of ``forward`` is in a batch.

    Of a network whose arguments cannot be inferred, it is the first floating-point tensor of a sequence, or the only
    one of another batch beside its targets.

    Raises:
        MisconfigurationException: If there is none, or more than one to choose from.
    """
    keys: Sequence[Key] = [WHOLE]
    with suppress(MisconfigurationException):
        keys = list(signature_of(module).keys_in(batch)[0].values())
    refuse_single_pictures(batch, batch)
    for key in keys:
        refuse_single_pictures(batch, get_item(batch, key))
        paths = _floating_paths(get_item(batch, key), beside=_TARGETS if keys == [WHOLE] else ())
        if keys == [WHOLE] and len(paths) > 1 and not isinstance(batch, list | tuple):
            break
        if paths:
            return _joined_path(key, paths[0])
    raise MisconfigurationException(
        f"Expected one floating-point input of {type(module).__name__} to perturb, but got {type(batch).__name__} with "
        f"{list(tensor_paths(batch)) or 'no tensor'}. Set `input_key` to it; for token indices set `embedding` to the "
        "module that embeds them."
    )


def _floating_paths(value: Any, beside: Sequence[str]) -> list[str]:
    """Where floating-point tensors are in a structure, but those of some names."""
    found = tensor_paths(value).items()
    return [path for path, tensor in found if tensor.is_floating_point() and path not in beside]


def find_target(batch: Any, target_key: Key | None, inputs: Sequence[Key] = (0,)) -> Key:
    """Where the targets are in a batch: as given, behind the inputs of a sequence, or by a usual name.

    Raises:
        MisconfigurationException: If they are not found.

    Example:
        >>> find_target(("image", "label"), None), find_target({"image": 1, "labels": 2}, None)
        (1, 'labels')
    """
    if target_key is not None:
        return target_key
    parts = parts_of_batch(batch)
    names = [name for name in _TARGETS if name in parts]
    if len(names) == 1:
        return names[0]
    leading = len({str(key).partition(".")[0] for key in inputs})
    if isinstance(batch, list | tuple) and len(batch) > leading:
        return leading
    raise MisconfigurationException(
        f"Expected targets in the batch under one of the names {list(_TARGETS)}, but got {type(batch).__name__} with "
        f"{list(parts)}. Set `target_key` to them."
    )


def targets_of(module: nn.Module, batch: Any, target_key: Key | None, input_key: Key | Sequence[Key] | None) -> Any:
    """The targets in a batch; see :func:`find_target`.

    Args:
        module: The network, whose ``forward`` says how many inputs stand before them.
        batch: The batch.
        target_key: Where they are; None finds them.
        input_key: Where the inputs are, if that was given.

    Raises:
        KeyError: If the batch has no part of the given key.
        MisconfigurationException: If they are not found.
    """
    if target_key is not None:
        return get_item(batch, target_key)
    inputs = as_keys(input_key) or [0]
    with suppress(MisconfigurationException):
        taken = [*signature_of(module).keys_in(batch)[0].values()]
        # a `forward` that takes the targets too leaves nothing behind its arguments
        inputs = taken if isinstance(batch, list | tuple) and len(batch) > len(taken) else inputs
    return get_item(batch, find_target(batch, None, inputs))


def _joined_path(key: Key, path: str) -> Key:
    parts = [str(part) for part in (key, path) if part != ""]
    joined = ".".join(parts) or "0"
    return int(joined) if joined.isdigit() else joined
