"""Reads NumPy's files of arrays that others wrote; a damaged one is a sentence that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from lightning_robust.checks import check_file


def read_arrays(path: str | Path, what: str = "an .npz file") -> dict[str, NDArray[Any]] | NDArray[Any]:
    """The arrays of an .npz file by name, or the one of an .npy file. Objects are not read, since they would be run.

    Args:
        path: The file.
        what: What it should be, with its article.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is none of numbers and text, or damaged.
    """
    check_file(what, path)
    try:
        with Path(path).open("rb") as stream:  # numpy does not close a file that it cannot read
            content = np.load(stream, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            arrays = {name: content[name] for name in content.files}
    except (ValueError, EOFError, KeyError, BadZipFile, NotImplementedError, OSError) as error:
        why = "it holds no arrays of numbers" if "pickle" in str(error) else error
        raise ValueError(f"Expected {what} at {path}, but it cannot be read ({why}).") from error
    strange = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
    if strange:
        raise ValueError(f"Expected {what} at {path}, but {strange[:8]} in it are no arrays.")
    return arrays
