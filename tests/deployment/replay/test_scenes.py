"""Pictures of a replay: the planted frames are found, drawn where they are, and the files can be read."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_robust.deployment.replay.frames import open_recording
from lightning_robust.deployment.replay.measure import replay
from lightning_robust.deployment.replay.scenes import animate, distances, draw_worst_frames

from ..recordings import Stripes, save_pictures, stripes
from .test_measure import Planted, moved

NAN = torch.nan


@pytest.fixture
def recording(tmp_path):
    return open_recording(save_pictures(tmp_path / "frames", stripes([10] * 24, [50] * 24)))


def jumping(by, at):
    def change(columns, mass, number):
        columns[torch.isin(number, torch.tensor(at)), 0] += by
        return [columns, mass]

    return change


def pixels_of(figure):
    stream = io.BytesIO()
    figure.savefig(stream, dpi=50)
    return np.asarray(Image.open(stream).convert("RGB")).astype(int)


def close_to(picture, colour):
    return np.abs(picture - np.array(colour)).max(-1) < 40


def test_distances():
    reference = torch.tensor([[[1.0, 1.0]], [[1.0, 1.0]], [[1.0, NAN]], [[NAN, NAN]]])
    columns = torch.tensor([[[1.0, 4.0]], [[NAN, NAN]], [[2.0, 5.0]], [[7.0, 7.0]]])
    # lost points count as much as the largest deviation, 3; points beyond the reference's do not count
    assert distances(columns, reference).tolist() == [1.5, 3.0, 1.0, 0.0]
    assert distances(torch.full((1, 1, 2), NAN), reference[:1]).tolist() == [1.0]


def test_the_worst_frames_are_shown_well_apart(recording):
    report = replay(Stripes(), recording, [Planted(jumping(8.0, [5, 6, 18])), Planted(moved(0.01), "fp16")])
    figure = draw_worst_frames(report, recording, count=2)
    (block,) = figure.subfigs
    assert block.get_suptitle() == "Worst runtime: planted-fp32 (planted)"
    titles = [panel.get_title(loc="left") for panel in block.axes]
    assert titles == ["frame 5, up to 8 px", "frame 18, up to 8 px"]
    first = block.axes[0]
    drawn = [line.get_xdata() for line in first.lines]
    np.testing.assert_allclose(drawn[0], 10.0, atol=1e-4)  # PyTorch's left line in pixels of the module's frame
    np.testing.assert_allclose(drawn[1], 18.0, atol=1e-4)  # and the deployed one
    np.testing.assert_allclose(first.lines[0].get_ydata(), [3.5, 11.5, 19.5, 27.5])


def test_both_colours_are_seen(recording):
    report = replay(Stripes(), recording, [Planted(moved(8.0))])
    picture = pixels_of(draw_worst_frames(report, recording))
    assert close_to(picture, (0x19, 0xD3, 0xFF)).sum() > 100
    assert close_to(picture, (0xFF, 0x4F, 0x14)).sum() > 100


@pytest.mark.parametrize(
    ("by", "times"), [(0.7, 1), (0.4, 2), (0.13, 5), (0.1, 10), (0.04, 20), (0.01, 100), (1e-3, 100)]
)
def test_small_deviations_are_drawn_larger_and_said_so(recording, by, times):
    report = replay(Stripes(), recording, [Planted(moved(by))])
    (block,) = draw_worst_frames(report, recording).subfigs
    said = f"deviations drawn {times} times as large" in block.get_suptitle()
    assert said is (times > 1)
    np.testing.assert_allclose(block.axes[0].lines[1].get_xdata(), 10 + times * by, atol=1e-2)


def test_lost_points_are_marked(recording):
    def dropping(columns, mass, number):
        mass[number == 7, 1, 2:] = 0
        return [columns, mass]

    report = replay(Stripes(), recording, [Planted(dropping)])
    (block,) = draw_worst_frames(report, recording, count=1).subfigs
    panel = block.axes[0]
    assert panel.get_title(loc="left") == "frame 7, up to 0 px, points lost: 2"
    marks = panel.lines[5]  # the third of the second line
    assert marks.get_marker() == "x"
    np.testing.assert_allclose(marks.get_xdata(), 50, atol=1e-4)


def test_animation(recording, tmp_path):
    report = replay(Stripes(), recording, [Planted(jumping(8.0, [20]))])
    path = tmp_path / "replay.gif"
    assert animate(report, recording, path, count=6)
    with Image.open(path) as film:
        assert film.n_frames == 6
        assert film.size[0] == 720
        film.seek(2)  # frames 18 to 23
        seen = np.asarray(film.convert("RGB")).astype(int)
    assert close_to(seen, (0xFF, 0x4F, 0x14)).sum() > 100
    assert path.stat().st_size < 4_000_000


def test_nothing_to_draw(recording, tmp_path):
    report = replay(Stripes(), recording, [])
    assert draw_worst_frames(report, recording) is None
    assert not animate(report, recording, tmp_path / "none.gif")
    assert not (tmp_path / "none.gif").exists()
