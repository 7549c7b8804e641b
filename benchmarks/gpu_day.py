"""Everything of this library that a CUDA machine can do and a CPU cannot, in one command of at most ten minutes.

    python benchmarks/gpu_day.py [--out runs/gpu_day.jsonl] [--device cuda] [--minutes 9] [--only emulation speed]
    python benchmarks/gpu_day.py --table        the tables of what is in the file; nothing is run
    python benchmarks/gpu_day.py --predict      the emulator's predictions, on a CPU, into gpu_predictions.json

techniques  every technique for two epochs of two steps, 16-mixed and bf16-mixed: finite, and diagnostics change nothing
emulation   PyTorch in fp16, bf16, TF32, and fp16 with fp16 accumulators, beside what the emulator predicted
speed       training steps with attacks and averages beside a plain one; updates, exchanges and soups of weights
engines     TensorRT, TensorRT-RTX and ONNX Runtime's CUDA provider beside the same predictions, where they are found

A row is a line of JSON in the file as soon as it is there; rows of the same device that are in it are not run again, so
that a run that was cut off goes on. When the time is up no new row is begun, and those that are missing are named.

The prediction, made before anything was run on a GPU: in fp16, bf16 and TF32 the executed distance is 0.5 to 2 times
the emulated one on networks of convolutions, of attention and of fully connected layers, because PyTorch accumulates in
fp32 on a GPU; the lane detector, whose argmax jumps, may leave that range. With fp16 accumulators in products the
distance lies between half of emulated-fp16 and twice emulated-fp16acc: up to 7 times as far as with fp32 accumulators
where sums are as long as 12,288 products, and no farther in convolutions, where cuDNN keeps fp32 accumulators. An
engine that lies 3 to 12 times beyond emulated-fp16 does what fp16 accumulators do: emulated-fp16acc is the bound, and
the tables say on which side of it an engine lies.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import gpu_engines
import gpu_speed
import gpu_techniques
import torch
from gpu_tables import print_tables
from rows import quiet

from lightning_robust.complaints import one_line

ROOT = Path(__file__).parents[1]
SECTIONS = ("techniques", "emulation", "speed", "engines")
ROW_SECONDS = 150
Numbers = dict[str, Any]


class Task(NamedTuple):
    """A row that can be run."""

    section: str
    row: str
    run: Callable[[], Numbers]


# What there is to run


def tasks(section: str, device: str, quick: bool) -> Iterator[Task]:
    """The rows of a section, in their order."""
    if section == "techniques":
        for name in gpu_techniques.techniques():
            for precision in gpu_techniques.PRECISIONS:
                run = functools.partial(gpu_techniques.train, name, precision, device)
                yield Task(section, f"{name} | {precision}", run)
    if section == "emulation":
        yield from _measured(section, gpu_engines.TORCH, device, quick)
    if section == "speed":
        scale = gpu_speed.QUICK if quick else gpu_speed.Scale()
        for name, run in gpu_speed.races(device, scale).items():
            yield Task(section, name, run)
    if section == "engines":
        yield from _measured(section, gpu_engines.ENGINES, device, quick)


def _measured(section: str, engines: Iterable[str], device: str, quick: bool) -> Iterator[Task]:
    """Every model on every engine that is here; one row for each of the others."""
    absent = {engine: gpu_engines.missing(engine, device) for engine in engines}
    for engine, why in absent.items():
        if why:
            yield Task(section, f"all | {engine}", lambda why=why: {"status": "unavailable", "note": why})
    for name in ("small CNN",) if quick else gpu_engines.NAMES:
        for engine in [engine for engine, why in absent.items() if not why]:
            run = functools.partial(gpu_engines.measure, name, engine, device)
            yield Task(section, f"{name} | {engine}", run)


# The file and the clock


class Rows:
    """Rows of one device in a file of JSON lines, and the machine that they were measured on."""

    def __init__(self, path: Path, device: str) -> None:
        self.path, self.device = path, device
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        self.rows = {(line["section"], line["row"]): line for line in lines if line["device"] == device}

    def put(self, section: str, row: str, numbers: Numbers) -> None:
        """Keep a row, at once."""
        line = {"device": self.device, "section": section, "row": row, **numbers}
        self.rows[section, row] = line
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def sections(self) -> dict[str, dict[str, Numbers]]:
        """The rows of every section, by name."""
        found: dict[str, dict[str, Numbers]] = {section: {} for section in ("machine", *SECTIONS)}
        for (section, row), line in self.rows.items():
            found[section][row] = line
        return found


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in what takes longer, as far as the interpreter gets to know."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_missing(rows: Rows, given: argparse.Namespace) -> list[str]:
    """Run what is not in the file until the time is up; the names of what is still missing."""
    end, missing = time.monotonic() + 60 * given.minutes, []
    for section in given.only:
        for task in tasks(section, given.device, given.quick):
            if (section, task.row) in rows.rows:
                continue
            left = end - time.monotonic()
            if left <= 0:
                missing.append(f"{section}: {task.row}")
                continue
            began = time.monotonic()
            try:
                with at_most(min(ROW_SECONDS, left + 30)):
                    numbers = task.run()
            except Exception as error:
                numbers = {"status": "error", "note": one_line(error)}
            numbers["seconds"] = round(time.monotonic() - began, 2)
            rows.put(section, task.row, numbers)
            print(f"{section}: {task.row}: {numbers['status']} {numbers.get('note', '')}".rstrip(), flush=True)
            if "CUDA error" in numbers.get("note", ""):
                raise SystemExit("The device is in an error state: call again, rows that are in the file are kept.")
    return missing


# The machine


def device_name(device: str) -> str:
    """The GPU's or the processor's name."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return f"{next(named, platform.processor())}, no GPU"


