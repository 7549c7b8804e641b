"""How fast everything is beside other libraries and beside what is physically possible.

    python benchmarks/speed.py [--rounds 15] [--only attacks averaging] [--out runs/speed]

Other libraries are installed each into an environment of its own, under the folder, and run there in turns with ours:
rounds are interleaved, every ratio is of one run. Times are processor time with one thread. What a section printed is
kept in a file of its name, and it is not run again.

attacks      PGD-10 beside torchattacks, foolbox and ART; limit: ten forward and input-gradient passes
objectives   a training step of each mixin beside a plain one
averaging    updates of an EMA and exchanges of weights beside four others; limit: one pass over the bytes
quantiser    block floating point beside QPyTorch; limit: a memory copy
soup         a greedy soup beside the published algorithm
criticality  the map of all layers, every cell in full and with cells that stop once they are settled
parity       a pass beside the epochs between two of them; limit: the forward passes alone
"""

from __future__ import annotations

import argparse
import contextlib
import io
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from attacks import attacks, overhead
from criticality import speed as criticality
from guests import ATTACKS, Guest
from objective_cost import objectives
from parity_cost import parity
from rows import quiet
from vision import TASKS, large_resnet18, vit_s
from weights import averaging, memory, quantiser, soup


def main() -> None:
    """Run what is missing and print all sections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--out", type=Path, default=Path("runs/speed"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    quiet()
    torch.set_num_threads(1)
    for name in given.only:
        kept = given.out / f"{name}.md"
        if not kept.exists():
            said = io.StringIO()
            torch.manual_seed(0)
            with contextlib.redirect_stdout(said):
                SECTIONS[name](given.rounds, given.out)
            kept.write_text(said.getvalue())
        print(kept.read_text(), flush=True)


@contextlib.contextmanager
def guests(libraries: Iterable[str], task: str, folder: Path) -> Iterator[dict[str, Guest]]:
    """Those libraries that install and start here; a line for each of the others."""
    found: dict[str, Guest] = {}
    for library in libraries:
        try:
            guest = Guest(library, task, folder)
            guest()
            found[library] = guest
        except (RuntimeError, OSError):
            print(f"{library} was left out: {traceback.format_exc().splitlines()[-1]}")
    try:
        yield found
    finally:
        for guest in found.values():
            guest.close()


def _attacks(rounds: int, folder: Path) -> None:
    for task in TASKS:
        with guests(ATTACKS, task, folder) as others:
            attacks(task, rounds, others)
    overhead(rounds)


def _averaging(rounds: int, folder: Path) -> None:
    for name, build in {"ResNet-18": large_resnet18, "ViT-S": vit_s}.items():
        with guests(["ema-pytorch"], name, folder) as others:
            averaging(name, build(), 4 * rounds, others)
    memory(large_resnet18())


def _quantiser(rounds: int, folder: Path) -> None:
    with guests(["QPyTorch"], "quantiser", folder) as others:
        quantiser(2 * rounds, others)


SECTIONS: dict[str, Callable[[int, Path], None]] = {
    "attacks": _attacks,
    "objectives": lambda rounds, _: objectives(rounds),
    "averaging": _averaging,
    "quantiser": _quantiser,
    "soup": lambda *_: soup(),
    "criticality": lambda *_: criticality(),
    "parity": lambda *_: parity(),
}


if __name__ == "__main__":
    main()
