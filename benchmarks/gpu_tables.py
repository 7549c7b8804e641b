"""The rows of ``gpu_day.py`` as Markdown tables."""

from __future__ import annotations

import math
import statistics
from typing import Any

from lightning_robust.tables import markdown

Numbers = dict[str, Any]


def print_tables(device: str, sections: dict[str, dict[str, Numbers]]) -> None:
    """All sections as Markdown, under the name of the device and what else there is to know of the machine.

    Args:
        device: Its name.
        sections: ``"machine"`` first, then the rows of each section by name.
    """
    facts = sections.pop("machine").get("machine", {})
    known = [
        f"{name} {facts[name]}" for name in ("torch", "cuda", "driver", "python", "commit", "seed") if name in facts
    ]
    print(f"\n{device}: {', '.join(known)}")
    for section, found in sections.items():
        if not found:
            print(f"\n{section}: not run")
        elif section == "speed":
            _print_races(found)
        else:
            _print_grid(section, found)


def _print_grid(section: str, found: dict[str, Numbers]) -> None:
    """A line for each technique or model, a column for each precision or engine; a sentence for what is not there."""
    there = {tuple(row.split(" | ")): line for row, line in found.items()}
    print(f"\n{section}")
    for (name, column), line in there.items():
        if name == "all":
            print(f"\n{column}: {cell(line)}")
    there = {key: line for key, line in there.items() if key[0] != "all"}
    names, columns = (list(dict.fromkeys(key[index] for key in there)) for index in (0, 1))
    if names:
        cells = [[name, *(cell(there.get((name, column))) for column in columns)] for name in names]
        print(f"\n{markdown([section, *columns], cells)}\n")
    for column in columns:
        print(f"{column}: {summary([line for key, line in there.items() if key[1] == column])}")


def summary(lines: list[Numbers]) -> str:
    """How many rows say what, and how far the ratios go."""
    said = [line.get("verdict", line["status"]) for line in lines]
    counts = ", ".join(f"{said.count(what)} {what}" for what in dict.fromkeys(said))
    ratios = [line["ratio"] for line in lines if line.get("ratio") and math.isfinite(line["ratio"])]
    if not ratios:
        return counts
    return f"{counts}; ratio {min(ratios):.2f} to {max(ratios):.2f}, median {statistics.median(ratios):.2f}"


def cell(line: Numbers | None) -> str:
    """Predicted and executed distance, their ratio and what it says; or the status and why."""
    if line is None:
        return "not run"
    if "executed" not in line:
        return f"{line['status']}: {line['note']}" if line.get("note") else line["status"]
    if line["predicted"] is None:
        return f"{line['executed']:.2e}, {line['verdict']}"
    parts = [f"{line['predicted']:.2e} / {line['executed']:.2e} ({line['ratio']:.2f})"]
    parts += [line["verdict"]] * (line["verdict"] != "as predicted")
    if "ms" in line:
        parts.append(f"{line['ms']:.3g} ms")
    return ", ".join(parts)


def _print_races(found: dict[str, Numbers]) -> None:
    for name, line in found.items():
        if line["status"] != "ok":
            print(f"\n{name}: {cell(line)}")
            continue
        cells = [[way, f"{line['ms'][way]:.3g}", f"{ratio:.3g}"] for way, ratio in line["ratio"].items()]
        print(f"\n{name}\n\n{markdown(['', 'ms', 'x plain step'], cells)}")
