"""The four IDX files of Fashion-MNIST: finds them, fetches them once, reads them."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import struct
import urllib.request
import zlib
from pathlib import Path

import platformdirs
import torch
from torch import Tensor

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
# SHA-256 of the uncompressed files, from Debian's package; compressed ones differ in their headers.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def find_files(root: str | None = None) -> dict[str, bytes]:
    """Contents of the four files, by name, without compression.

    Args:
        root: Folder to read them from; None looks in Debian's, then in the user's cache (``~/.cache`` on Linux), then
            fetches them from the official address into the cache and verifies them.

    Raises:
        FileNotFoundError: If they are nowhere; the message names the three ways to get them.
        ValueError: If a compressed file is damaged, or a fetched file's checksum is wrong.
    """
    if root is not None:
        contents = _read_folder(Path(root).expanduser())
        missing = [name for name in SHA256 if name not in contents]
        if missing:
            raise FileNotFoundError(
                f"Expected {missing} (.gz or not) in {root}, but they are not there. {_how_to_get()}"
            )
        return contents
    for folder in (DEBIAN, _cache_folder()):
        contents = _read_folder(folder)
        if len(contents) == len(SHA256):
            return contents
    try:
        return {name: _fetch(name) for name in SHA256}
    except OSError as error:
        raise FileNotFoundError(f"Fashion-MNIST could not be fetched ({error}). {_how_to_get()}") from error


def read_idx(content: bytes, name: str, dimensions: int) -> Tensor:
    """Read an IDX file of bytes.

    Args:
        content: The file: two zero bytes, the type (8 for unsigned bytes), the number of dimensions, their sizes as
            big-endian 32-bit integers, the values.
        name: For error messages.
        dimensions: The expected number of dimensions.

    Returns:
        uint8 tensor.

    Raises:
        ValueError: If the header or the length is wrong.

    Example:
        >>> read_idx(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]), "labels", 1)
        tensor([7, 9], dtype=torch.uint8)
    """
    head = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < head:
        raise ValueError(
            f"Expected {name} to begin like an IDX file of bytes in {dimensions} dimensions "
            f"(00 00 08 {dimensions:02x}), but got {content[:4].hex(' ')}. Is it the right file?"
        )
    shape = struct.unpack(f">{dimensions}I", content[4:head])
    if len(content) - head != math.prod(shape):
        raise ValueError(f"Expected {math.prod(shape)} values in {name}, but got {len(content) - head}. Is it whole?")
    return torch.frombuffer(bytearray(content[head:]), dtype=torch.uint8).reshape(shape)


def _cache_folder() -> Path:
    return platformdirs.user_cache_path("lightning_robust", appauthor=False) / "fashion-mnist"


def _read_folder(folder: Path) -> dict[str, bytes]:
    """Those of the files that are in a folder, without compression."""
    contents = {}
    for name in SHA256:
        plain, packed = folder / name, folder / f"{name}.gz"
        if plain.is_file():
            contents[name] = plain.read_bytes()
        elif packed.is_file():
            contents[name] = _unpack(packed.read_bytes(), str(packed))
    return contents


def _unpack(packed: bytes, source: str) -> bytes:
    try:
        return gzip.decompress(packed)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"Expected a whole gzip file from {source}, but got {error!r}. {_how_to_get()}") from error


def _fetch(name: str) -> bytes:
    with urllib.request.urlopen(f"{ADDRESS}/{name}.gz", timeout=60) as answer:  # noqa: S310 - a constant address
        packed: bytes = answer.read()
    content = _unpack(packed, f"{ADDRESS}/{name}.gz")
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256[name]:
        raise ValueError(
            f"Expected {name} with SHA-256 {SHA256[name]}, but got {digest} from {ADDRESS}. {_how_to_get()}"
        )
    folder = _cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{name}.{os.getpid()}"
    part.write_bytes(packed)
    part.replace(folder / f"{name}.gz")
    return content


def _how_to_get() -> str:
    return (
        "Get it in one of three ways: (1) on Debian or Ubuntu, apt-get install dataset-fashion-mnist; (2) put the four "
        f"files into a folder and pass it as `root` (--data.root=...); (3) let it be fetched from {ADDRESS}, once, "
        "which needs a connection."
    )
