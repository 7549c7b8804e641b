"""About twenty numbers of a pass go to loggers; all of them can be monitored, and all are in parity.json."""

import csv
import json
import re

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger

from lightning_robust import DeploymentParityCallback
from lightning_robust.callbacks.deployment_parity.report import charts
from lightning_robust.callbacks.deployment_parity.tags import brief_tags
from lightning_robust.deployment.pixels.catalogue import CATALOGUE
from lightning_robust.deployment.pixels.names import FAMILIES
from tests.boring import Boring, make_trainer

OURS = ("parity/", "sensitivity/", "attribution/")
SETTINGS = {
    "targets": ["onnxruntime-fp32", "emulated-fp16"],
    "perturbations": ["bgr", "jpeg_90", "jpeg_75"],
    "num_samples": 4,
}


class Watched(Boring):
    """Its learning rate falls with a distance that is not among the few."""

    def decode(self, outputs):
        return {"score_px": outputs}

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.01)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "monitor": "parity/emulated-fp16/rmse"},
        }


@pytest.fixture(scope="module", params=["brief", "full"])
def run(request, tmp_path_factory):
    """What a fit has logged, what can be monitored, and its parity.json."""
    folder = tmp_path_factory.mktemp("run")
    callback = DeploymentParityCallback(
        **SETTINGS, log=request.param, tolerance={"onnxruntime-fp32/score_px_max": 1.0}, localise=True
    )
    stopping = EarlyStopping("sensitivity/bgr/max_abs", patience=9)
    pl.seed_everything(0)
    trainer = make_trainer(folder, [callback, stopping], max_epochs=1, logger=CSVLogger(folder))
    trainer.fit(Watched())
    with open(f"{trainer.log_dir}/metrics.csv", newline="") as stream:
        logged = {name for name in next(csv.reader(stream)) if name.startswith(OURS)}
    known = {name for name in trainer.callback_metrics if name.startswith(OURS)}
    with open(f"{trainer.log_dir}/parity/parity.json") as stream:
        return request.param, logged, known, json.load(stream), callback.report


def test_few_are_logged_and_all_can_be_monitored(run):
    log, logged, known, _, report = run
    assert known == {tag for tag in report.scalars() if "latency" not in tag}  # which is measured after the fit
    assert len(known) > 70
    if log == "full":
        assert logged == known
        return
    assert logged == {
        "parity/status",
        *("parity/onnxruntime-fp32/score_px_p99", "parity/emulated-fp16/score_px_p99"),
        *("parity/emulated-fp16/score_px_p99_low", "parity/emulated-fp16/score_px_p99_high"),
        *("sensitivity/family/channel_order", "sensitivity/family/compression"),
        # monitored by a callback, by a schedule, and by a tolerance
        *("sensitivity/bgr/max_abs", "parity/emulated-fp16/rmse", "parity/onnxruntime-fp32/score_px_max"),
    }


def test_nothing_is_lost_from_the_json(run):
    """Every number that was ever a tag stands in parity.json."""
    _, _, known, content, _ = run
    for tag in known - {"parity/status", "parity/findings", "parity/seconds"}:
        kind, name, metric = (*tag.split("/", 2), "")[:3]
        if kind == "attribution":
            (link,) = [link for link in content["chain"] if link["name"] == name.removesuffix("_bias")]
            assert {"value", "bias"} <= link.keys()
        elif name == "family":
            assert metric in {CATALOGUE[entry].family for entry in content["sensitivity"]}
        elif metric.endswith(("_low", "_high")):
            assert content["basis"][tag.rsplit("_", 1)[0]]
        elif metric == "status":
            assert content["targets"][name]["status"] == "measured"
        else:
            assert metric in (content["targets"][name]["metrics"] if kind == "parity" else content["sensitivity"][name])


def test_the_page_of_custom_scalars_has_few_lines_a_chart():
    """At most four tags, but for a run with more than four engines in a precision; each matches what is logged."""
    targets = ["onnxruntime-fp32", "emulated-tf32", "emulated-fp16", "tensorrt-fp16", "emulated-int8"]
    numbers = {f"parity/{name}/{metric}": 0.1 for name in targets for metric in ("rel_l2", "x_px_known_p99", "bias")}
    numbers |= {f"parity/{name}/x_px_guessed_p99": 1.0 for name in targets}
    numbers |= {f"sensitivity/family/{name}": 0.1 for name in FAMILIES}
    logged = list(brief_tags(numbers, "x_px_known_p99"))
    found = {
        title: [tag for tag in numbers if re.search(pattern, tag)]
        for title, (pattern,) in charts(decoded=True, targets=targets).items()
    }
    assert found["distance to PyTorch, fp16"] == [f"parity/{n}-fp16/x_px_known_p99" for n in ("emulated", "tensorrt")]
    assert all(1 <= len(tags) <= 4 and set(tags) <= set(logged) for tags in found.values())
    assert sum(len(tags) for title, tags in found.items() if "differed" in title) == len(FAMILIES)
    assert "distance to PyTorch, int8" not in charts(decoded=False)


def test_rejects_another_amount():
    with pytest.raises(ValueError, match="Expected `log` to be 'brief' or 'full', but got 'all'"):
        DeploymentParityCallback(log="all")
