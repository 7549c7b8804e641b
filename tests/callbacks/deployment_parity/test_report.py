"""What of a report goes to loggers."""

import json
from dataclasses import replace
from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from lightning_robust import DeploymentParityCallback
from lightning_robust.callbacks.deployment_parity.report import layers_report
from lightning_robust.deployment.parity.result import Examination
from tests.boring import Boring, Pictures, make_trainer

from ...deployment.reports import KEEP, layers, node, report


def test_layers_of_both_precisions_have_their_own_tags():
    int8 = Examination(replace(layers(node("conv", 0.1)), precision="int8"), replace(KEEP, precision="int8"))
    shown = layers_report(report(layers=layers(node("a", 0.2)), keep=KEEP, int8=int8))
    assert list(shown.tables) == ["parity/layers", "parity/keep_fp32", "parity/layers_int8", "parity/exclude_int8"]
    assert list(shown.figures) == ["parity/layers", "parity/drift", "parity/layers_int8", "parity/drift_int8"]
    assert [rows[0][0] for _, rows in shown.tables.values()] == ["1", "a", "1", "a"]
    assert shown.figures["parity/layers_int8"]().get_suptitle() == "What costs most in int8, each node alone"


def test_nothing_where_nothing_was_measured():
    assert layers_report(report()) == layers_report(report(layers=None))
    assert not layers_report(report()).tables


def test_a_fit_examines_both_precisions_and_writes_both_lists(tmp_path):
    """Each list is of its own nodes: all that compute, and the products."""
    callback = DeploymentParityCallback(["emulated-fp16", "emulated-int8"], perturbations="none", num_samples=8)
    trainer = make_trainer(tmp_path, max_epochs=1, callbacks=[callback], logger=TensorBoardLogger(tmp_path))
    trainer.fit(Boring(), DataLoader(Pictures(), 8), DataLoader(Pictures(), 8))
    folder = Path(trainer.log_dir) / "parity"
    lists = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("keep_fp32", "exclude_int8")}
    assert lists["exclude_int8"]["of"] == 2 < lists["keep_fp32"]["of"]
    assert lists["exclude_int8"]["precision"] == "int8"
    assert "Which layers int8 hurts" in (folder / "parity.html").read_text()
    assert {node.op for node in callback.report.int8.layers.nodes} == {"Conv", "Gemm"}
