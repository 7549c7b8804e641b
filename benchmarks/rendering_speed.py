"""Pictures a second of the road renderer, in one process and shared between two.

python benchmarks/rendering_speed.py --count 1024
"""

from __future__ import annotations

import argparse
import time

from lightning_robust.demo.lanes import LaneData, render_roads


def main() -> None:
    """Prints pictures a second."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=1024, help="pictures to render")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    render_roads(range(8))
    start = time.perf_counter()
    render_roads(range(arguments.count), seed=arguments.seed)
    print(f"one process    {arguments.count / (time.perf_counter() - start):8.1f} pictures/s")
    for workers in (1, 2, 4):
        data = LaneData(num_train=arguments.count, num_val=8, seed=arguments.seed, render_workers=workers)
        start = time.perf_counter()
        data.setup("fit")
        print(f"{workers} workers      {arguments.count / (time.perf_counter() - start):8.1f} pictures/s")


if __name__ == "__main__":
    main()
