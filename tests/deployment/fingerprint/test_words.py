"""Causes in words: every kind has a sentence and a line, and the confidence is a closed form."""

import math

import pytest

from lightning_robust.deployment.budget_keys import CAUSES
from lightning_robust.deployment.fingerprint.words import Cause, Fingerprint, describe_cause, weigh_causes
from lightning_robust.deployment.pixels.names import FAMILIES

CROP = {"left": 1.0, "right": 63.0, "top": 2.0, "bottom": 46.0, "zoom_x": 1.03, "zoom_y": 1.05}
CASES = [
    ("channel_order", {"order": "BGR"}, "the deployed side feeds channels as BGR where training has RGB"),
    ("gain_offset", {"gain": 1.1, "offset": 2.0, "trained": "[0, 1]"}, "from training's: gain 1.1, offset 2"),
    ("gamma", {"gamma": 0.9}, "training's to the power of 0.900"),
    ("color_matrix", {"read": "BT.601 read as BT.709"}, "is another: BT.601 read as BT.709"),
    ("color_range", {"read": "full range read as limited"}, "YCbCr is another: full range read as limited"),
    ("shift", {"dx": 0.5, "dy": -0.25}, "lies +0.50 px to the right and -0.25 px down of training's"),
    ("crop", {"kind": "crop", **CROP}, "is a crop: it shows columns 1.0 to 63.0 and rows 2.0 to 46.0 of training's"),
    ("crop", {"kind": "letterbox", **CROP}, "picture is a letterbox: all of training's, 1.030 x 1.050 between bars"),
    ("crop", {"kind": "bars cut", **CROP}, "picture is a letterbox, the deployed side's has no bars"),
    ("crop", {"kind": "wider", **CROP}, "picture is a crop of what the deployed side shows"),
    ("rotation", {"degrees": -1.5}, "is turned by -1.50 degrees clockwise"),
    ("lens", {"k": 0.05}, "has another lens: what lies at r of half the diagonal comes from r (1 + 0.0500 r^2)"),
    (
        "overlay",
        {"left": 4.0, "right": 8.0, "top": 1.0, "bottom": 3.0, "share": 0.05},
        "columns 4 to 8 and rows 1 to 3",
    ),
    ("grey", {"kind": "deployed", "luma": "green alone"}, "where training has colour: green alone"),
    ("grey", {"kind": "trained", "luma": "green alone"}, "training feeds grey in three channels where the deployed"),
    ("resize_filter", {"kind": "nearest", "sharpness": 1.0}, "takes the nearest pixel when it resizes (gain 1.00 at"),
    ("resize_filter", {"kind": "align_corners", "sharpness": 1.0}, "from corner pixel to corner pixel (gain"),
    (
        "resize_filter",
        {"kind": "sharper", "sharpness": 1.2},
        "more detail than training's, or it sharpens (gain 1.20 at high",
    ),
    (
        "resize_filter",
        {"kind": "smoother", "sharpness": 0.8},
        "less detail than training's, or it blurs (gain 0.80 at high",
    ),
    ("rounding", {"kind": "cut off"}, "cuts values off to 8 bits where training rounds"),
    ("rounding", {"kind": "fewer levels", "levels": 64, "expected": 250}, "fewer levels: 64 where training has 250"),
    ("compression", {"kind": "chroma", "sharpness": 0.71}, "colours have less detail than its brightness (gain 0.71"),
    ("compression", {"kind": "sharper chroma", "sharpness": 1.3}, "colours have more detail than training's"),
    ("compression", {"kind": "nv12"}, "colours have half the resolution"),
    ("compression", {"kind": "jpeg"}, "went through JPEG or the like"),
    ("compression", {"kind": "jpeg", "quality": 90}, "went through JPEG or the like of quality about 90"),
    ("noise", {"std": 2.04}, "have noise of 2.04 levels"),
]


@pytest.mark.parametrize(("name", "parameters", "words"), CASES)
def test_sentences(name, parameters, words):
    cause = describe_cause(name, parameters, 2.0)
    assert words in cause.sentence
    assert "{" not in cause.sentence + cause.line
    assert (cause.name, cause.parameters) == (name, parameters)


def test_every_cause_has_a_sentence_a_place_in_the_docstring_and_a_budget():
    names = {name for name, *_ in CASES}
    assert names >= set(FAMILIES)
    assert names <= set(CAUSES)
    assert all(f"``{name}``" in Cause.__doc__ for name in CAUSES)


def test_a_lens_without_bend_reads_as_a_number():
    assert "r (1 - 0.0400 r^2)" in describe_cause("lens", {"k": -0.04}, 2.0).sentence


@pytest.mark.parametrize(("strength", "confidence"), [(0.5, 0.5), (1.0, 0.5), (2.0, 0.75), (50.0, 0.99)])
def test_confidence_closed_form(strength, confidence):
    assert describe_cause("gamma", {"gamma": 0.9}, strength).confidence == pytest.approx(confidence)


@pytest.mark.parametrize(
    ("unexplained", "confidence"),
    [(3.0, 0.75), (3.3, 0.75), (6.0, 0.75 * 0.5 * 1.5 * (1 - math.sqrt(36 - 0.25) / 10)), (10.0, None)],
)
def test_what_is_left_lowers_confidence(unexplained, confidence):
    """From a third of the difference on at most a half, falling to nothing where nothing is explained."""
    causes = weigh_causes([describe_cause("gamma", {"gamma": 0.9}, 2.0)], 10.0, unexplained)
    assert [c.confidence for c in causes] == ([] if confidence is None else [pytest.approx(confidence)])
    text = str(Fingerprint(causes, 10.0, unexplained))
    assert text.startswith("Most of it is not explained") == (unexplained > 3.4)


def test_what_rounding_leaves_is_explained():
    assert not Fingerprint((), 0.7, 0.5).mostly_unexplained


def test_text_of_a_fingerprint():
    cause = describe_cause("gamma", {"gamma": 0.9}, 2.0)
    assert str(Fingerprint((cause,), 3.0, 0.126, "A note.")).splitlines() == [
        "The pictures differ by 3.00 levels (root mean square of 255).",
        "gamma (75%): the deployed side's pixels are training's to the power of 0.900",
        "    pixels = pixels ** 0.9  # a camera profile or tone curve that training did not have",
        "That leaves 0.13 levels.",
        "A note.",
    ]
    assert str(Fingerprint((), 0.0, 0.0)) == "The pictures differ by 0.00 levels (root mean square of 255)."
