"""The settings that train against what was found: entries, ranges, what the deployed side must mend, refusals."""

import pytest
import yaml

from lightning_robust.deployment.fingerprint.switch import refusal, trained_against, write_switch
from lightning_robust.deployment.fingerprint.words import Fingerprint, describe_cause
from lightning_robust.deployment.pixels.draws import check_ranges
from lightning_robust.mixins.preprocessing.entries import check_drawn_ranges

CROP = {"left": 3.0, "right": 97.0, "top": 2.0, "bottom": 48.0, "zoom_x": 100 / 94, "zoom_y": 50 / 46}
CASES = [
    ("shift", {"dx": -0.5, "dy": 0.2}, ["shift_half_pixel"], {"shift": [0.0, 0.75]}),
    ("crop", {"kind": "crop", **CROP}, ["crop"], {"crop": [0.0, 0.06]}),
    ("crop", {"kind": "letterbox", **CROP, "zoom_y": 0.9}, ["letterbox"], {"letterbox": [0.0, 0.075]}),
    ("resize_filter", {"kind": "align_corners", "sharpness": 1.0}, ["resize_align_corners"], {}),
    ("color_matrix", {"read": "BT.709 read as BT.601"}, ["color_matrix_709"], {}),
    ("color_range", {"read": "limited range read as full"}, ["color_range_limited"], {}),
    ("compression", {"kind": "jpeg", "quality": 90.0}, ["jpeg_90"], {"quality": [75.0, 98.0]}),
    ("compression", {"kind": "nv12"}, ["nv12"], {}),
    ("rounding", {"kind": "fewer levels", "levels": 64.0, "expected": 256.0}, ["levels_6_bit"], {"bits": [5.0, 7.0]}),
    ("rounding", {"kind": "cut off"}, ["truncation"], {}),
    (
        "gain_offset",
        {"gain": 0.8, "offset": 4.0},
        ["brightness", "offset_8"],
        {"gain": [0.7, 1.0], "offset": [0.0, 6.0]},
    ),
    ("gamma", {"gamma": 1.2}, ["gamma_09"], {"gamma": [1.0, 1.3]}),
    ("noise", {"std": 2.0}, ["noise_2"], {"noise": [0.0, 3.0]}),
    ("gamma", {"gamma": 0.3}, ["gamma_09"], {"gamma": [0.01, 1.0]}),
    ("gain_offset", {"gain": 1.0, "offset": -200.0}, ["offset_8"], {"offset": [-255.0, 0.0]}),
]


@pytest.mark.parametrize(("name", "parameters", "entries", "ranges"), CASES)
def test_entries_and_ranges(name, parameters, entries, ranges):
    """From nothing to one and a half times what was found, and what the mixin takes."""
    found = trained_against(describe_cause(name, parameters, 4.0))
    assert found == (entries, {key: pytest.approx(limits) for key, limits in ranges.items()})
    check_ranges(found[1])
    check_drawn_ranges(found[1], entries)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("channel_order", {"order": "BGR"}),
        ("orientation", {"kind": "left-right"}),
        ("memory_layout", {"kind": "order", "written": "HWC", "read": "CHW"}),
        ("frame_sequence", {"kind": "late", "by": 1.0, "order": "0 0 1"}),
        ("gain_offset", {"gain": 255.0, "offset": 0.0, "trained": "[0, 1]", "deployed": "levels"}),
    ],
)
def test_what_is_wrong_stays_for_the_deployed_side(name, parameters):
    cause = describe_cause(name, parameters, 4.0)
    assert trained_against(cause) is None
    with pytest.raises(ValueError, match="mend it on the deployed side"):
        write_switch(Fingerprint((cause,), 30.0, 0.3))
    gamma = describe_cause("gamma", {"gamma": 1.2}, 4.0)
    text = write_switch(Fingerprint((cause, gamma), 30.0, 0.3), "lightning-robust fingerprint a.npy b.npy")
    assert yaml.safe_load(text)["model"]["preprocessing_entries"] == ["gamma_09"]
    head, mended = text.split("Mend it on the deployed side:")
    assert gamma.sentence in head
    assert cause.line in mended
    assert "# lightning-robust fingerprint a.npy b.npy" in head
    assert "both runs with --deployment_parity.perturbations=[gamma_09]:" in mended


def test_nothing_is_trained_on_what_is_not_known():
    cause = describe_cause("gamma", {"gamma": 0.9}, 4.0)
    noise = describe_cause("noise", {"std": 6.0}, 4.0)
    for found, reason in (
        (Fingerprint((), 0.0, 0.0), "nothing differs"),
        (Fingerprint((), 9.0, 9.0, conclusive=False), "do not tell"),
        (Fingerprint((), 9.0, 9.0), "no known cause"),
        (Fingerprint((cause,), 9.0, 5.0), "most of it is not explained"),
        (Fingerprint((cause,), 9.0, 2.0), ""),
        (Fingerprint((noise,), 6.0, 0.3), ""),
    ):
        assert reason in refusal(found)
        assert bool(reason) == bool(refusal(found))
