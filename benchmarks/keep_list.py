"""How many nodes have to stay in fp32 for the error that ModelOpt AutoCast leaves: its list beside this library's.

    python benchmarks/keep_list.py [--only "written norm" lanes] [--output runs/keep_list]

Ten networks of fp16_models.py, seed 0, 32 samples each: 16 to find a list on, 16 others for the errors in the table.
AutoCast (nvidia-modelopt, in an environment of its own that guests.py makes) converts the exported graph to fp16 with
its defaults: nodes that read or give a value beyond 512, or hold a weight beyond 65504, stay in fp32. The nodes that
are fp32 in its result, casts aside, are its list. This library then looks for a list whose error on the same 16 samples
is no larger. Both lists are measured by the same emulation, relative L2 to fp32. A layer norm that AutoCast fuses from
several nodes counts as one node of its list, and as kept in its error.

The ratio is this library's number of nodes over AutoCast's, where AutoCast keeps any; it stands once for an error that
is no larger, and once for one that is at most a tenth larger, which is less than what 16 other samples change. Seconds
are those of AutoCast's call and of the sweep with the search.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from fp16_models import MODELS, settled
from guests import environment
from onnx import TensorProto

from lightning_robust.deployment.graph.export import export, frozen_copy
from lightning_robust.deployment.numerics.keep_list import check_keep_list, find_keep_list
from lightning_robust.deployment.numerics.sweep import NodeSweep
from lightning_robust.deployment.parity.distance import compare_outputs
from lightning_robust.tables import markdown

SAMPLES, FOUND, SWEPT = 32, 16, 4
NEARLY = 1.1
NAMES = ("lanes", *MODELS)
HEAD = (
    "network",
    "nodes",
    "all fp16",
    "AutoCast: fp32 nodes",
    "error",
    "s",
    "this library: fp32 nodes",
    "error",
    "s",
    "ratio",
    "within a tenth: fp32 nodes",
    "error",
    "ratio",
)


class Cast(NamedTuple):
    """What AutoCast made of a graph.

    Args:
        count: Nodes of its graph that compute in fp32, casts aside.
        keep: Nodes of the given graph that compute in fp32 there, those that it fused into others included.
        seconds: Of the conversion.
    """

    count: int
    keep: list[str]
    seconds: float


def autocast(model: onnx.ModelProto, samples: dict[str, np.ndarray], folder: Path) -> Cast:
    """Convert a graph with AutoCast and read off which nodes stayed in fp32."""
    folder.mkdir(parents=True, exist_ok=True)
    given, data, made = folder / "graph.onnx", folder / "samples.npz", folder / "converted.onnx"
    onnx.save(model, given)
    np.savez(data, **samples)
    guest = Path(__file__).with_name("autocast_guest.py")
    command = [str(environment("AutoCast", folder.parent)), str(guest), str(given), str(data), str(made)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"AutoCast failed: {done.stderr[-1000:]}")
    wide = _computed_wide(onnx.load(made))
    there = {node.name for node in onnx.load(made).graph.node}
    keep = [node.name for node in model.graph.node if node.name in wide or node.name not in there]
    return Cast(len(wide), keep, float(done.stdout.split()[-1]))


def _computed_wide(model: onnx.ModelProto) -> set[str]:
    """The nodes that give fp32, or read it to give something else than floats; casts and constants aside."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    wide = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    floats = {v.name for v in values if v.type.tensor_type.elem_type in (TensorProto.FLOAT, TensorProto.FLOAT16)}
    nodes = [node for node in graph.node if node.op_type not in ("Cast", "Constant")]
    return {
        node.name
        for node in nodes
        if wide.intersection(node.output) or (wide.intersection(node.input) and not floats.intersection(node.output))
    }


def row(name: str, folder: Path) -> tuple[list[str], list[float]]:
    """One line of the table, and its ratios; none where AutoCast keeps nothing."""
    module, pictures = settled(name, SAMPLES)
    exported = export(frozen_copy(module), (pictures,))
    feeds = {exported.inputs[0]: pictures.numpy()}
    part, others = ({key: array[rows] for key, array in feeds.items()} for rows in (slice(FOUND), slice(FOUND, None)))
    theirs = autocast(exported.model, part, folder / name.replace(" ", "_").replace(",", ""))

    start = time.perf_counter()
    sweep = NodeSweep(exported.model, part, measure=lambda r, o: compare_outputs(r, o)["rel_l2"])
    ranking = sweep.on({key: array[:SWEPT] for key, array in part.items()}).sensitivity()
    ranked = time.perf_counter() - start
    aim, checked = sweep.cost_of_keeping(theirs.keep), sweep.on(others)
    start = time.perf_counter()
    found = find_keep_list(sweep, ranking, aim)
    seconds = ranked + time.perf_counter() - start
    ours, nearly = (check_keep_list(kept, checked) for kept in (found, find_keep_list(sweep, ranking, NEARLY * aim)))
    ratios = [len(kept.nodes) / theirs.count for kept in (ours, nearly)] if theirs.count else []
    told = [f"{ratio:.2f}" for ratio in ratios] or ["-", "-"]
    cells = [name, str(ours.of), f"{ours.total:.1e}"]
    cells += [str(theirs.count), f"{checked.cost_of_keeping(theirs.keep):.1e}", f"{theirs.seconds:.1f}"]
    cells += [str(len(ours.nodes)), f"{ours.error:.1e}", f"{seconds:.1f}", told[0]]
    cells += [str(len(nearly.nodes)), f"{nearly.error:.1e}", told[1]]
    print(*cells, sep=" | ", flush=True)
    return cells, ratios


def main() -> None:
    """Print the table and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--output", type=Path, default=Path("runs/keep_list"))
    arguments = parser.parse_args()
    rows = [row(name, arguments.output) for name in arguments.only]
    print(markdown(HEAD, [cells for cells, _ in rows]))
    ratios = [ratios for _, ratios in rows if ratios]
    strict, nearly = (f"{statistics.median(column):.2f}" for column in zip(*ratios, strict=True))
    print(
        f"Median ratio over the {len(ratios)} networks of which AutoCast keeps nodes: {strict}, within a tenth {nearly}"
    )


if __name__ == "__main__":
    main()
