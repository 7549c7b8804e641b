"""Pictures of both sides are read; ``deployment/fingerprint`` says how they differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_robust.arrays import read_arrays
from lightning_robust.checks import check_file

_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


def read_pictures(path: str, key: str | None = None) -> NDArray[Any]:
    """Pictures from a file, without conversion; one picture becomes ``(1, C, H, W)``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no pictures, or several arrays and no key chooses one.
    """
    file = Path(path)
    check_file("pictures", file)
    if file.suffix.lower() in _PICTURES:
        from PIL import Image

        with Image.open(file) as picture:
            return np.asarray(picture.convert("RGB")).transpose(2, 0, 1)[None]
    content = read_arrays(path, ".npy, .npz or a picture")
    return content if isinstance(content, np.ndarray) else content[_choose_array([*content], key, path)]


def _choose_array(names: list[str], key: str | None, path: str) -> str:
    if key is not None and key not in names:
        raise ValueError(f"Expected {key!r} in {path}, but got {sorted(names)[:8]}.")
    inputs = [name for name in names if name.startswith("input/")] or names
    if key is None and len(inputs) != 1:
        raise ValueError(f"Expected one array in {path}, but got {sorted(names)[:8]}. Choose with --key.")
    return key or inputs[0]
