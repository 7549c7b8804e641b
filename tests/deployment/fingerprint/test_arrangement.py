"""What is arranged differently is named and undone; what differs otherwise is not taken for an arrangement."""

import pytest
import torch

from lightning_robust.deployment.fingerprint.arrangement import can_be_arranged, undo_arrangement
from lightning_robust.deployment.fingerprint.arrangement_words import NAMES, TEXTS
from lightning_robust.deployment.fingerprint.memory import strided
from lightning_robust.deployment.fingerprint.search import fingerprint
from lightning_robust.deployment.fingerprint.words import describe_cause
from lightning_robust.deployment.pixels.catalogue import CATALOGUE

from .samples import scenes


def as_chw(x):
    """Memory of pictures with channels last, read as planes."""
    return x.permute(0, 2, 3, 1).reshape(x.shape)


KINDS = {
    "left-right": lambda x: x.flip(3),
    "up-down": lambda x: x.flip(2),
    "half turn": lambda x: x.flip(2, 3),
    "quarter turn left": lambda x: x.rot90(1, (2, 3)),
    "quarter turn right": lambda x: x.rot90(-1, (2, 3)),
    "transpose": lambda x: x.transpose(2, 3),
    "order": as_chw,
    "channels last": lambda x: x.permute(0, 2, 3, 1),
    "exchanged": lambda x: x.reshape(len(x), 3, x.shape[3], x.shape[2]),
    "padded rows": lambda x: strided(x.shape[1:], 6, interleaved=True).apply(x),
    "skipped values": lambda x: strided(x.shape[1:], -2, interleaved=False).apply(x),
    "reversed": lambda x: x.flip(0),
    "late": lambda x: torch.cat([x[:1], x[:-1]]),
    "rotated": lambda x: x.roll(2, 0),
    "rotated back": lambda x: x.roll(-1, 0),
    "exchanged frames": lambda x: x[[1, 0, *range(2, len(x))]],
    "doubled": lambda x: x[[i // 2 for i in range(len(x))]],
    "held": lambda x: x[[0, 1, 1, *range(3, len(x))]],
    "repeated": lambda x: x[:, [0, 0, 2]],
    "missing": lambda x: x * torch.tensor([1.0, 0, 1])[:, None, None],
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_named_and_undone(kind):
    x = scenes()
    found = undo_arrangement(x, KINDS[kind](x))
    assert [e.parameters["kind"] for e in found.evidence] == [kind.removesuffix(" frames")]
    assert found.trained.shape[2] >= 60
    torch.testing.assert_close(found.trained, found.deployed, rtol=0, atol=0)


@pytest.mark.parametrize("entry", ["gamma_07", "crop", "noise_6", "shift_one_pixel", "bgr"])
@pytest.mark.parametrize("kind", ["left-right", "order", "late"])
def test_an_arrangement_is_found_behind_another_difference(kind, entry):
    x = scenes()
    found = undo_arrangement(x, KINDS[kind](CATALOGUE[entry].deployed(x)))
    assert [e.parameters["kind"] for e in found.evidence] == [kind]


@pytest.mark.parametrize("entry", CATALOGUE)
def test_no_entry_of_the_catalogue_is_an_arrangement(entry):
    x = scenes()
    found = undo_arrangement(CATALOGUE[entry].trained(x), CATALOGUE[entry].deployed(x))
    assert (found.evidence, found.unlike) == ((), "")


def test_symmetric_pictures_are_not_flipped():
    x = scenes()
    symmetric = (x + x.flip(3)) / 2
    for entry in ("shift_one_pixel", "crop", "noise_6", "gamma_07"):
        assert undo_arrangement(symmetric, CATALOGUE[entry].deployed(symmetric)).evidence == ()


@pytest.mark.parametrize(("by", "kind"), [(1, "late"), (-1, "early")])
def test_three_frames_are_enough_for_late_and_early(by, kind):
    x = scenes()[:4]
    found = undo_arrangement(x[1:], x[:3]) if by > 0 else undo_arrangement(x[:3], x[1:])
    assert [(e.parameters["kind"], e.parameters["by"]) for e in found.evidence] == [(kind, 1.0)]


@pytest.mark.parametrize("level", [0, 128])
@pytest.mark.parametrize("trained", ["floats", "bytes"])
def test_a_missing_channel_is_undone_in_units_of_its_own_side(trained, level):
    """Training's pictures in [0, 1] and the deployed ones as bytes, and the other way round."""
    levels = (255 * scenes()).round().clamp(0, 255).to(torch.uint8)
    deployed = levels.clone()
    deployed[:, 1] = level
    sides = (levels / 255, deployed) if trained == "floats" else (levels, deployed / 255)
    found = undo_arrangement(*sides)
    assert [e.parameters for e in found.evidence] == [{"kind": "missing", "order": "R0B"}]
    expected = deployed / 255 if trained == "floats" else deployed
    torch.testing.assert_close(found.trained, expected.to(found.trained.dtype))
    assert fingerprint(*sides).unexplained < 0.05


def test_frames_that_hardly_differ_have_no_order():
    """Noise of one level decides which of two equal frames is nearer."""
    x = scenes()[:1].expand(6, -1, -1, -1)
    generator = torch.Generator().manual_seed(0)
    before, after = (x + torch.randn(x.shape, generator=generator) / 255 for _ in range(2))
    assert undo_arrangement(before, after).evidence == ()


def test_content_that_pans_is_no_late_frame():
    """A shift of all pictures by as much as the camera pans from frame to frame explains them as well."""
    wide = torch.nn.functional.interpolate(scenes()[:1], size=(64, 160), mode="bicubic")
    pan = torch.cat([wide[..., 2 * i : 2 * i + 96] for i in range(8)])
    border = torch.cat([pan[..., 2:], pan[..., -1:].expand(-1, -1, -1, 2)], 3)
    assert undo_arrangement(pan, border).evidence == ()
    assert [e.parameters["kind"] for e in undo_arrangement(pan, pan.flip(0)).evidence] == ["reversed"]


def test_other_pictures_are_not_the_same():
    x = scenes(8)
    for before, after in ((x[:4], x[4:]), (x[:1], x[1:2])):
        assert "these are not the same pictures" in undo_arrangement(before, after).unlike
    found = fingerprint(x[:4], x[4:])
    assert (found.causes, found.conclusive) == ((), False)


def test_negatives_show_the_same():
    x = scenes()
    assert undo_arrangement(x, 1 - x).unlike == ""


def test_two_causes_are_told():
    x = scenes()
    found = fingerprint(x, CATALOGUE["gamma_07"].deployed(x).flip(3))
    assert {c.name for c in found.causes[:2]} == {"orientation", "gamma"}
    assert found.unexplained < 0.5
    assert found.distance > 20
    lines = str(fingerprint(x, as_chw(x)))
    assert "writes pictures to memory in the order HWC and reads them in the order CHW" in lines


def test_turned_pictures_have_another_shape():
    x = scenes()
    found = fingerprint(x, x.rot90(1, (2, 3)))
    assert [c.name for c in found.causes] == ["orientation"]
    assert "turned by a quarter turn counterclockwise" in found.causes[0].sentence


@pytest.mark.parametrize(
    ("deployed", "fits"),
    [
        ((4, 3, 64, 96), True),
        ((4, 3, 96, 64), True),
        ((4, 64, 96, 3), True),
        ((3, 3, 64, 96), False),
        ((4, 3, 64, 95), False),
        ((3, 64, 96), False),
    ],
)
def test_shapes_that_can_be_rearranged(deployed, fits):
    assert can_be_arranged(torch.Size((4, 3, 64, 96)), torch.Size(deployed)) == fits


@pytest.mark.parametrize("kind", TEXTS)
def test_every_kind_has_words(kind):
    name, what = kind.split("/")
    numbers = {"by": 1.0, "padding": 6.0, "scale": 0.02, "zero_point": -14.0}
    words = {"order": "RRB", "layout": "HWC", "written": "HWC", "read": "CHW", "frames": "0 and 1", "kind": what}
    cause = describe_cause(name, numbers | words, 2.0)
    assert "{" not in cause.sentence + cause.line
    assert name in (*NAMES, "channel_order")
