"""The settings of engines are the callback's own arguments."""

import pytest

from lightning_robust import DeploymentParityCallback
from lightning_robust.callbacks.deployment_parity.pass_settings import PassSettings


def test_defaults_are_those_of_builders_and_of_an_engine_without_tf32():
    settings = PassSettings()
    assert (settings.out_of_range, settings.tf32, settings.batch) == ("clamp", False, 1)


def test_the_callback_takes_them():
    engines = DeploymentParityCallback(["emulated-fp16"], out_of_range="inf", tf32=True, time_limit=7.0).engines
    assert (engines.out_of_range, engines.tf32, engines.time_limit) == ("inf", True, 7.0)


@pytest.mark.parametrize(
    ("settings", "match"),
    [({"out_of_range": "clip"}, "'clip'"), ({"batch": 0}, "`batch` to be positive"), ({"calibration": "max"}, "'max'")],
)
def test_rejects_what_means_nothing(settings, match):
    with pytest.raises(ValueError, match=match):
        PassSettings(**settings)
