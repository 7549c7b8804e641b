"""The benchmark of traffic: its rows are commands, and what it measures of a perfect detector is one."""

import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lightning_robust.callbacks import GreedySoupCallback, SWACallback
from lightning_robust.cli import RobustCLI
from lightning_robust.demo.traffic import TrafficData, TrafficDetector
from lightning_robust.demo.traffic.detector import true_boxes

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.chdir(ROOT)
    return importlib.import_module("traffic")


def test_rows_are_commands(benchmark, tmp_path):
    built = {}
    for row, switches in benchmark.ROWS.items():
        args = ["-c", benchmark.CONFIG, f"--trainer.logger.save_dir={tmp_path}", *switches]
        built[row] = RobustCLI(args=args, run=False)
    averaged = {row for row, cli in built.items() if any(isinstance(c, SWACallback) for c in cli.trainer.callbacks)}
    assert averaged == {"SWA, 12 and 12 epochs", "EMA"}
    cooked = {
        row for row, cli in built.items() if any(isinstance(c, GreedySoupCallback) for c in cli.trainer.callbacks)
    }
    assert cooked == {"greedy soup of epochs"}
    longer = built["SWA, 12 and 12 epochs"]
    assert (longer.trainer.max_epochs, longer.model.schedule_epochs) == (24, 12)
    assert built["preprocessing"].model.preprocessing_weight == 1


class Perfect(TrafficDetector):
    """Knows where everything is, in pictures that moved too: its answers are written into the first call's order."""

    def __init__(self, matrix, targets):
        super().__init__(height=64, width=96, channels=8)
        truth = true_boxes(self.move_targets(targets, matrix))
        kinds = torch.nn.functional.one_hot(truth.labels.clamp(min=0), 5) * truth.present[..., None]
        together = [truth.centre_px.nan_to_num(0.0), truth.size_px.nan_to_num(1.0), kinds.float()]
        self.answer = torch.cat(together, -1).transpose(1, 2)

    def forward(self, images):
        return SimpleNamespace(detections=self.answer)


def test_targets_move_with_the_perturbed_picture(benchmark):
    """Of a detector that follows a crop, and of one that answers as if nothing had moved."""
    data = TrafficData(num_train=1, num_val=6, batch_size=6, height=64, width=96, render_workers=0)
    data.setup("validate")
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()]
    (entry,) = benchmark.perturbations(["crop"])[:1]
    matrix = entry.matrix(64, 96).float()
    assert benchmark.precision_under(Perfect(matrix, batches[0][1]), batches, entry.name) == 1.0
    still = Perfect(torch.eye(3), batches[0][1])
    assert benchmark.precision_under(still, batches, "jpeg_75") == 1.0
    assert benchmark.precision_under(still, batches, entry.name) < 0.9
