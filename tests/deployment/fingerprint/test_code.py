"""What is written as code makes the deployed side's pictures, and says how much it leaves."""

import re

import pytest
import torch

from lightning_robust.deployment.fingerprint import transform
from lightning_robust.deployment.fingerprint.code import write_transform
from lightning_robust.deployment.fingerprint.search import fingerprint
from lightning_robust.deployment.fingerprint.words import Fingerprint, describe_cause
from lightning_robust.deployment.pixels.catalogue import CATALOGUE

from .samples import scenes

MEAN, STD = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def run(code, images):
    scope = {}
    exec(code, scope)
    return scope["deployed"](images)


def left_by(code, trained, deployed, step=1 / 255):
    """Root mean square in levels between what the code makes and what the deployed side stores, in its own type."""
    made = run(code, trained)
    assert (made.dtype, made.shape) == (deployed.dtype, deployed.shape)
    return float((made.double() - deployed.double()).square().mean().sqrt()) / step


@pytest.mark.parametrize("line", [r"fingerprint C:\Users\a.npy d.npy", 'fingerprint """a""" "b"', "fingerprint \\"])
def test_any_command_line_stands_in_the_file(line):
    x = scenes()[:1]
    found = fingerprint(x, x**0.8)
    code = write_transform(found, x, x**0.8, line=line)
    scope = {}
    exec(code, scope)
    assert line in scope["__doc__"]


def rounded(pixels):
    return (pixels.clamp(0, 1) * 255).round() / 255


def normalised(pixels):
    return (pixels - MEAN) / STD


def as_bytes(pixels):
    return (pixels * 255).round().clamp(0, 255).byte()


def covered(x, opacity):
    patch = torch.rand(3, 10, 16, generator=torch.Generator().manual_seed(7))
    x = x.clone()
    x[:, :, 5:15, 50:66] = (1 - opacity) * x[:, :, 5:15, 50:66] + opacity * patch
    return rounded(x)


def greyed(x, luma):
    weights = torch.tensor(luma)[:, None, None]
    return rounded((weights * x).sum(1, keepdim=True).expand_as(x))


PLANTED = {
    "shift": lambda x: CATALOGUE["shift_half_pixel"].deployed(x),
    "letterbox": lambda x: CATALOGUE["letterbox"].deployed(x),
    "matrix": lambda x: CATALOGUE["color_matrix"].deployed(x),
    "BT.2020": lambda x: rounded(transform.change_matrix(x, "BT.2020", "BT.709")),
    "gamma": lambda x: CATALOGUE["gamma_07"].deployed(x),
    "grey": lambda x: greyed(x, [0.2126, 0.7152, 0.0722]),
    "turned and shifted": lambda x: rounded(transform.move_content(x, degrees=-1.2, dx=2.3)),
    "lens": lambda x: rounded(transform.move_content(x, lens=0.04)),
    "logo": lambda x: covered(x, 1.0),
    "see-through logo": lambda x: covered(x, 0.6),
    "flip and gain": lambda x: CATALOGUE["gain_080"].deployed(x).flip(3),
    "memory": lambda x: x.permute(0, 2, 3, 1).reshape(x.shape),
    "late and bgr": lambda x: torch.cat([x[:1], x[:-1]]).flip(1),
    "channels last": lambda x: x.permute(0, 2, 3, 1),
}


@pytest.mark.parametrize("name", PLANTED)
def test_reproduces_what_was_planted(name):
    x = scenes(4, 48, 80)
    deployed = PLANTED[name](x)
    found = fingerprint(x, deployed)
    code = write_transform(found, x, deployed)
    assert found.differs
    assert left_by(code, x, deployed) <= found.unexplained + 0.1
    assert all(cause.sentence in code for cause in found.causes)


QUANTISED = 0.0187
TYPES = {
    "bytes": (lambda x: as_bytes(CATALOGUE["gamma_09"].deployed(x)), "input_type", 1.0),
    "minus 128": (lambda x: (as_bytes(x).int() - 128).to(torch.int8).permute(0, 2, 3, 1), "input_type", 1.0),
    "quantised": (
        lambda x: (normalised(x.flip(3)) / QUANTISED - 14).round().clamp(-128, 127).to(torch.int8),
        "input_type",
        1 / (255 * QUANTISED * 0.225),
    ),
    "levels": (lambda x: 255 * x, "gain_offset", 1.0),
    "another normalisation": (lambda x: (x.flip(1) - 0.5) / 0.5, "channel_order", 2 / 255),
}


