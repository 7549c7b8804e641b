"""A scene: everything that a picture shows of a road, its light and its camera, as numbers."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lightning_robust.demo.lanes.camera import Camera

LINES = 8
"""Lines across the road; number 3 is the left ego line, number 4 the right one."""
CARS = 4
"""Other cars at most."""


class Paint(NamedTuple):
    """The lines. (N,) or, one value a line, (N, LINES); lengths in metres.

    Args:
        lane_width: Distance between neighbouring lines.
        half_width: Half the width of a stripe, 0 where a line is missing.
        gap: Half the distance between the two stripes of a double line, 0 for a single one.
        duty: Painted share of a period; 1 for a solid line.
        period: Length of a dash and its gap.
        phase: Metres the dashes are shifted by.
        strength: Opacity of the paint.
        yellow: 1 for yellow paint.
        studs: Length of reflecting studs halfway between dashes, as a share of the period; 0 for none.
        wear: How much of the paint is gone where the road is worn.
        colour: Brightness of white paint.
    """

    lane_width: Tensor
    half_width: Tensor
    gap: Tensor
    duty: Tensor
    period: Tensor
    phase: Tensor
    strength: Tensor
    yellow: Tensor
    studs: Tensor
    wear: Tensor
    colour: Tensor


class Surface(NamedTuple):
    """Asphalt or concrete and what lies beside it. (N,), (N, LINES) or colours (N, 3)."""

    brightness: Tensor
    tint: Tensor
    lanes: Tensor
    edges: Tensor
    verge: Tensor
    verge_two: Tensor
    kerb: Tensor
    grain: Tensor
    blotches: Tensor
    veins: Tensor
    tracks: Tensor
    gauge: Tensor
    seams: Tensor
    seam_strength: Tensor
    joint: Tensor
    joint_strength: Tensor
    patches: Tensor
    marks: Tensor
    scale: Tensor
    shift: Tensor


class Light(NamedTuple):
    """Sun, shadows, haze and glare. (N,) or colours (N, 3)."""

    shadow: Tensor
    shadow_level: Tensor
    shadow_size: Tensor
    bars: Tensor
    haze: Tensor
    haze_colour: Tensor
    glare: Tensor
    glare_column: Tensor
    glare_row: Tensor
    glare_width: Tensor
    wet: Tensor


class Backdrop(NamedTuple):
    """Sky, hills, trees, walls. (N,) or colours (N, 3); heights in shares of the picture's height."""

    zenith: Tensor
    low_sky: Tensor
    clouds: Tensor
    hill_colour: Tensor
    hill_height: Tensor
    tree_colour: Tensor
    tree_height: Tensor
    tree_rough: Tensor
    walls: Tensor
    wall_height: Tensor
    wall_colour: Tensor
    wall_base: Tensor
    noise: Tensor


class Cars(NamedTuple):
    """Other cars, one column a car: (N, CARS), colours (N, CARS, 3)."""

    present: Tensor
    across: Tensor
    ahead: Tensor
    width: Tensor
    tall: Tensor
    colour: Tensor
    lamps: Tensor


class Sensor(NamedTuple):
    """From light to bytes. (N,) or (N, 3)."""

    blur: Tensor
    motion: Tensor
    vignette: Tensor
    gain: Tensor
    pivot: Tensor
    gamma: Tensor
    balance: Tensor
    saturation: Tensor
    noise: Tensor
    noise_at: Tensor
    codec: Tensor
    sharpen: Tensor
    bonnet: Tensor
    bonnet_colour: Tensor


class Scene(NamedTuple):
    """One road picture for each index."""

    camera: Camera
    paint: Paint
    surface: Surface
    light: Light
    backdrop: Backdrop
    cars: Cars
    sensor: Sensor

    def part(self, start: int, stop: int) -> Scene:
        """The scenes of some of the pictures."""
        return Scene._make(type(group)._make(value[start:stop] for value in group) for group in self)
