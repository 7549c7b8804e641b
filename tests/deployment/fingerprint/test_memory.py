"""Arrangements against the same done with torch, and undone."""

import pytest
import torch

from lightning_robust.deployment.fingerprint.memory import (
    UNKNOWN,
    Arrangement,
    likely_paddings,
    memory_orders,
    orientations,
    places_in,
    strided,
)

from .samples import scenes

SHAPE = torch.Size((3, 8, 12))
X = torch.arange(2 * SHAPE.numel()).reshape(2, *SHAPE).float()


def arrangements(shape):
    yield from orientations(shape)
    yield from memory_orders(shape)
    for padding in (-5, -1, 1, 4):
        yield from (strided(shape, padding, interleaved=interleaved) for interleaved in (False, True))


@pytest.mark.parametrize("shape", [SHAPE, torch.Size((3, 8, 8)), torch.Size((1, 8, 12))])
def test_undone_is_what_it_was(shape):
    x = torch.rand(2, *shape)
    for arrangement in arrangements(shape):
        undone, known = arrangement.undo(arrangement.apply(x), shape)
        torch.testing.assert_close(undone, x * known, rtol=0, atol=0)
        if arrangement.name == "orientation" or arrangement.parameters["kind"] == "order":
            assert bool(known.all())


def test_all_orders_are_different():
    """Nine more than the flips and turns of a square, and none twice."""
    for shape in (SHAPE, torch.Size((3, 8, 8))):
        tables = [places_in(shape), *(a.sources for a in (*orientations(shape), *memory_orders(shape)))]
        assert len({(tuple(t.shape), tuple(t.flatten().tolist())) for t in tables}) == len(tables)


def test_matches_a_reshape():
    found = {(a.parameters["written"], a.parameters["read"]): a for a in memory_orders(SHAPE)}
    torch.testing.assert_close(found["HWC", "CHW"].apply(X), X.permute(0, 2, 3, 1).reshape(X.shape))
    torch.testing.assert_close(found["CHW", "HWC"].apply(X), X.reshape(2, 8, 12, 3).permute(0, 3, 1, 2))
    torch.testing.assert_close(found["WHC", "CHW"].apply(X), X.permute(0, 3, 2, 1).reshape(X.shape))


def test_matches_a_buffer_with_padding():
    """Rows of 12 x 3 values, each followed by 4 of padding, read as if there were none; and the reverse."""
    rows = X.permute(0, 2, 3, 1).flatten(2)
    padded = torch.cat([rows, torch.zeros(2, 8, 4)], 2).flatten(1)[:, : SHAPE.numel()]
    expected = padded.reshape(2, 8, 12, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(strided(SHAPE, 4, interleaved=True).apply(X), expected)
    buffer = torch.cat([X[:1].flatten(), torch.zeros(24 * 4)]).reshape(24, 16)[:, :12].reshape(1, *SHAPE)
    torch.testing.assert_close(strided(SHAPE, -4, interleaved=False).apply(X[:1]), buffer)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("padding", [-8, -1, 1, 2, 13])
def test_paddings_are_found(padding, interleaved):
    x = scenes(2)
    deployed = strided(x.shape[1:], padding, interleaved=interleaved).apply(x) ** 0.7
    assert padding in likely_paddings(x, deployed, interleaved=interleaved, limit=32)


def test_what_is_unknown_is_zero():
    half = Arrangement(torch.where(places_in(SHAPE) < 100, places_in(SHAPE), UNKNOWN))
    assert float(half.apply(X + 1).flatten(1)[:, 100:].abs().max()) == 0
    assert int(half.undo(X, SHAPE)[1].sum()) == 100
