"""Pictures of both sides are read; ``deployment/fingerprint`` says how they differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_robust.arrays import read_arrays
from lightning_robust.checks import check_file
from lightning_robust.deployment.fingerprint.code import write_transform
from lightning_robust.deployment.fingerprint.switch import refusal, write_switch
from lightning_robust.deployment.fingerprint.words import Fingerprint
from lightning_robust.deployment.pixels.layout import layout_of
from lightning_robust.deployment.replay.frames import PICTURES, Pictures, read_picture

Space = tuple[float | list[float] | None, float | list[float] | None]


def read_both(trained: str, deployed: str, key: str | None = None) -> tuple[tuple[NDArray[Any], NDArray[Any]], str]:
    """Pictures of both sides, ``(N, C, H, W)`` where channels come last on both, and a sentence that says so."""
    first, second = read_pictures(trained, key), read_pictures(deployed, key)
    if not (_channels_last(first) and _channels_last(second)):
        return (first, second), ""
    return (np.moveaxis(first, -1, 1), np.moveaxis(second, -1, 1)), "Channels come last on both sides."


def _channels_last(images: NDArray[Any]) -> bool:
    layout = layout_of(images.shape)
    return layout is not None and layout.letters == "NHWC"


def read_pictures(path: str, key: str | None = None) -> NDArray[Any]:
    """Pictures from a file, or from a folder of pictures in natural order (2 before 10), without conversion.

    One picture becomes ``(1, C, H, W)``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is no picture, pictures of several sizes, or several arrays and no key chooses one.
    """
    file = Path(path)
    if file.is_dir():
        return _read_frames(file)
    check_file("pictures", file)
    if file.suffix.lower() in PICTURES:
        return np.moveaxis(read_picture(file), -1, 0)[None]
    content = read_arrays(path, ".npy, .npz, a picture or a folder of pictures")
    images = content if isinstance(content, np.ndarray) else content[_choose_array([*content], key, path)]
    return images[None] if images.ndim == 3 else images


def _read_frames(folder: Path) -> NDArray[Any]:
    pictures = [read_picture(file) for file in Pictures(folder).files]
    sizes = {picture.shape[:2] for picture in pictures}
    if len(sizes) > 1:
        raise ValueError(f"Expected pictures of one size in {folder}, but got (height, width) {sorted(sizes)[:4]}.")
    return np.moveaxis(np.stack(pictures), -1, 1)


def write_found(
    found: Fingerprint, path: Path, line: str, sides: tuple[NDArray[Any], NDArray[Any]], space: Space
) -> str:
    """Write the settings that train against what was found, or the transform itself; and say so in a sentence.

    Args:
        found: The fingerprint.
        path: A new file, ``.py`` for the transform.
        line: The command line.
        sides: Training's pictures and the deployed side's.
        space: The mean and deviation that they were normalised with, where they were given.
    """
    code = path.suffix == ".py"
    reason = refusal(found)
    if not reason:
        try:
            text = _transform(found, sides, space, line) if code else write_switch(found, line)
        except ValueError as error:
            reason = str(error)
    if reason:
        return f"{path} was not written: {reason}"
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
    use = (
        "deployed(images) makes the deployed side's pictures of training's"
        if code
        else f"fit -c ... -c {path} trains against it"
    )
    return f"wrote {path}: {use}"


def _transform(found: Fingerprint, sides: tuple[NDArray[Any], NDArray[Any]], space: Space, line: str) -> str:
    trained, deployed = (torch.from_numpy(np.ascontiguousarray(side)) for side in sides)
    return write_transform(found, trained, deployed, line, mean=space[0], std=space[1])


def _choose_array(names: list[str], key: str | None, path: str) -> str:
    if key is not None and key not in names:
        raise ValueError(f"Expected {key!r} in {path}, but got {sorted(names)[:8]}.")
    inputs = [name for name in names if name.startswith("input/")] or names
    if key is None and len(inputs) != 1:
        raise ValueError(f"Expected one array in {path}, but got {sorted(names)[:8]}. Choose with --key.")
    return key or inputs[0]
