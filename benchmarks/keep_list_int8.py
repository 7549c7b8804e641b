"""Which products cannot be int8: the shortest list that halves what quantisation costs, on ten networks.

    python benchmarks/keep_list_int8.py [--only "written norm" lanes]

Networks of fp16_models.py, seed 0, 32 samples each. Ranges (minmax) and the list are found on 16, the errors in the
table are of the 16 others, relative L2 to fp32: with every product in int8, with the list in fp32, and the same file as
ONNX Runtime executes it in integers. The list aims at half of what int8 costs on the samples that it is found on.
Seconds are those of the sweep and the search.
"""

from __future__ import annotations

import argparse
import time

import torch
from fp16_models import MODELS, settled

from lightning_robust.deployment.graph.export import export, frozen_copy
from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.numerics.calibration import calibrate
from lightning_robust.deployment.numerics.int8_sweep import Int8Sweep
from lightning_robust.deployment.numerics.integers import count_products, in_integers
from lightning_robust.deployment.numerics.keep_list import check_keep_list, find_keep_list
from lightning_robust.deployment.numerics.quantise import operands, quantise_products
from lightning_robust.deployment.parity.distance import compare_outputs
from lightning_robust.tables import markdown

SAMPLES, FOUND, SWEPT, SHARE = 32, 16, 4, 0.5
NAMES = ("lanes", *MODELS)
HEAD = ("network", "products", "all int8", "kept", "error", "executed", "of them in int8", "where found", "aim", "s")


def distance(reference: list[torch.Tensor], outputs: list[torch.Tensor]) -> float:
    """Relative L2 of the worst output."""
    return compare_outputs(reference, outputs)["rel_l2"]


def row(name: str) -> list[str]:
    """One line of the table."""
    module, pictures = settled(name, SAMPLES)
    exported = export(frozen_copy(module), (pictures,))
    feeds = {exported.inputs[0]: pictures.numpy()}
    part, others = ({key: array[rows] for key, array in feeds.items()} for rows in (slice(FOUND), slice(FOUND, None)))
    prepared, tensors = operands(exported.model)
    ranges = calibrate(prepared, part, tensors)
    start = time.perf_counter()
    sweep = Int8Sweep(exported.model, part, ranges, measure=distance)
    ranking = sweep.on({key: array[:SWEPT] for key, array in part.items()}).sensitivity()
    found = find_keep_list(sweep, ranking, SHARE * sweep.cost_of_keeping(()))
    seconds = time.perf_counter() - start
    keep = check_keep_list(found, sweep.on(others))
    session = Session(in_integers(quantise_products(exported.model, ranges, keep.nodes).model), record=True)
    executed = distance(Session(exported.model).run(others), session.run(others))
    errors = [f"{value:.2g}" for value in (keep.error, executed)]
    cells = [name, str(keep.of), f"{keep.total:.2g}", str(len(keep.nodes)), *errors]
    cells += [str(count_products(session.executed).get("int8", 0)), f"{keep.found_error:.2g}", f"{keep.tolerance:.2g}"]
    cells.append(f"{seconds:.1f}")
    print(*cells, sep=" | ", flush=True)
    return cells


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    print(markdown(HEAD, [row(name) for name in parser.parse_args().only]))


if __name__ == "__main__":
    main()
