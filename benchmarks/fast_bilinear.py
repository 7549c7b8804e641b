"""How far swscale's FAST_BILINEAR is from every filter of the catalogue, and from its own closed form.

    python benchmarks/fast_bilinear.py --recording solidWhiteRight.mp4 [--every 60]

Frames of a recording brought down to 144 x 256. The closed form, on x86: rows bilinear without antialiasing between
centres of pixels, columns the same at the step of ``moved_by_fast_bilinear``, and a colour or two levels darker. Mean
distances of 255, over all pixels and channels.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pixel_paths import RESIZERS, Picture, by_video_capture, moved_by_fast_bilinear

from lightning_robust.deployment.pixels.geometry import FILTERS
from lightning_robust.tables import markdown

SIZE = (144, 256)


def by_filter(frame: Picture, name: str) -> np.ndarray:
    """A filter of the catalogue on a frame, in whole levels."""
    levels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float()
    return FILTERS[name](levels, size=SIZE)[0].permute(1, 2, 0).double().round().clamp(0, 255).numpy()


def closed_form(frame: Picture, size: tuple[int, int] = SIZE) -> np.ndarray:
    """FAST_BILINEAR's pixels but for its levels, which are darker."""
    height, width = frame.shape[:2]
    factor = moved_by_fast_bilinear((height, width), size)[0, 0]
    rows = _bilinear(height, size[0], height / size[0])
    columns = _bilinear(width, size[1], width / size[1] / factor)
    return np.einsum("yh,hwc,xw->yxc", rows, frame.astype(float), columns, optimize=True)


def _bilinear(inputs: int, outputs: int, step: float) -> np.ndarray:
    """Weights (outputs, inputs) of the two pixels beside ``(x + 0.5) step - 0.5``, the border repeated."""
    places = ((np.arange(outputs) + 0.5) * step - 0.5).clip(0, inputs - 1)
    return (1 - np.abs(places[:, None] - np.arange(inputs))).clip(0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recording", type=Path, required=True)
    parser.add_argument("--every", type=int, default=60, help="each so many frames")
    given = parser.parse_args()
    frames = list(itertools.islice(by_video_capture(given.recording), 0, None, given.every))
    real = np.stack([RESIZERS["swscale FAST_BILINEAR"](frame, SIZE) for frame in frames]).astype(float)

    def made(change: Callable[[Picture], np.ndarray]) -> np.ndarray:
        return np.stack([change(frame) for frame in frames])

    own = made(closed_form)
    darker = (real - own).mean((0, 1, 2))
    others = {name: made(partial(by_filter, name=name)) for name in FILTERS}
    others |= {"closed form": own, f"closed form, {', '.join(f'{each:.2f}' for each in darker)} levels": own + darker}
    print(
        markdown(
            ["pixels", "levels away"], [[name, f"{np.abs(real - one).mean():.2f}"] for name, one in others.items()]
        )
    )


if __name__ == "__main__":
    main()
