"""The other side of keep_list.py, in the environment of ModelOpt: it converts one graph with AutoCast.

``python autocast_guest.py GRAPH.onnx SAMPLES.npz CONVERTED.onnx`` prints the seconds of the conversion alone.
"""

from __future__ import annotations

import sys
import time


def main(graph: str, samples: str, converted: str) -> None:
    """Convert with AutoCast's own defaults; inputs and outputs stay fp32, as in this library."""
    import onnx
    from modelopt.onnx.autocast import convert_to_mixed_precision

    start = time.perf_counter()
    model = convert_to_mixed_precision(graph, "fp16", calibration_data=samples, keep_io_types=True)
    seconds = time.perf_counter() - start
    onnx.save(model, converted)
    print(seconds)


if __name__ == "__main__":
    main(*sys.argv[1:])
