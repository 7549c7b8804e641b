"""Small recordings and a module whose lines are known: two bright stripes in grey frames."""

import numpy as np
import torch
from torch import Tensor, nn

HEIGHT, WIDTH, ROWS = 32, 64, 4
LEVELS = 200


class Stripes(nn.Module):
    """Finds the brightest column left and right of the middle, by the centre of mass of what is brighter than grey.

    Pixels are normalised with mean 0.25 and std 0.5.
    """

    frame_height, frame_width = HEIGHT, WIDTH

    def __init__(self):
        super().__init__()
        self.register_buffer("places", torch.arange(WIDTH, dtype=torch.float32))
        self.rows = torch.arange(ROWS) * (HEIGHT / ROWS) + (HEIGHT / ROWS - 1) / 2

    def preprocess(self, frames: Tensor) -> Tensor:
        images = frames.permute(0, 3, 1, 2).float() / 255
        images = nn.functional.interpolate(images, (HEIGHT, WIDTH), mode="bilinear", antialias=True)
        return (images - 0.25) / 0.5

    def forward(self, images):
        light = ((images.mean(1) * 0.5 + 0.25) - 0.4).relu()
        light = light.unflatten(1, (ROWS, HEIGHT // ROWS)).mean(2).unflatten(2, (2, WIDTH // 2)).transpose(1, 2)
        mass = light.sum(3)
        return (light * self.places.view(2, 1, -1)).sum(3) / mass.clamp(min=1e-6), mass

    def decode(self, outputs):
        columns, mass = outputs
        return {"present": mass > 0.1, "columns_px": columns.masked_fill(mass <= 0.1, torch.nan)}


def stripes(left, right, height=HEIGHT, width=WIDTH):
    """Frames with a bright stripe, one pixel wide, at given columns of each frame; none for None."""
    frames = np.full((len(left), height, width, 3), 60, np.uint8)
    for frame, columns in zip(frames, zip(left, right, strict=True), strict=True):
        for column in columns:
            if column is not None:
                frame[:, column] = LEVELS
    return frames


def save_pictures(folder, frames):
    from PIL import Image

    folder.mkdir(exist_ok=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"frame_{number}.png")
    return folder


def save_video(path, frames, codec="mpeg4"):
    """Every frame a key frame, so that one that is damaged does not harm the others."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.codec_context.gop_size = 1
        stream.bit_rate = 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path
