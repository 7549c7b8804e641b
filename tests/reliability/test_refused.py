"""What would measure nothing, or hold nothing, is refused in a sentence before any work begins."""

import math

import pytest
import torch
from torch import nn

from lightning_robust import (
    DatapathCallback,
    DeploymentParityCallback,
    GreedySoupCallback,
    LayerCriticalityCallback,
    LazyTrainingCallback,
    RobustValidationCallback,
    WiSEFTCallback,
    measure_parity,
)
from lightning_robust.deployment.engines import BuildSettings, Subject, available
from lightning_robust.deployment.pixels.catalogue import perturbations
from lightning_robust.layers import find_layers
from tests.boring import Boring, make_trainer


def measure(samples=4, targets=("torch-bf16",), **settings):
    subject = Subject(nn.Linear(3, 1).eval(), (torch.ones(samples, 3),))
    return measure_parity(subject, available(list(targets)), **settings)


REFUSED = {
    "no samples": (lambda: measure(samples=0), "samples to measure on, but got none"),
    "no runtimes": (lambda: measure(targets=()), "at least one runtime or perturbation to compare, but got none"),
    "no time": (lambda: measure(time_limit=0), "`time_limit` to be positive, but got 0"),
    "a time that is no number": (lambda: measure(time_limit=math.nan), "`time_limit` to be positive, but got nan"),
    "a tolerance in words": (
        lambda: measure(tolerance={"torch-bf16": "small"}),
        "'torch-bf16' to be a number .* 'small'",
    ),
    "a negative tolerance": (lambda: measure(tolerance={"torch-bf16": -1}), "to be a number from 0, but got -1"),
    "no targets": (lambda: DeploymentParityCallback([]), "at least one target, or 'auto'"),
    "targets as text": (
        lambda: DeploymentParityCallback("torch-bf16"),
        "'auto' or a list of names, but got 'torch-bf16'",
    ),
    "a target twice": (
        lambda: DeploymentParityCallback(["torch-bf16"] * 2),
        "each target once, but got 'torch-bf16' 2",
    ),
    "a tolerance for nothing": (
        lambda: DeploymentParityCallback(["torch-fp32"], tolerance={"torch-bf16/rel_l2": 1}),
        "targets that are measured, .*'torch-fp32'.* got 'torch-bf16/rel_l2'",
    ),
    "NaN for a tolerance": (
        lambda: DeploymentParityCallback(tolerance={"torch-bf16": math.nan}),
        "number of at least 0, but got nan",
    ),
    "no perturbations": (lambda: DeploymentParityCallback(perturbations=[]), r"or 'none' to say so, but got \[\]"),
    "none of the catalogue": (lambda: perturbations([]), r"but got \[\]"),
    "a spread of zero": (lambda: DeploymentParityCallback(std=0.0), "`std` to be positive"),
    "no inputs": (lambda: DeploymentParityCallback(input_key=[]), "`input_key` .* empty list"),
    "an unknown action": (lambda: DeploymentParityCallback(on_violation="stopp"), "`on_violation` .* got 'stopp'"),
    "an unknown answer": (lambda: DeploymentParityCallback(on_failure="rais"), "`on_failure` .* got 'rais'"),
    "and of another technique": (lambda: LazyTrainingCallback(on_failure="ignore"), "`on_failure` .* got 'ignore'"),
    "a limit that is no number": (lambda: BuildSettings(time_limit=math.nan), "`time_limit` to be positive"),
    "no deployed file": (lambda: BuildSettings(deployed=[]), r"a file in `deployed`, .* got \[\]"),
    "no such inputs for int8": (lambda: BuildSettings(calibration_data="/no/such.npz"), "there is no /no/such.npz"),
    "no ingredients": (lambda: GreedySoupCallback(ingredients="", monitor="a", mode="min"), "one path or glob .* ''"),
    "no metrics": (lambda: WiSEFTCallback(monitor=[], mode="min"), "at least one metric in `monitor`"),
    "no radius": (lambda: RobustValidationCallback(eps=[]), "at least one radius in `eps`"),
    "no batches": (lambda: RobustValidationCallback(eps=0.1, batches=0), "`batches` of at least 1"),
    "a length that is no number": (lambda: LazyTrainingCallback(betas=[math.nan]), "`betas` above 0"),
    "no layers": (lambda: find_layers(Boring(), []), r"names of layers or None for all .* got \[\]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rejects(case):
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: DatapathCallback(layers=[]),
        lambda: LayerCriticalityCallback(layers={}, monitor="val/loss", mode="min"),
        lambda: LayerCriticalityCallback(monitor="val/loss", mode="minimum"),
        lambda: GreedySoupCallback(monitor="val/loss", mode="minimum"),
        lambda: WiSEFTCallback(monitor="val/loss", mode="minimum"),
    ],
)
def test_rejects_before_the_first_batch(tmp_path, make):
    class Untouched(Boring):
        def training_step(self, batch, batch_idx):
            raise AssertionError("a batch was trained")

    with pytest.raises(Exception, match=r"names of layers or None|mode='minimum'"):
        make_trainer(tmp_path, [make()]).fit(Untouched())


def test_a_tolerance_whose_metric_is_not_there_is_named(tmp_path):
    limits = {"torch-bf16": 1.0, "torch-bf16/lateral_px_p99": 1.0}
    callback = DeploymentParityCallback(["torch-bf16"], perturbations="none", num_samples=4, tolerance=limits)
    with pytest.warns(UserWarning, match="a tolerance holds nothing: there is no parity/torch-bf16/lateral_px_p99"):
        make_trainer(tmp_path, [callback], max_epochs=1).fit(Boring())
