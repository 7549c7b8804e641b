"""The settings of engines reach the subject that engines are built from."""

import pytest
import torch
from torch import nn

from lightning_robust import DeploymentParityCallback
from lightning_robust.callbacks.deployment_parity.engine_settings import EngineSettings


def test_settings_reach_the_subject():
    settings = EngineSettings(
        max_batch=3, weakly_typed=True, keep_fp32=["head"], out_of_range="keep", tf32=True, refit=True
    )
    subject = settings.subject(nn.Identity(), (torch.zeros(2, 1),), "cpu", 7.0)
    names = ("max_batch", "weakly_typed", "keep_fp32", "out_of_range", "tf32", "refit", "device", "time_limit")
    assert [getattr(subject, name) for name in names] == [3, True, ("head",), "keep", True, True, "cpu", 7.0]


def test_defaults_are_those_of_builders_and_of_an_engine_without_tf32():
    subject = EngineSettings().subject(nn.Identity(), (torch.zeros(2, 1),), "cpu", 7.0)
    assert (subject.out_of_range, subject.tf32) == ("clamp", False)


def test_the_callback_takes_them():
    engines = DeploymentParityCallback(["emulated-fp16"], out_of_range="inf", tf32=True).engines
    assert (engines.out_of_range, engines.tf32) == ("inf", True)


@pytest.mark.parametrize(("settings", "match"), [({"out_of_range": "clip"}, "'clip'"), ({"max_batch": 0}, "positive")])
def test_rejects_what_means_nothing(settings, match):
    with pytest.raises(ValueError, match=match):
        EngineSettings(**settings)
