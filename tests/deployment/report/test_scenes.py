"""The pictures of a pass: which they are, what is drawn on them, and that they can be read."""

import math

import pytest
import torch
from matplotlib.patches import Rectangle

from lightning_robust.decoding import Boxes, Masks
from lightning_robust.deployment.parity.readout import Readout
from lightning_robust.deployment.parity.scenes import worst_scenes
from lightning_robust.deployment.report.page import write_report
from lightning_robust.deployment.report.scenes import draw_scene
from lightning_robust.figures import DEPLOYED_COLOUR, PYTORCH_COLOUR
from lightning_robust.functional import PixelSpace
from tests.figures import check_figure

from ..reports import report

HEIGHT, WIDTH = 48, 96
PICTURES = torch.linspace(-1, 1, WIDTH).expand(5, 3, HEIGHT, WIDTH)
UNIT = "boxes_centre_px_p99"


def readout(shift=(0.0,) * 5, scores=None, border=40):
    edges = torch.tensor([[10.0, 10, 30, 40], [50, 10, 80, 30]]).expand(5, 2, 4) + torch.tensor(shift)[:, None, None]
    scores = torch.ones(5, 2) if scores is None else scores
    boxes = Boxes(edges, scores, torch.zeros(5, 2, dtype=torch.long))
    mask = Masks((torch.arange(WIDTH) >= border).long().expand(5, HEIGHT, WIDTH), 2)
    return Readout([edges], {"boxes": boxes, "mask": mask})


def scenes(deployed, inputs=(PICTURES,), pixels=None):
    return worst_scenes("emulated-fp16", readout(), deployed, inputs, pixels, UNIT)


def rectangles(figure):
    """Colour, whether dashed, left and right edge of each box."""
    boxes = [each for each in figure.axes[0].patches if isinstance(each, Rectangle)]
    named = {PYTORCH_COLOUR: "ours", DEPLOYED_COLOUR: "theirs"}
    from matplotlib.colors import to_hex

    return [(named[to_hex(b.get_edgecolor())], b.get_linestyle(), b.get_x(), b.get_x() + b.get_width()) for b in boxes]


def test_the_worst_come_first():
    """A lost box and a new one are farther than any shift; three of five pictures, and no other."""
    scores = torch.ones(5, 2)
    scores[3, 1] = math.nan
    found = scenes(readout((0.5, 0.1, 1.0, 0.0, 0.2), scores))
    assert [scene.number for scene in found] == [3, 2, 0]
    assert {scene.samples for scene in found} == {5}
    again = worst_scenes("a", readout(scores=scores), readout(), (PICTURES,), None, UNIT)
    assert again[0].number == 3


def test_pictures_are_those_of_the_camera():
    """Pixels of 0.25 and 0.75 that were normalised; without a normalisation black is the least, white the most."""
    space = PixelSpace(0.5, 0.25)
    (scene, *_) = scenes(readout(), pixels=space)
    assert scene.picture.shape == (HEIGHT, WIDTH, 3)
    assert (int(scene.picture.min()), int(scene.picture.max())) == (round(255 * 0.25), round(255 * 0.75))
    (scene, *_) = scenes(readout())
    assert (int(scene.picture.min()), int(scene.picture.max())) == (0, 255)
    large = torch.zeros(5, 1, 1200, 2400)
    assert scenes(readout(), (large,))[0].picture.shape == (400, 800, 3)


def test_what_is_drawn():
    """Of a shift of 0.1 px a tenfold one, where a hundredth of the width is 0.96 px; borders as they are."""
    (scene, *_) = scenes(readout((0.1,) * 5, border=42))
    figure = draw_scene(scene)
    check_figure(figure)
    assert [(who, style) for who, style, *_ in rectangles(figure)] == [("ours", "-")] * 2 + [("theirs", "-")] * 2
    assert [left for _, _, left, _ in rectangles(figure)] == pytest.approx([10, 50, 11, 51], abs=1e-3)
    title = figure.get_suptitle().replace("\n", " ")
    assert title == "emulated-fp16, picture 1 of 5, edges up to 0.1 px off, drawn 10 times as large"
    borders = [path.vertices[:, 0].mean() for each in figure.axes[0].collections for path in each.get_paths()]
    assert borders == pytest.approx([40, 42], abs=0.01)  # pixel 40 begins at 40


def test_what_is_lost_and_new_is_dashed():
    scores = torch.ones(5, 2)
    scores[0, 1] = math.nan
    for ours, theirs, who, word in (
        (readout(), readout(scores=scores), "ours", "lost"),
        (readout(scores=scores), readout(), "theirs", "new"),
    ):
        (scene, *_) = worst_scenes("a", ours, theirs, (PICTURES,), None, UNIT)
        figure = draw_scene(scene)
        check_figure(figure)
        assert [each for each in rectangles(figure) if each[1] == "--"] == [(who, "--", 50.0, 80.0)]
        assert f"1 {word}" in figure.get_suptitle()


def test_pictures_without_boxes_and_boxes_of_other_pixels():
    none = readout(scores=torch.full((5, 2), math.nan))
    unit = "mask_boundary_px_p99"
    moved = none._replace(values={**none.values, "mask": readout(border=50).values["mask"]})
    (scene, *_) = worst_scenes("a", none, moved, (PICTURES,), None, unit)
    check_figure(draw_scene(scene))
    assert rectangles(draw_scene(scene)) == []
    small = worst_scenes("a", readout(), readout(), (PICTURES[..., :16, :16],), None, UNIT)
    assert rectangles(draw_scene(small[0])) == []  # boxes up to 80 in a picture of 16 pixels


def test_without_pictures_there_is_none():
    for inputs in ((), (torch.zeros(5, 7),), (torch.zeros(5, 8, 4, 4),)):
        assert scenes(readout(), inputs) == ()
    plain = Readout([torch.ones(5, 1)], {"x_px": torch.ones(5, 1)})
    assert worst_scenes("a", plain, plain, (PICTURES,), None, "x_px_p99") == ()


def test_the_page_shows_them_and_the_file_of_numbers_does_not(tmp_path):
    page = write_report(report(scenes=scenes(readout((0.1,) * 5))), tmp_path)
    text = page.read_text()
    assert text.count("picture 1 of 5") >= 1
    assert "The pictures farthest from PyTorch" in text
    assert '"scenes"' not in (tmp_path / "parity.json").read_text()
    assert "The pictures farthest" not in write_report(report(), tmp_path / "none").read_text()
