"""Pictures of both sides are read; ``deployment/fingerprint`` says how they differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_robust.arrays import read_arrays
from lightning_robust.checks import check_file
from lightning_robust.deployment.fingerprint.code import write_transform
from lightning_robust.deployment.fingerprint.levels import find_units
from lightning_robust.deployment.fingerprint.switch import refusal, write_switch
from lightning_robust.deployment.fingerprint.words import Fingerprint

Space = tuple[float | list[float] | None, float | list[float] | None]
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
            text = write_transform(found, *_as_pixels(sides, space), line) if code else write_switch(found, line)
        except ValueError as error:
            reason = str(error)
    if reason:
        return f"{path} was not written: {reason}"
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
    use = "deployed(pixels) makes the deployed side's pictures" if code else f"fit -c ... -c {path} trains against it"
    return f"wrote {path}: {use}"


def _as_pixels(sides: tuple[NDArray[Any], NDArray[Any]], space: Space) -> tuple[Tensor, Tensor]:
    """Pictures of both sides in [0, 1], the deployed side's in the units of training's where both are floating."""
    trained, deployed = (torch.from_numpy(np.ascontiguousarray(side)) for side in sides)
    here = find_units(trained, *space)
    there = here if trained.is_floating_point() == deployed.is_floating_point() else find_units(deployed)
    channels_last = deployed.shape[1] != trained.shape[1]
    axes = (0, 3, 1, 2) if channels_last else (0, 1, 2, 3)
    levels = there.to_levels(deployed.permute(*axes))
    return here.to_levels(trained) / 255, (levels.permute(0, 2, 3, 1) if channels_last else levels) / 255


def _choose_array(names: list[str], key: str | None, path: str) -> str:
    if key is not None and key not in names:
        raise ValueError(f"Expected {key!r} in {path}, but got {sorted(names)[:8]}.")
    inputs = [name for name in names if name.startswith("input/")] or names
    if key is None and len(inputs) != 1:
        raise ValueError(f"Expected one array in {path}, but got {sorted(names)[:8]}. Choose with --key.")
    return key or inputs[0]
