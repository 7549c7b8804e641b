import itertools

from lightning_robust.deployment.engines.latency import Latency
from lightning_robust.deployment.parity.latency import LatencyPoint, pareto


def at(seconds, distance):
    return LatencyPoint("x", distance, Latency(seconds, seconds, 1, 1))


def test_the_front_is_what_no_point_dominates():
    """On every set of three points of a small grid, against the definition."""
    grid = [at(seconds, distance) for seconds in (1, 2, 3) for distance in (1, 2, 3)]
    for points in itertools.combinations(grid, 3):
        front = pareto(points)

        def better(one, other):
            left, right = (one.latency.median, one.distance), (other.latency.median, other.distance)
            return left != right and all(a <= b for a, b in zip(left, right, strict=True))

        undominated = [point for point in points if not any(better(other, point) for other in points)]
        assert sorted(front, key=str) == sorted(undominated, key=str)
        assert [point.latency.median for point in front] == sorted(point.latency.median for point in front)
