"""Pictures of a parity pass with the boxes and the borders of masks of PyTorch and of a target."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from lightning_robust.decoding import Boxes, Masks
from lightning_robust.deployment.parity.scenes import WorstPicture
from lightning_robust.figures import DEPLOYED_COLOUR, FONT, PYTORCH_COLOUR, WIDTH, magnification, panel, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ABOVE, _BELOW = 0.75, 0.6  # inches, of the title and of the legend
_MANY_TIMES = 4  # larger than the picture: then boxes are counted in other pixels


class _Pairs(NamedTuple):
    """The boxes of a picture: those that belong together, and those that are on one side alone."""

    ours: Tensor
    theirs: Tensor
    lost: Tensor
    new: Tensor

    @classmethod
    def of(cls, reference: Boxes, deployed: Boxes) -> _Pairs:
        parts = reference.compare(deployed).parts
        sides = []
        for side in (0, 1):
            centre, half = parts["centre_px"][side][0].double(), parts["size_px"][side][0].double() / 2
            sides.append(torch.cat([centre - half, centre + half], -1))
        here, there = (~side.isnan().any(-1) for side in sides)
        ours, theirs = sides
        return cls(ours[here & there], theirs[here & there], ours[here & ~there], theirs[there & ~here])

    @property
    def largest(self) -> float:
        """How far an edge is from the reference's, at most."""
        return float((self.theirs - self.ours).abs().max()) if len(self.ours) else 0.0


def draw_scene(scene: WorstPicture) -> Figure:
    """Draw what both sides found in one picture.

    Where the largest deviation of an edge is below a hundredth of the picture's width, deviations are drawn 2 to 100
    times as large as they are, and the title says so. Borders of masks are drawn as they are.

    Args:
        scene: Of a pass.
    """
    height, width = scene.size
    pairs = list(_pairs(scene))
    largest = max((each.largest for each in pairs), default=0.0)
    times = magnification(largest, width)
    figure, axes = panel(WIDTH * height / width + _ABOVE + _BELOW, _title(scene, pairs, largest, times))
    axes.imshow(scene.picture.numpy(), extent=(0, width, height, 0), interpolation="antialiased")
    for name, value in scene.reference.items():
        deployed = scene.deployed.get(name)
        if isinstance(value, Masks) and isinstance(deployed, Masks):
            _draw_borders(axes, value, PYTORCH_COLOUR, 2.4, scene.size)
            _draw_borders(axes, deployed, DEPLOYED_COLOUR, 1.0, scene.size)
    for each in pairs:
        _draw_boxes(axes, each.ours, PYTORCH_COLOUR, 2.6)
        _draw_boxes(axes, each.ours + times * (each.theirs - each.ours), DEPLOYED_COLOUR, 1.2)
        _draw_boxes(axes, each.lost, PYTORCH_COLOUR, 2.6, dashed=True)
        _draw_boxes(axes, each.new, DEPLOYED_COLOUR, 1.8, dashed=True)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    _add_names(figure, pairs)
    return figure


def _pairs(scene: WorstPicture) -> Iterator[_Pairs]:
    """The boxes by value, but those that are counted in other pixels than the picture's."""
    for name, value in scene.reference.items():
        deployed = scene.deployed.get(name)
        if isinstance(value, Boxes) and isinstance(deployed, Boxes):
            ends = value.xyxy[value.present]
            if not len(ends) or float(ends.max()) <= _MANY_TIMES * max(scene.size):
                yield _Pairs.of(value, deployed)


def _title(scene: WorstPicture, pairs: list[_Pairs], largest: float, times: int) -> str:
    lost, new = (sum(len(getattr(each, side)) for each in pairs) for side in ("lost", "new"))
    parts = [f"{scene.target}, picture {scene.number + 1} of {scene.samples}"]
    parts += [f"edges up to {largest:.2g} px off"] if pairs else []
    parts += [f"drawn {times} times as large"] if times > 1 else []
    parts += [f"{count} {what}" for count, what in ((lost, "lost"), (new, "new")) if count]
    return ", ".join(parts)


def _draw_boxes(axes: Axes, edges: Tensor, colour: str, width: float, *, dashed: bool = False) -> None:
    from matplotlib.patches import Rectangle

    style = "--" if dashed else "-"
    for left, top, right, bottom in edges.tolist():
        corner, sides = (left, top), (right - left, bottom - top)
        axes.add_patch(Rectangle(corner, *sides, fill=False, edgecolor=colour, linewidth=width, linestyle=style))


def _draw_borders(axes: Axes, masks: Masks, colour: str, width: float, size: tuple[int, int]) -> None:
    """The border of each class but the first, in the pixels of the picture."""
    labels = masks.labels[0].cpu()
    rows, columns = (
        (torch.arange(count) + 0.5) * (length / count) for count, length in zip(labels.shape, size, strict=True)
    )
    for label in range(1, masks.classes):
        inside = labels == label
        if bool(inside.any()) and not bool(inside.all()):
            axes.contour(columns, rows, inside.float(), levels=[0.5], colors=[colour], linewidths=width)


def _add_names(figure: Figure, pairs: list[_Pairs]) -> None:
    from matplotlib.lines import Line2D

    names: list[tuple[str, str, Literal["-", "--"]]] = [
        ("PyTorch", PYTORCH_COLOUR, "-"),
        ("deployed", DEPLOYED_COLOUR, "-"),
    ]
    names += [("lost", PYTORCH_COLOUR, "--")] if any(len(each.lost) for each in pairs) else []
    names += [("new", DEPLOYED_COLOUR, "--")] if any(len(each.new) for each in pairs) else []
    lines = [Line2D([], [], color=colour, linestyle=style, linewidth=2.4) for _, colour, style in names]
    words = [plain(name) for name, _, _ in names]
    figure.legend(lines, words, loc="outside lower left", ncols=4, fontsize=FONT, frameon=False)
