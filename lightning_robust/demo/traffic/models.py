"""What vehicles and signs are made of: flat parts with corners in a frame of their own, from the bottom layer up."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_robust.demo.traffic.objects import HATCHBACK, LORRY, SALOON, VAN

Corner = tuple[float, float, float]
_AROUND = 16
"""Corners of what is round."""
SHADOW, NEAR, SIDE, TOP, GLASS, DARK, REAR_LAMP, FRONT_LAMP, PLATE, TRIM, HUB = range(11)
"""What parts of a vehicle are made of."""
POST, RED, WHITE, BLUE, BLACK = range(5)
"""What parts of a sign are made of."""


class Model(NamedTuple):
    """Parts of an object, the last one on top; those with four corners first.

    Args:
        quads: Corners, clockwise as seen from outside, (Q, 4, 3).
        rounds: Corners of parts with more of them, (R, 16, 3).
        order: Number of each part from the bottom up, among quads and rounds one after the other, (Q + R,).
        material: Of the parts in their order, (Q + R,).
        solid: Which parts hide what is behind them; a shadow does not, (Q + R,).
        labelled: Which parts the box of the object is drawn around, (Q + R,).
    """

    quads: Tensor
    rounds: Tensor
    order: Tensor
    material: Tensor
    solid: Tensor
    labelled: Tensor


def _build_model(
    parts: list[tuple[int, list[Corner]]], loose: tuple[int, ...] = (), bare: tuple[int, ...] = ()
) -> Model:
    """A model of (material, corners); `loose` materials hide nothing, `bare` ones are not in the box."""
    few = [corners for _, corners in parts if len(corners) == 4]
    many = [corners for _, corners in parts if len(corners) > 4]
    places = iter(range(len(few))), iter(range(len(few), len(parts)))
    order = [next(places[len(corners) > 4]) for _, corners in parts]
    material = [kind for kind, _ in parts]
    return Model(
        torch.tensor(few, dtype=torch.float64).reshape(-1, 4, 3),
        torch.tensor(many, dtype=torch.float64).reshape(-1, _AROUND, 3),
        torch.tensor(order),
        torch.tensor(material),
        torch.tensor([kind not in loose for kind in material]),
        torch.tensor([kind not in loose + bare for kind in material]),
    )


def _inset(face: list[Corner], left: float, right: float, low: float, high: float) -> list[Corner]:
    """A part of a face (top left, top right, bottom right, bottom left), in shares of its width and height."""

    def at(across: float, up: float) -> Corner:
        corners = torch.tensor(face, dtype=torch.float64)
        top = corners[0] + (corners[1] - corners[0]) * across
        bottom = corners[3] + (corners[2] - corners[3]) * across
        x, y, z = (bottom + (top - bottom) * up).tolist()
        return x, y, z

    return [at(left, high), at(right, high), at(right, low), at(left, low)]


class _TaperedBox:
    """A box whose roof may be smaller than its floor; the frame is u to the right, v up, w ahead."""

    def __init__(self, floor: tuple[float, ...], roof: tuple[float, ...]) -> None:
        (v0, u0, rear0, front0), (v1, u1, rear1, front1) = floor, roof
        self.rear: list[Corner] = [(-u1, v1, rear1), (u1, v1, rear1), (u0, v0, rear0), (-u0, v0, rear0)]
        self.front: list[Corner] = [(u1, v1, front1), (-u1, v1, front1), (-u0, v0, front0), (u0, v0, front0)]
        self.right: list[Corner] = [(u1, v1, rear1), (u1, v1, front1), (u0, v0, front0), (u0, v0, rear0)]
        self.left: list[Corner] = [(-u1, v1, front1), (-u1, v1, rear1), (-u0, v0, rear0), (-u0, v0, front0)]
        self.top: list[Corner] = [(-u1, v1, front1), (u1, v1, front1), (u1, v1, rear1), (-u1, v1, rear1)]

    def faces(self) -> list[tuple[int, list[Corner]]]:
        return [(TOP, self.top), (SIDE, self.left), (SIDE, self.right), (NEAR, self.front), (NEAR, self.rear)]


def _wheels(places: tuple[float, ...], radius: float, length: float) -> list[tuple[int, list[Corner]]]:
    """Wheels seen from the side; `radius` in heights of the vehicle, `length` in radii of its length."""
    parts = []
    for u in (-1.0, 1.0):
        for w in places:
            for share, kind in ((1.0, DARK), (0.5, HUB)):
                angles = [2 * math.pi * (k + 0.5) / _AROUND for k in range(_AROUND)]
                corners = [
                    (u, radius * (1 + share * math.cos(a)), w + u * share * length * math.sin(a)) for a in angles
                ]
                parts.append((kind, corners))
    return parts


def _shadow_below() -> list[tuple[int, list[Corner]]]:
    return [(SHADOW, [(-1.1, 0.0, 1.02), (1.1, 0.0, 1.02), (1.1, 0.0, -0.02), (-1.1, 0.0, -0.02)])]


def _tyres(high: float) -> list[tuple[int, list[Corner]]]:
    """What is seen of the wheels below the rear and the front."""
    parts = []
    for u in (-0.97, 0.67):
        rear: list[Corner] = [(u, high, 0.04), (u + 0.3, high, 0.04), (u + 0.3, 0.0, 0.04), (u, 0.0, 0.04)]
        front: list[Corner] = [(u + 0.3, high, 0.96), (u, high, 0.96), (u, 0.0, 0.96), (u + 0.3, 0.0, 0.96)]
        parts += [(DARK, rear), (DARK, front)]
    return parts


def _car_details(block: _TaperedBox) -> list[tuple[int, list[Corner]]]:
    """Bumpers, lamps and plates of a car."""
    parts = [(TRIM, _inset(face, 0.0, 1.0, 0.0, 0.22)) for face in (block.rear, block.front)]
    for left in (0.02, 0.84):
        parts.append((REAR_LAMP, _inset(block.rear, left, left + 0.14, 0.52, 0.88)))
        parts.append((FRONT_LAMP, _inset(block.front, left - 0.02, left + 0.18, 0.5, 0.76)))
    parts.append((PLATE, _inset(block.rear, 0.38, 0.62, 0.34, 0.56)))
    parts.append((DARK, _inset(block.front, 0.28, 0.72, 0.28, 0.62)))
    parts.append((PLATE, _inset(block.front, 0.38, 0.62, 0.1, 0.28)))
    return parts


_CABINS = {  # the ends of the floor and of the roof along the vehicle, half the roof's width
    HATCHBACK: (0.01, 0.74, 0.09, 0.55, 0.76),
    SALOON: (0.13, 0.74, 0.28, 0.56, 0.74),
    VAN: (0.0, 0.88, 0.02, 0.72, 0.86),
}


@lru_cache
def vehicle_model(kind: int) -> Model:
    """A vehicle in shares of half its width, its height and its length; its rear is at 0, its front at 1.

    Args:
        kind: One of `HATCHBACK`, `SALOON`, `VAN`, `LORRY`.
    """
    if kind == LORRY:
        return _lorry()
    rear0, front0, rear1, front1, narrow = _CABINS[kind]
    body = _TaperedBox((0.13, 1.0, 0.0, 1.0), (0.56, 1.0, 0.0, 1.0))
    cabin = _TaperedBox((0.55, 0.95, rear0, front0), (1.0, narrow, rear1, front1))
    parts = [*_shadow_below(), *_tyres(0.16), *body.faces(), *_car_details(body), *_wheels((0.18, 0.81), 0.2, 0.07)]
    parts += cabin.faces()
    parts += [(GLASS, _inset(face, 0.07, 0.93, 0.14, 0.86)) for face in (cabin.rear, cabin.front)]
    for face in (cabin.left, cabin.right):
        parts += [(GLASS, _inset(face, left, left + 0.37, 0.14, 0.84)) for left in (0.1, 0.52)]
    return _build_model(parts, loose=(SHADOW,))


def _lorry() -> Model:
    frame = _TaperedBox((0.1, 0.96, 0.0, 1.0), (0.28, 0.96, 0.0, 1.0))
    cab = _TaperedBox((0.12, 0.96, 0.84, 1.0), (0.82, 0.94, 0.84, 0.99))
    box = _TaperedBox((0.26, 1.0, 0.0, 0.82), (1.0, 1.0, 0.0, 0.82))
    parts = [*_shadow_below(), *_tyres(0.12), *[(DARK, corners) for _, corners in frame.faces()]]
    parts += _wheels((0.1, 0.24, 0.9), 0.15, 0.045)
    parts += [(REAR_LAMP, _inset(frame.rear, left, left + 0.14, 0.3, 0.8)) for left in (0.02, 0.84)]
    parts += [(PLATE, _inset(frame.rear, 0.4, 0.6, 0.2, 0.7))]
    # seen from the rear the box hides the cab, seen from the front the cab stands before the box
    parts += [
        *box.faces(),
        (TRIM, _inset(box.rear, 0.49, 0.51, 0.0, 1.0)),
        (TRIM, _inset(box.rear, 0.0, 1.0, 0.0, 0.04)),
    ]
    parts += [(kind, corners) for kind, corners in cab.faces() if corners is not cab.rear]
    parts += [(GLASS, _inset(cab.front, 0.06, 0.94, 0.5, 0.88)), (DARK, _inset(cab.front, 0.2, 0.8, 0.14, 0.4))]
    parts += [(FRONT_LAMP, _inset(cab.front, left, left + 0.16, 0.06, 0.16)) for left in (0.02, 0.82)]
    return _build_model(parts, loose=(SHADOW,))


def _polygon(corners: int, radius: float, turn: float) -> list[Corner]:
    """A regular polygon, with points on its edges up to `_AROUND` corners."""
    places = [(math.sin(a), math.cos(a)) for a in (2 * math.pi * (k + turn) / corners for k in range(corners + 1))]
    steps, found = _AROUND // corners, []
    for (x0, y0), (x1, y1) in itertools.pairwise(places):
        for step in range(steps):
            share = step / steps
            found.append((radius * (x0 + (x1 - x0) * share), radius * (y0 + (y1 - y0) * share), 0.0))
    return found


def _rectangle(left: float, bottom: float, right: float, top: float) -> list[Corner]:
    return [(left, top, 0.0), (right, top, 0.0), (right, bottom, 0.0), (left, bottom, 0.0)]


def _triangle(size: float) -> list[Corner]:
    """On its base, around a point a little above the middle of its height."""
    return [(0.0, size, 0.0), (size, -0.72 * size, 0.0), (-size, -0.72 * size, 0.0), (-size, -0.72 * size, 0.0)]


@lru_cache
def sign_model(kind: int) -> Model:
    """A sign in shares of its radius: p to the right, q up; a third number says how far down a post reaches, 0 to 1.

    Args:
        kind: Number among `CLASSES`, from 1.
    """
    post: list[Corner] = [(-0.09, 0.0, 0.0), (0.09, 0.0, 0.0), (0.09, 0.0, 1.0), (-0.09, 0.0, 1.0)]
    plates = {
        1: [
            (RED, _polygon(16, 1.0, 0.5)),
            (WHITE, _polygon(16, 0.76, 0.5)),
            *[(BLACK, _rectangle(x, -0.34, x + 0.34, 0.34)) for x in (-0.42, 0.1)],
            *[(WHITE, _rectangle(x, -0.16, x + 0.12, 0.16)) for x in (-0.31, 0.21)],
        ],
        2: [(RED, _triangle(1.0)), (WHITE, _triangle(0.66)), (BLACK, _rectangle(-0.09, -0.36, 0.09, 0.22))],
        3: [
            (WHITE, _polygon(8, 1.06, 0.5)),
            (RED, _polygon(8, 0.96, 0.5)),
            *[(WHITE, _rectangle(x, -0.24, x + 0.22, 0.24)) for x in (-0.66, -0.3, 0.06, 0.42)],
        ],
        4: [
            (WHITE, _rectangle(-0.9, -0.9, 0.9, 0.9)),
            (BLUE, _rectangle(-0.82, -0.82, 0.82, 0.82)),
            (WHITE, _rectangle(-0.32, -0.6, -0.1, 0.6)),
            (WHITE, _rectangle(-0.32, -0.1, 0.36, 0.6)),
            (BLUE, _rectangle(-0.1, 0.08, 0.16, 0.42)),
        ],
    }
    return _build_model([(POST, post), *plates[kind]], bare=(POST,))
