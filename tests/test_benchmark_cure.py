"""The benchmark of the cure measures what is known beforehand, and its rows are commands."""

import types
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_robust.cli import RobustCLI
from lightning_robust.deployment.pixels.catalogue import CATALOGUE
from lightning_robust.deployment.pixels.names import FAMILIES

ROOT = Path(__file__).parents[1]


class Bright:
    """Two straight lines: the left one stands still, the right one moves by a pixel for each level of brightness."""

    height = width = 24
    rows = torch.arange(350.0, 521.0, 10.0, dtype=torch.float64)

    def eval(self):
        return self

    def __call__(self, images):
        from lightning_robust.demo.lanes.data import MEAN, STD

        levels = (images * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]) * 255
        right = 500 + levels.double().mean((1, 2, 3))
        return torch.stack([torch.full_like(right, 400.0), right], 1)[..., None].expand(-1, -1, len(self.rows))

    def decode(self, columns):
        return {"lateral_px": columns}

    def moved(self, values, matrix):
        return {"lateral_px": values["lateral_px"] + float(matrix[0, 2])}


@pytest.fixture(scope="module")
def measured(benchmark, tmp_path_factory):
    """The numbers of `Bright` on grey pictures of level 100 in four blocks, for both kinds of pictures."""
    lanes, folder = benchmark("lane_sensitivity"), tmp_path_factory.mktemp("pixels")
    pictures = torch.full((8, 3, 24, 24), 100 / 255)
    truth = np.broadcast_to(np.array([400.0, 600.0])[:, None], (8, 2, len(Bright.rows)))
    kinds = [lanes.Source(name, folder, truth, 2) for name in ("rendered", "recording")]
    for kind in kinds:
        lanes.make_pixels(kind, pictures)
    return lanes.sensitivities(Bright(), kinds), lanes, kinds


@pytest.mark.parametrize("kind", ["rendered", "recording"])
def test_closed_form(measured, kind):
    """Of a grey of 100: what the worst entry of a family adds to it, in levels, for one of two lines."""
    found = measured[0]
    assert found[f"p99/{kind}/channel_order"] == found[f"p99/{kind}/color_matrix"] == 0.0
    assert found[f"p99/{kind}/gamma"] == pytest.approx(round(255 * (100 / 255) ** 0.7) - 100, abs=1e-3)
    assert found[f"mean/{kind}/gamma"] == pytest.approx(found[f"p99/{kind}/gamma"] / 2)
    # levels cut off to six bits: 100 stays, a multiple of 4
    assert found[f"p99/{kind}/rounding"] == pytest.approx(0.0, abs=1e-3)
    # content of one colour does not move, but the lines of the clean picture are expected a pixel further right
    assert found[f"p99/{kind}/shift"] == pytest.approx(1.0, abs=1e-3)
    assert found[f"p99_low/{kind}/shift"] == found[f"p99_high/{kind}/shift"] == pytest.approx(1.0, abs=1e-3)
    values = [found[f"p99/{kind}/{family}"] for family in FAMILIES]
    assert found[f"p99_median/{kind}"] == sorted(values)[5]
    assert found[f"p99_worst/{kind}"] == max(values)


def test_swing_is_of_the_frames_and_nothing_is_made_twice(measured):
    found, lanes, kinds = measured
    assert [found[name] for name in ("swing", "bend", "recording_px")] == pytest.approx([0, 0, 0], abs=1e-4)
    # a brighter picture is as still; noise has other draws only where pixels differ
    assert found["swing_worst"] == pytest.approx(0.0, abs=1e-4)
    before = {path: path.stat().st_mtime_ns for path in kinds[0].folder.rglob("*.npy")}
    assert len(before) == 2 * (len(CATALOGUE) + 2)
    lanes.make_pixels(kinds[0], torch.zeros(8, 3, 24, 24))
    assert before == {path: path.stat().st_mtime_ns for path in kinds[0].folder.rglob("*.npy")}


def test_points_that_the_model_does_not_know_are_not_counted(measured):
    _, lanes, (rendered, _) = measured
    off = rendered._replace(truth=rendered.truth + np.array([0.0, 11.0])[:, None])
    found = lanes.sensitivities(Bright(), [off])
    assert found["mean/rendered/gamma"] == 0.0, "the right line is 11 px beside the truth"


class Brightest:
    """Finds the brightest column, a line that stands upright; with a view that is added to it."""

    def __init__(self):
        self.network = types.SimpleNamespace(view=torch.nn.Identity())

    def features(self, images):
        return images.mean((1, 2, 3))

    def __call__(self, images):
        place = images[:, 0, 0].argmax(-1).double() + self.network.view(self.features(images)).double()
        return place[:, None, None].expand(-1, 2, 3)

    def decode(self, columns):
        return {"lateral_px": columns}

    def moved(self, values, matrix):
        return {"lateral_px": values["lateral_px"] + matrix[0, 2]}


def test_a_shift_by_whole_pixels_is_told_from_the_view(benchmark):
    """A line moves with its picture; the view, here its mean, changes with the border that is repeated."""
    phase = benchmark("shift_phase")
    images = torch.zeros(2, 3, 4, 16)
    images[..., 0], images[..., 5] = 0.5, 1.0
    # three more columns of the border's 0.5, of 16
    assert phase.row(Brightest(), images, 3) == ["3", "0.09, 0.1", "0.00, 0.0"]


def test_rows_are_commands(benchmark, tmp_path, monkeypatch):
    """Parsed and built, one of each kind; none of them trains here."""
    cure = benchmark("cure")
    monkeypatch.chdir(ROOT)
    entries = {}
    for row in ("random, FGSM-RS", "measured", *cure.LEFT_OUT):
        args = [
            "-c",
            cure.CONFIG,
            f"--trainer.logger.save_dir={tmp_path}",
            *cure.RECIPE,
            *(cure.ROWS | cure.LEFT_OUT)[row],
        ]
        entries[row] = RobustCLI(args=args, run=False).model.preprocessing_entries
    assert entries["random, FGSM-RS"] == "all"
    for family, names in FAMILIES.items():
        left = set(entries[f"without {family}"])
        assert not left & set(names)
        assert len(left) == len(CATALOGUE) - len(names)
