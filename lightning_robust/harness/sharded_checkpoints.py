"""Checkpoints that are folders, as sharded training writes them: each rank's part of the weights in a file of its own.

Lightning's ModelParallelStrategy writes weights and optimizer states by ``torch.distributed.checkpoint``, and all else
in ``meta.pt``. SWACallback puts a folder ``averages`` beside them, in the same form. Only tensors and plain values are
read.
"""

from __future__ import annotations

import hashlib
import pickle
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

META = "meta.pt"
"""The file with all but tensors of weights and optimizers."""
AVERAGES = "averages"
"""The folder with the raw weights and the averages."""
_INDEX = ".metadata"
_WEIGHTS = "state_dict."


def is_sharded_checkpoint(path: str | Path) -> bool:
    """Whether a path is a folder that sharded training wrote.

    Example:
        >>> is_sharded_checkpoint("/nowhere")
        False
    """
    return (Path(path) / _INDEX).is_file() and (Path(path) / META).is_file()


def index_of(folder: Path) -> Metadata:
    """What tensors a folder of parts holds, all of its files being there.

    Raises:
        FileNotFoundError: If one of them is missing, or the index itself.
        ValueError: If the index is damaged.
    """
    if not (folder / _INDEX).is_file():
        raise FileNotFoundError(
            f"Expected the parts of a sharded checkpoint and their index in {folder}, but there is no {_INDEX}: it was "
            "not written to its end, or not copied whole. Copy the folder again, or take an earlier checkpoint."
        )
    try:
        with (folder / _INDEX).open("rb") as stream:
            index: Metadata = _IndexUnpickler(stream).load()
    except Exception as error:
        raise ValueError(
            f"Expected the index of a sharded checkpoint at {folder / _INDEX}, but it cannot be read ({error})."
        ) from error
    parts = {place.relative_path for place in (index.storage_data or {}).values()}
    if missing := sorted(part for part in parts if not (folder / part).is_file()):
        raise FileNotFoundError(
            f"Expected {len(parts)} parts of a sharded checkpoint in {folder}, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing. Every rank writes one: copy the folder from where all of "
            "them are, or take an earlier checkpoint."
        )
    return index


def tensors_of(folder: Path) -> dict[str, TensorStorageMetadata]:
    """The shapes and types of the tensors in a folder of parts, by name.

    Raises:
        FileNotFoundError: If a part is missing.
        ValueError: If the index is damaged.
    """
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    known = index_of(folder).state_dict_metadata
    return {name: kept for name, kept in known.items() if isinstance(kept, TensorStorageMetadata)}


def reader_of(folder: Path) -> FileSystemReader:
    """Reads parts for ``torch.distributed.checkpoint.load``, and their index without running what may be in it."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import StorageMeta

    class Reader(FileSystemReader):
        def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
            index = index_of(folder)
            index.storage_meta = index.storage_meta or StorageMeta()
            index.storage_meta.load_id = self.load_id
            return index

    return Reader(folder)


class _IndexUnpickler(pickle.Unpickler):
    """Builds what torch describes checkpoints with, and nothing else: a pickle can run code."""

    _PLAIN = (
        *("torch.Size", "torch.serialization._get_layout", "pathlib.PosixPath", "pathlib.WindowsPath"),
        *(f"torch.distributed.checkpoint.filesystem.{name}" for name in ("_StorageInfo", "_StoragePrefix")),
    )
    _ROOM = "torch.distributed.checkpoint.metadata"

    def find_class(self, module: str, name: str) -> Any:
        if "." not in name:  # with which a name leads through what a module has imported, such as `os`
            found = super().find_class(module, name) if module in ("torch", self._ROOM) else None
            own = isinstance(found, type) and found.__module__ == self._ROOM
            if own or isinstance(found, torch.dtype):
                return found
            if f"{module}.{name}" in self._PLAIN:
                return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is never loaded, since that can run code")


def require_whole(path: str | Path | None) -> None:
    """Refuse a sharded checkpoint of which a part is missing, before training is set up to go on from it.

    Raises:
        FileNotFoundError: Naming the part.
    """
    if path is not None and is_sharded_checkpoint(path):
        for folder in filter(Path.is_dir, (Path(path), Path(path) / AVERAGES)):
            index_of(folder)


def read_whole(folder: Path, prefix: str = _WEIGHTS) -> dict[str, Tensor]:
    """Whole tensors out of a folder of parts, in one process, whatever number of ranks wrote them.

    Args:
        folder: With the parts.
        prefix: Only tensors whose name begins so, which is cut off.

    Raises:
        FileNotFoundError: If a part is missing.
        ValueError: If the index or a part is damaged.
    """
    from torch.distributed.checkpoint.state_dict_loader import load

    tensors = {
        name: torch.empty(kept.size, dtype=kept.properties.dtype)
        for name, kept in tensors_of(folder).items()
        if name.startswith(prefix)
    }
    try:
        with warnings.catch_warnings():
            # that there is no process group is what is meant
            warnings.simplefilter("ignore")
            load(tensors, storage_reader=reader_of(folder), no_dist=True)
    except Exception as error:
        raise ValueError(
            f"Expected whole parts of a sharded checkpoint in {folder}, but they cannot be read "
            f"({' '.join(str(error).split())[:200]})."
        ) from error
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def digest_of_folder(folder: Path) -> str:
    """Checksum of all files in a folder, by name and content."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.update(str(path.relative_to(folder)).encode())
            with path.open("rb") as stream:
                found.update(hashlib.file_digest(stream, "sha256").digest())
    return found.hexdigest()


def names_of_averages(path: Path) -> list[str]:
    """The averages beside the weights of a sharded checkpoint, ``raw`` among them.

    Raises:
        FileNotFoundError: If a part is missing.
    """
    folder = path / AVERAGES
    return list(dict.fromkeys(name.rsplit("/", 2)[0] for name in tensors_of(folder))) if folder.is_dir() else []
