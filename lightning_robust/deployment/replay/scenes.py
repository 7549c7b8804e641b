"""Pictures of a replay: recorded frames with the lines of PyTorch and of the worst deployment, and an animation."""

from __future__ import annotations

import io
import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lightning_robust.deployment.replay.module import Geometry
from lightning_robust.deployment.replay.recording import Picture, Recording
from lightning_robust.deployment.replay.results import ReplayReport, ReplayResult, worst
from lightning_robust.figures import DEPLOYED_COLOUR, PYTORCH_COLOUR, magnification
from lightning_robust.progress import track

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GIF_WIDTH = 720
_GIF_SIZES = ((128, 720), (64, 640), (64, 540), (48, 480), (32, 400))  # colours and width, until the file fits
_GIF_BYTES = 4_000_000
_GIF_MILLISECONDS = 80


def draw_worst_frames(report: ReplayReport, recording: Recording, count: int = 4) -> Figure | None:
    """The frames in which the worst runtime and the worst perturbation are farthest from PyTorch.

    The frames of one block lie apart in time. Where the largest deviation is below a hundredth of the frame's width,
    deviations are drawn 2 to 100 times as large as they are, and the heading says so.

    Args:
        report: Of the recording.
        recording: The recording that was replayed; the frames are read from it.
        count: Frames for each of the two.

    Returns:
        The figure; None where nothing was measured or the module has no geometry.
    """
    from matplotlib.figure import Figure

    scenes = _scenes(report)
    if not scenes:
        return None
    chosen = [scene.farthest(count) for scene in scenes]
    pictures = recording.pick(report.frames[position] for positions in chosen for position in positions)
    heights = [0.6 + math.ceil(len(positions) / 2) * (6.4 * scenes[0].shape + 0.1) for positions in chosen]
    figure = Figure(figsize=(13.0, sum(heights)), layout="constrained")
    blocks = figure.subfigures(len(scenes), 1, height_ratios=heights, squeeze=False)[:, 0]
    for block, scene, positions in zip(blocks, scenes, chosen, strict=True):
        block.suptitle(scene.title, fontsize=13, x=0.01, ha="left")
        panels = list(block.subplots(math.ceil(len(positions) / 2), 2, squeeze=False).flat)
        for panel, position in zip(panels, positions, strict=False):
            scene.draw(panel, position, pictures)
            panel.set_title(scene.caption(position), fontsize=10, loc="left")
        for panel in panels[len(positions) :]:
            panel.axis("off")
        block.legend(handles=_legend_handles(), loc="upper right", ncols=3, fontsize=10, frameon=False)
    return figure


