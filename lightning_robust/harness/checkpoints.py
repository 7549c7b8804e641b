"""Weights in files: Lightning checkpoints, plain state dicts, safetensors. Only tensors, never code."""

from __future__ import annotations

import glob
import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_robust.functional.averaging import State
from lightning_robust.harness.kept_checkpoints import is_checkpoint
from lightning_robust.harness.sharded_checkpoints import (
    AVERAGES,
    META,
    digest_of_folder,
    is_sharded_checkpoint,
    names_of_averages,
    read_whole,
)
from lightning_robust.suggest import first_of

RAW_KEY = "raw_state_dict"
"""Key of the weights that training continues from, in a full checkpoint of SWACallback."""
_TOLD = 6
_ADVICE = "Give Lightning checkpoints (.ckpt), state dicts (.pt) or .safetensors that hold tensors."


def read_state(path: str | Path, key: str = "state_dict") -> State:
    """The weights in a file, memory-mapped: nothing is read until it is used, and pages can be dropped again.

    Args:
        path: ``.safetensors``, or what ``torch.save`` wrote: a Lightning checkpoint or a plain state dict. Read with
            ``weights_only=True``.
        key: Which entry of a checkpoint.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, holds other Python objects than tensors, or no weights.
    """
    content = read_checkpoint(path)
    state = content.get(key, content if key == "state_dict" else None)
    if not isinstance(state, Mapping) or not state or not all(_is_weight(*entry) for entry in state.items()):
        held = first_of(sorted(map(str, content)), _TOLD)
        raise ValueError(f"Expected {key!r} with tensors in {path}, but it holds {held}. {_ADVICE}")
    return dict(state)


def _is_weight(name: object, value: object) -> bool:
    """Whether this is a tensor, or what a module's ``get_extra_state`` gave."""
    return isinstance(value, Tensor) or str(name).endswith("_extra_state")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """All that a file of weights holds, memory-mapped; what the file is is read off its content, not its name.

    Args:
        path: What ``torch.save`` wrote, or safetensors; or a folder that sharded training wrote, whose weights are
            read into memory. Read with ``weights_only=True``: nothing in it is run.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is a folder, damaged, or holds other Python objects than tensors and plain values.
    """
    path = Path(path)
    if is_sharded_checkpoint(path):
        return {**_read_torch(path / META), "state_dict": read_whole(path)}
    if path.is_dir():
        raise ValueError(f"Expected a checkpoint at {path}, but it is a folder. Name a file in it.")
    if not path.is_file():
        raise FileNotFoundError(f"Expected a checkpoint at {path}, but there is no such file.")
    return _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)


def load_weights(module: nn.Module, path: str | Path, of: str = "") -> None:
    """Put the weights of a file into a module.

    Args:
        module: What they belong to.
        path: The file.
        of: Where the module comes from, for the error message.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no weights, or others; the message names the first that do not fit.
    """
    state = read_state(path)
    try:
        module.load_state_dict(state, strict=getattr(module, "strict_loading", True))
    except RuntimeError as error:
        misfit = _difference_of(module.state_dict(), state) or " ".join(str(error).split())[:200]
        raise ValueError(
            f"The weights of {path} do not fit {type(module).__name__}{f' of {of}' if of else ''}: {misfit}."
        ) from error


def _difference_of(own: Mapping[str, Any], state: State) -> str:
    """In what a state dict differs from the one that a module has."""
    found = {
        "it lacks": [name for name in own if name not in state],
        "it has besides": [name for name in state if name not in own],
        "of another shape are": _other_shapes(own, state),
    }
    return "; ".join(f"{words} {first_of(sorted(names), _TOLD)}" for words, names in found.items() if names)


def _other_shapes(own: Mapping[str, Any], state: State) -> list[str]:
    shapes = {name: tuple(getattr(value, "shape", ())) for name, value in own.items()}
    theirs = {name: tuple(value.shape) for name, value in state.items()}
    return [f"{name} {theirs[name]} for {shape}" for name, shape in shapes.items() if theirs.get(name, shape) != shape]


