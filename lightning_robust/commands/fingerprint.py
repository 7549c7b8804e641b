"""``lightning-robust fingerprint``: what differs between training's pictures and the deployed side's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_robust.deployment.fingerprint.search import fingerprint as fingerprint_of

_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


def fingerprint(
    trained: str,
    deployed: str,
    *,
    key: str | None = None,
    mean: float | list[float] | None = None,
    std: float | list[float] | None = None,
) -> None:
    """Say what the deployed side's preprocessing does differently, from the same frames as both sides feed them.

    Args:
        trained: Training's pictures, N x C x H x W: .npy, .npz, or one picture (RGB).
        deployed: The deployed side's, in the same form, for the same frames in the same order.
        key: Which array of an .npz file; not needed where there is one, or one named input/... .
        mean: Mean that the pixels were normalised with, for pixels in [0, 1]; usual values are recognised.
        std: Standard deviation that the pixels were normalised with; usual values are recognised.
    """
    print(fingerprint_of(read_pictures(trained, key), read_pictures(deployed, key), mean=mean, std=std))


def read_pictures(path: str, key: str | None = None) -> NDArray[Any]:
    """Pictures from a file, without conversion; one picture becomes ``(1, C, H, W)``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no pictures, or several arrays and no key chooses one.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"Expected pictures at {path}, but there is no such file.")
    if file.suffix.lower() in _PICTURES:
        from PIL import Image

        with Image.open(file) as picture:
            return np.asarray(picture.convert("RGB")).transpose(2, 0, 1)[None]
    try:
        content = np.load(file, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"Expected .npy, .npz or a picture at {path}, but got: {error}.") from error
    if isinstance(content, np.ndarray):
        return content
    array: NDArray[Any] = content[_choose_array(content.files, key, path)]
    return array


def _choose_array(names: list[str], key: str | None, path: str) -> str:
    if key is not None and key not in names:
        raise ValueError(f"Expected {key!r} in {path}, but got {sorted(names)[:8]}.")
    inputs = [name for name in names if name.startswith("input/")] or names
    if key is None and len(inputs) != 1:
        raise ValueError(f"Expected one array in {path}, but got {sorted(names)[:8]}. Choose with --key.")
    return key or inputs[0]