def animate(report: ReplayReport, recording: Recording, path: Path, count: int = 48, size: int = _GIF_BYTES) -> bool:
    """Write the frames around the worst one as a GIF of at most 4 MB, in their order, 12.5 a second.

    Args:
        report: Of the recording.
        recording: The recording that was replayed; the frames are read from it.
        path: The file.
        count: The most frames.
        size: Bytes that it should not exceed; it gets smaller and has fewer colours instead.

    Returns:
        Whether it was written: False where nothing was measured or the module has no geometry.
    """
    scenes = _scenes(report)
    if not scenes:
        return False
    scene = max(scenes, key=lambda each: each.p99)
    first = max(0, min(scene.farthest(1)[0] - count // 2, len(report.frames) - count))
    positions = range(len(report.frames))[first : first + count]
    pictures = recording.pick(report.frames[position] for position in positions)
    film = [scene.render(position, pictures, _GIF_WIDTH) for position in track(positions, "Drawing the animation")]
    for colours, width in _GIF_SIZES:
        _write_film([_narrow(frame, width) for frame in film], path, colours)
        if path.stat().st_size <= size:
            break
    return True


class Drawn(NamedTuple):
    """A frame with lines on it, and what it shows.

    Args:
        image: A Pillow image.
        caption: Whose lines, which frame, how far off.
    """

    image: Any
    caption: str


def draw_worst_frame(report: ReplayReport, recording: Recording, name: str, width: int = 720) -> Drawn | None:
    """The one frame in which a runtime or a perturbation is farthest from PyTorch, without letters.

    Args:
        report: Of the recording.
        recording: The recording that was replayed; the frame is read from it.
        name: Of the runtime or perturbation.
        width: Of the picture, in pixels.

    Returns:
        None where it was not measured or the module has no geometry.
    """
    result = report.runtimes.get(name) or report.perturbations.get(name)
    scene = None if result is None else _scene(report, name, result)
    if scene is None:
        return None
    (position,) = scene.farthest(1)
    image = scene.render_bare(position, recording.pick([report.frames[position]]), width)
    return Drawn(image, f"{scene.heading}, {scene.caption(position)}")


def distances(columns: Tensor, reference: Tensor) -> Tensor:
    """How far the lines of each frame are from the reference's, in pixels: the mean over the reference's points.

    A point that is lost counts as much as the largest deviation of all frames, and as 1 where there is none.

    Args:
        columns: ``(N, lines, rows)``, NaN where there is no line.
        reference: Of the same shape.

    Returns:
        ``(N,)``; 0 for a frame in which the reference has no line.
    """
    deviation = (columns - reference).abs()
    known = deviation[~deviation.isnan()]
    largest = float(known.max()) if known.numel() else 0.0
    deviation[columns.isnan() & ~reference.isnan()] = largest or 1.0
    return deviation.flatten(1).nanmean(1).nan_to_num(0.0)


@dataclass(frozen=True)
class _Scene:
    """One runtime or perturbation drawn on frames; positions count the frames of the replay."""

    name: str
    columns: Tensor
    reference: Tensor
    p99: float
    frames: tuple[int, ...]
    geometry: Geometry

    @property
    def heading(self) -> str:
        return self.name + (f"; deviations drawn {self.times} times as large" if self.times > 1 else "")

    @property
    def title(self) -> str:
        return textwrap.fill(self.heading, 95)

    @property
    def top(self) -> float:
        """The first row to show: a little above the lines."""
        return max(-0.5, float(self.geometry.rows.min()) - 0.12 * self.geometry.height)

    @property
    def shape(self) -> float:
        """Height by width of what is shown."""
        return (self.geometry.height - 0.5 - self.top) / self.geometry.width

    @property
    def times(self) -> int:
        """By how much deviations are magnified so that the largest can be seen: the least that does."""
        deviation = (self.columns - self.reference).abs().nan_to_num(0.0)
        return magnification(float(deviation.max()), self.geometry.width)

    def farthest(self, count: int) -> list[int]:
        """Positions of the frames with the largest distances, apart from each other, in order."""
        distance = distances(self.columns, self.reference)
        apart = max(1, len(distance) // (4 * count))
        chosen: list[int] = []
        for position in distance.argsort(descending=True, stable=True).tolist():
            if len(chosen) < count and all(abs(position - other) >= apart for other in chosen):
                chosen.append(position)
        return sorted(chosen)

    def draw(self, panel: Axes, position: int, pictures: dict[int, Picture]) -> None:
        """One frame from a little above the lines to the bottom, in the coordinates of the module's frame."""
        height, width = self.geometry.height, self.geometry.width
        rows = self.geometry.rows.numpy()
        picture = pictures.get(self.frames[position])
        if picture is not None:
            panel.imshow(picture, extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="antialiased")
        for deployed, reference in zip(self.columns[position], self.reference[position], strict=True):
            magnified = torch.where(reference.isnan(), deployed, reference + self.times * (deployed - reference))
            lost = (deployed.isnan() & ~reference.isnan()).numpy()
            panel.plot(reference, rows, color=PYTORCH_COLOUR, linewidth=3.5)
            panel.plot(magnified, rows, color=DEPLOYED_COLOUR, linewidth=1.5, marker="o", markersize=2.5)
            panel.plot(reference[lost], rows[lost], "x", color="white", markersize=6, markeredgewidth=1.5)
        panel.set_xlim(-0.5, width - 0.5)
        panel.set_ylim(height - 0.5, self.top)
        panel.set_aspect("equal")
        panel.axis("off")

    def render_bare(self, position: int, pictures: dict[int, Picture], width: int) -> Any:
        """One frame without letters as a Pillow image."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.2, 7.2 * self.shape))
        self.draw(figure.add_axes((0, 0, 1, 1)), position, pictures)
        return _rasterise(figure, width)

    def render(self, position: int, pictures: dict[int, Picture], width: int) -> Any:
        """One frame with its heading as a Pillow image."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.2, 7.2 * self.shape + 0.5), layout="constrained")
        figure.suptitle(self.title, fontsize=9, x=0.01, ha="left")
        panel = figure.subplots()
        self.draw(panel, position, pictures)
        panel.set_title(self.caption(position), fontsize=10, loc="left")
        panel.legend(handles=_legend_handles(), loc="upper right", ncols=3, fontsize=8)
        return _rasterise(figure, width)

    def caption(self, position: int) -> str:
        columns, reference = self.columns[position], self.reference[position]
        deviation = (columns - reference).abs()
        known = deviation[~deviation.isnan()]
        lost = int((columns.isnan() & ~reference.isnan()).sum())
        farthest = f", up to {float(known.max()):.2g} px" if known.numel() else ""
        return f"frame {self.frames[position]}{farthest}" + (f", points lost: {lost}" if lost else "")


def _scenes(report: ReplayReport) -> list[_Scene]:
    """The worst runtime and the worst perturbation, of the kinds that were measured."""
    scenes = []
    for kind, results in (("runtime", report.runtimes), ("perturbation", report.perturbations)):
        name = worst(results)
        scene = None if name is None else _scene(report, f"Worst {kind}: {name}", results[name])
        scenes += [] if scene is None else [scene]
    return scenes


def _scene(report: ReplayReport, heading: str, result: ReplayResult) -> _Scene | None:
    if report.geometry is None or result.columns is None or result.reference is None:
        return None
    heading += f" ({result.note})" if result.note else ""
    return _Scene(heading, result.columns, result.reference, result.p99, report.frames, report.geometry)


def _narrow(frame: Any, width: int) -> Any:
    return frame if width == frame.width else frame.resize((width, round(frame.height * width / frame.width)))


def _write_film(film: list[Any], path: Path, colours: int) -> None:
    """One palette for all frames; it holds the colours of the lines, which few pixels have."""
    from PIL import Image, ImageColor

    width, height = film[0].size
    shown = film[:: -(-len(film) // 6)]
    sheet = Image.new("RGB", (width, height * len(shown)))
    for row, frame in enumerate(shown):
        sheet.paste(frame, (0, row * height))
    marks = [ImageColor.getrgb(colour) for colour in (PYTORCH_COLOUR, DEPLOYED_COLOUR, "white", "black")]
    levels = [level for mark in marks for level in mark]
    palette = Image.new("P", (1, 1))
    palette.putpalette(
        [*levels, *(sheet.quantize(colours - len(marks)).getpalette() or [])[: 3 * (colours - len(marks))]]
    )
    frames = [frame.quantize(palette=palette, dither=0) for frame in film]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=_GIF_MILLISECONDS, loop=0)


def _rasterise(figure: Figure, width: int) -> Any:
    from PIL import Image

    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=width / figure.get_figwidth())
    return Image.open(stream).convert("RGB")


def _legend_handles() -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=PYTORCH_COLOUR, linewidth=3.5, label="PyTorch"),
        Line2D([], [], color=DEPLOYED_COLOUR, linewidth=1.5, marker="o", markersize=2.5, label="deployed"),
        Line2D([], [], color="#666666", linestyle="", marker="x", markersize=6, label="lost"),
    ]