def load_averaged(path: str | Path, which: str = "averaged") -> State:
    """Weights out of a checkpoint of a run with ``SWACallback``, without a Trainer.

    Args:
        path: The checkpoint.
        which: ``"averaged"`` (the weights that were validated), ``"raw"`` (those that training continues from; full
            checkpoints only), or the name of a further average.

    Returns:
        A state dict for ``module.load_state_dict``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the checkpoint does not hold it; the message says what it holds.
    """
    if which == "averaged":
        return read_state(path)
    if is_sharded_checkpoint(path):
        return _read_average_of_parts(Path(path), which)
    content = read_checkpoint(path)
    saved = content.get("callbacks", {}).get("SWACallback", {})
    known = {"averaged", *(["raw"] if RAW_KEY in content else []), *saved.get("averages", {})}
    if which not in known:
        raise ValueError(
            f"Expected {which!r} in {path}, but it holds {sorted(known)}. Raw weights and further averages are in full "
            "checkpoints of runs with SWACallback, from its start on."
        )
    if which == "raw":
        return dict(content[RAW_KEY])
    tensors: State = dict(zip(saved["names"], saved["averages"][which]["running"]["tensors"], strict=True))
    if not tensors:
        raise ValueError(f"Expected a snapshot of {which!r} in {path}, but it was written before the first one.")
    # ties are saved under every name, averaged under the first
    raw: State = content[RAW_KEY] if RAW_KEY in content else content["state_dict"]
    first: dict[int, str] = {value.data_ptr(): name for name, value in reversed(list(raw.items()))}
    averaged: State = {name: tensors.get(name, tensors.get(first[t.data_ptr()], t)) for name, t in raw.items()}
    return averaged


def _read_average_of_parts(path: Path, which: str) -> State:
    known = names_of_averages(path)
    if which not in known:
        raise ValueError(
            f"Expected {which!r} in {path}, but it holds {['averaged', *known]}. Raw weights and further averages are "
            "in full checkpoints of runs with SWACallback, from its first snapshot on."
        )
    return read_whole(path) | read_whole(path / AVERAGES, f"{which}/tensors/")


def read_callback(path: str | Path, callback: str) -> dict[str, Any] | None:
    """The state of a callback in a full checkpoint; None in other files."""
    if not is_checkpoint(Path(path)):
        return None
    state: dict[str, Any] | None = read_checkpoint(path).get("callbacks", {}).get(callback)
    return state


def expand(patterns: Sequence[str]) -> list[Path]:
    """Files that paths and globs name, in natural order (``9.ckpt`` before ``10.ckpt``), each once.

    Raises:
        ValueError: If nothing matches.
    """
    paths: dict[Path, None] = {}
    for pattern in patterns:
        whole = Path(pattern).is_file() or is_sharded_checkpoint(pattern)
        matches = [pattern] if whole else glob.glob(pattern, recursive=True)
        if not matches:
            raise ValueError(f"Expected files at {pattern!r}, but nothing matches. Quote globs in the shell.")
        paths |= dict.fromkeys(Path(match) for match in sorted(matches, key=_natural_order))
    return list(paths)


def sha256(path: Path) -> str:
    """Checksum of a file, or of all files of a sharded checkpoint."""
    if path.is_dir():
        return digest_of_folder(path)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_torch(path: Path) -> dict[str, Any]:
    try:
        content = _load_plain(path)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"Expected only tensors and plain values in {path}, but it holds {_foreign(path, error)}, most likely "
            "among its `hyper_parameters`. Such objects are never loaded, since that can run code. Leave them out with "
            "save_hyperparameters(ignore=[...]), or write the weights alone: torch.save(module.state_dict(), path). "
            f"{_ADVICE}"
        ) from error
    except Exception as error:
        raise ValueError(
            f"Expected a whole file that torch.save wrote at {path}, but {_damage(path, error)}."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"Expected a checkpoint in {path}, but got a {type(content).__name__}. {_ADVICE}")
    return content


def _load_plain(path: Path) -> Any:
    if path.suffix == ".safetensors":  # which torch.load goes by, whatever is in the file
        with path.open("rb") as stream:
            return torch.load(stream, map_location="cpu", weights_only=True)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _foreign(path: Path, error: Exception) -> str:
    """The names of the objects in a file that are never loaded."""
    try:
        names = list(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # a pickle that torch did not write
        names = re.findall(r"GLOBAL ([\w.]+)", str(error))
    return first_of(sorted(names), _TOLD) if names else "a pickle of other objects"


def _damage(path: Path, error: Exception) -> str:
    if not path.stat().st_size:
        return "it is empty"
    if "TorchScript" in str(error):
        return "it holds a TorchScript module, which is code. Write its weights: torch.save(module.state_dict(), path)"
    return f"it is damaged or cut off ({' '.join(str(error).split('. ')[0].split())[:120]}). {_ADVICE}".rstrip(".")


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins with the length of a JSON header and that header."""
    with path.open("rb") as stream:
        head = stream.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"Expected a whole .safetensors file at {path}, but {error}. {_ADVICE}") from error


def _natural_order(text: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]
