"""What is written as code makes the deployed side's pictures, and says how much it leaves."""

import re

import pytest
import torch

from lightning_robust.deployment.fingerprint.code import write_transform
from lightning_robust.deployment.fingerprint.search import fingerprint
from lightning_robust.deployment.fingerprint.words import Fingerprint, describe_cause
from lightning_robust.deployment.pixels.catalogue import CATALOGUE

from .samples import scenes


def run(code, pixels):
    scope = {}
    exec(code, scope)
    return scope["deployed"](pixels)


def left_by(code, trained, deployed):
    return float((255 * (run(code, trained).double() - deployed.double())).square().mean().sqrt())


PLANTED = {
    "shift": lambda x: CATALOGUE["shift_half_pixel"].deployed(x),
    "matrix": lambda x: CATALOGUE["color_matrix"].deployed(x),
    "gamma": lambda x: CATALOGUE["gamma_07"].deployed(x),
    "flip and gain": lambda x: CATALOGUE["gain_080"].deployed(x).flip(3),
    "memory": lambda x: x.permute(0, 2, 3, 1).reshape(x.shape),
    "late and bgr": lambda x: torch.cat([x[:1], x[:-1]]).flip(1),
    "channels last": lambda x: x.permute(0, 2, 3, 1),
}


@pytest.mark.parametrize("name", PLANTED)
def test_reproduces_what_was_planted(name):
    x = scenes()
    deployed = PLANTED[name](x)
    found = fingerprint(x, deployed)
    code = write_transform(found, x, deployed.double())
    assert left_by(code, x, deployed) <= found.unexplained + 0.1
    assert all(cause.sentence in code for cause in found.causes)


def test_another_resize_is_a_filter():
    """Fitted taps leave under 0.3 of the difference on pictures that they were not fitted on.

    That is more than the fingerprint leaves, which takes off the uneven steps of the nearest pixel: no filter has them.
    """
    entry, x = CATALOGUE["resize_nearest"], scenes(8, 96, 128)
    trained, deployed = entry.trained(x), entry.deployed(x)
    found = fingerprint(trained[:4], deployed[:4])
    assert found.causes[0].name == "resize_filter"
    code = write_transform(found, trained[:4], deployed[:4].double())
    assert left_by(code, trained[4:], deployed[4:]) < 0.3 * found.distance


def test_says_what_it_leaves():
    x = scenes()
    deployed = CATALOGUE["gamma_07"].deployed(x)
    code = write_transform(fingerprint(x, deployed), x, deployed.double(), "lightning-robust fingerprint a b")
    told = float(re.search(r"([\d.]+) of [\d.]+ levels are left", code)[1])
    assert told == pytest.approx(left_by(code, x, deployed), abs=0.006)
    assert "lightning-robust fingerprint a b" in code


def test_refuses_what_does_not_reproduce():
    x = scenes()
    wrong = Fingerprint((describe_cause("gamma", {"gamma": 2.0}, 9.0),), 10.0, 1.0)
    with pytest.raises(ValueError, match="the operations would leave"):
        write_transform(wrong, x, x.double())
    units = {"gain": 255.0, "offset": 0.0, "trained": "[0, 1]", "deployed": "levels"}
    with pytest.raises(ValueError, match="no operation for gain_offset"):
        write_transform(Fingerprint((describe_cause("gain_offset", units, 9.0),), 10.0, 1.0), x, x.double())