@pytest.mark.parametrize("name", TYPES)
def test_makes_the_type_and_the_units_that_the_deployed_side_stores(name):
    """From normalised pictures; a step of the quantised input is somewhat more than a level."""
    deployed_of, cause, step = TYPES[name]
    x = scenes(4, 48, 80)
    trained, deployed = normalised(x), deployed_of(x)
    found = fingerprint(trained, deployed)
    assert cause in {c.name for c in found.causes}
    assert left_by(write_transform(found, trained, deployed), trained, deployed, step) <= found.unexplained + 0.3


UNITS = {
    "ImageNet's": (normalised, 1 / 255 / 0.225),
    "0.5": (lambda x: (x - 0.5) / 0.5, 2 / 255),
    "[0, 1]": (torch.clone, 1 / 255),
    "[0, 255]": (lambda x: 255 * x, 1.0),
}
BESIDE = [
    ("color_range", "ImageNet's", "0.5"),
    ("color_range_limited", "[0, 1]", "0.5"),
    ("color_matrix", "0.5", "ImageNet's"),
    ("gain_080", "0.5", "[0, 255]"),
    ("gain_080", "[0, 1]", "ImageNet's"),
    ("scale_256", "ImageNet's", "[0, 255]"),
    ("gamma_07", "ImageNet's", "[0, 1]"),
    ("levels_6_bit", "[0, 1]", "0.5"),
    ("truncation", "0.5", "ImageNet's"),
]


@pytest.mark.parametrize(("entry", "before", "after"), BESIDE)
def test_levels_beside_another_normalisation(entry, before, after):
    """The code leaves what rounding leaves: half a level, which cutting off takes from each value or from none."""
    x = scenes(4, 48, 80)
    x = x - x.min()  # black itself, which normalised lies a rounding below 0
    trained, deployed = UNITS[before][0](x), UNITS[after][0](CATALOGUE[entry].deployed(x))
    code = write_transform(fingerprint(trained, deployed), trained, deployed)
    assert left_by(code, trained, deployed, UNITS[after][1]) < 0.55


def test_says_what_no_code_can_do():
    """Colours that training has lost, and a frame that it lacks; what is known beside is made."""
    x = scenes(4, 48, 80)
    grey = greyed(x, [0.299, 0.587, 0.114])
    code = write_transform(fingerprint(grey, x.flip(3)), grey, x.flip(3))
    assert "# no code can do all of it: training's pictures have lost their colours" in code
    assert torch.allclose(run(code, grey), grey.flip(3), atol=1e-6)

    early = torch.cat([x[1:], x[-1:].flip(2)])
    found = fingerprint(x, early)
    assert "?" in found.causes[0].parameters["order"]
    code = write_transform(found, x, early)
    assert "lack the frames marked ?" in code
    assert torch.allclose(run(code, x)[:-1], early[:-1], atol=1e-6)


def test_another_resize_is_a_filter():
    """Fitted taps leave under 0.3 of the difference on pictures that they were not fitted on.

    That is more than the fingerprint leaves, which takes off the uneven steps of the nearest pixel: no filter has them.
    """
    entry, x = CATALOGUE["resize_nearest"], scenes(8, 96, 128)
    trained, deployed = entry.trained(x), entry.deployed(x)
    found = fingerprint(trained[:4], deployed[:4])
    assert found.causes[0].name == "resize_filter"
    code = write_transform(found, trained[:4], deployed[:4])
    assert left_by(code, trained[4:], deployed[4:]) < 0.3 * found.distance


def test_says_what_it_leaves():
    x = scenes()
    deployed = CATALOGUE["gamma_07"].deployed(x)
    code = write_transform(fingerprint(x, deployed), x, deployed, "lightning-robust fingerprint a b")
    told = float(re.search(r"([\d.]+) of [\d.]+ levels are left", code)[1])
    assert told == pytest.approx(left_by(code, x, deployed), abs=0.006)
    assert "lightning-robust fingerprint a b" in code


def test_refuses_what_does_not_reproduce():
    x = scenes()
    wrong = Fingerprint((describe_cause("gamma", {"gamma": 2.0}, 9.0),), 10.0, 1.0)
    with pytest.raises(ValueError, match="the operations would leave"):
        write_transform(wrong, x, x)