def machine(device: str, commit: str) -> Numbers:
    """What a reader needs to know of where the rows come from."""
    driver = "none"
    if device.startswith("cuda"):
        driver = _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "unknown"
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "driver": driver,
        "python": platform.python_version(),
        "commit": commit or _commit(),
        "seed": gpu_engines.SEED,
    }


def _commit() -> str:
    return _said("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD") or "unknown"


def _said(*command: str) -> str:
    """The first line that a command prints, '' where it fails."""
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return lines[0].strip() if lines else ""


def write_predictions(commit: str) -> None:
    """Predict every model anew and keep the numbers."""
    models = {}
    for name in gpu_engines.NAMES:
        models[name] = gpu_engines.predict(name)
        print(name, models[name], flush=True)
    head = {"command": "python benchmarks/gpu_day.py --predict", "torch": torch.__version__}
    head |= {"commit": commit or _commit(), "seed": gpu_engines.SEED, "samples": gpu_engines.SAMPLES}
    gpu_engines.PREDICTIONS.write_text(json.dumps({**head, "models": models}, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu_day.jsonl"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--commit", default="", help="where the checkout has no git to ask")
    parser.add_argument("--quick", action="store_true", help="one small network and the shortest races")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--predict", action="store_true")
    given = parser.parse_args(arguments)
    quiet()
    if given.predict:
        write_predictions(given.commit)
        return
    sys.path.insert(0, str(ROOT))  # for the table of the contract tests
    if given.table:
        devices = [json.loads(line)["device"] for line in given.out.read_text().splitlines()]
        for device in dict.fromkeys(devices):
            print_tables(device, Rows(given.out, device).sections())
        return
    rows = Rows(given.out, device_name(given.device))
    rows.put("machine", "machine", machine(given.device, given.commit))
    missing = run_missing(rows, given)
    print_tables(rows.device, rows.sections())
    if missing:
        print(f"\nThe time was up. Call again for these {len(missing)} rows:", *missing, sep="\n")


if __name__ == "__main__":
    main()
