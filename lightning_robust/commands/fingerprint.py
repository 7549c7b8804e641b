"""``lightning-robust fingerprint``: what differs between training's pictures and the car's."""

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
    """Say what the car's preprocessing does differently, from the same frames as both sides feed them.

    Args:
        trained: What training feeds, N x C x H x W: .npy, .npz, or one picture (RGB).
        deployed: What the car feeds, likewise, for the same frames in the same order.
        key: Which array of an .npz file; not needed where there is one, or one named input/... .
        mean: Mean that the pixels were normalised with, for pixels in [0, 1]; found by itself for usual values.
        std: Standard deviation likewise.
    """
    print(fingerprint_of(read_pictures(trained, key), read_pictures(deployed, key), mean=mean, std=std))


def read_pictures(path: str, key: str | None = None) -> NDArray[Any]:
    """Pictures from a file, as it holds them; one picture becomes ``(1, C, H, W)``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no pictures, or it is not clear which.
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
    names = [name for name in content.files if name.startswith("input/")] or content.files
    if key is None and len(names) != 1:
        raise ValueError(f"Expected one array in {path}, but got {sorted(content.files)[:8]}. Choose with --key.")
    wanted = key or names[0]
    if wanted not in content.files:
        raise ValueError(f"Expected {wanted!r} in {path}, but got {sorted(content.files)[:8]}.")
    array: NDArray[Any] = content[wanted]
    return array
