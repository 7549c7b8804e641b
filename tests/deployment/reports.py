"""Hand-made parity reports."""

import dataclasses
import math

from lightning_robust.deployment.graph.origin import Origin
from lightning_robust.deployment.numerics.keep_list import KeepList
from lightning_robust.deployment.numerics.sensitivity import NodeSensitivity, Sensitivity
from lightning_robust.deployment.numerics.trace import NodeTrace
from lightning_robust.deployment.parity.attribution import Side, find_chain
from lightning_robust.deployment.parity.links import Link
from lightning_robust.deployment.parity.readout import Readout
from lightning_robust.deployment.parity.result import ParityReport, TargetResult
from lightning_robust.statistics import Interval


def measured(px, rel_l2=1e-4):
    return TargetResult("measured", {"rel_l2": rel_l2, "max_abs": px, "x_px_p99": px})


def link(name, source, target, px):
    return Link(name, source, target, px, px / 10, Interval(0.8 * px, 1.2 * px), 16)


def report(**changes):
    plain = ParityReport(
        targets={"onnxruntime-fp32": measured(1e-4, 1e-7), "emulated-fp16": measured(0.3)},
        sensitivity={},
        chain=(
            link("export", "torch-fp64", "onnxruntime-fp32", 1e-4),
            link("fp16", "onnxruntime-fp32", "emulated-fp16", 0.3),
        ),
        unit="x_px_p99",
        reference="torch-fp64",
        samples=16,
        seconds=2.0,
    )
    return dataclasses.replace(plain, **changes)


def node(name, cost, *, overflow=0.0, exact=True):
    trace = NodeTrace(math.inf if overflow else 1e-3, overflow, overflow, 0.0)
    return NodeSensitivity(name, "Pow", Origin(f"neck.{name}", "neck.py:41"), cost, exact, trace)


def layers(*nodes, complete=True):
    return Sensitivity(nodes, 0.3, "fp16", "x_px_p99", 4, 1.0, complete)


KEEP = KeepList(
    ("a", "b"),
    of=12,
    modules=("neck.a",),
    total=0.3,
    error=0.02,
    found_error=0.018,
    tolerance=0.06,
    precision="fp16",
    unit="x_px_p99",
    samples=4,
    checked=12,
    complete=True,
)


def chain_between(readouts, reference, unit):
    """The chain between readouts of all their samples."""
    return find_chain({name: _side_of(whole) for name, whole in readouts.items()}, reference, unit)


def _side_of(whole):
    def read(samples):
        values, known = ({k: v[:samples] for k, v in each.items()} for each in (whole.values, whole.known))
        return Readout([output[:samples] for output in whole.outputs], values, known)

    return Side(len(whole.outputs[0]), read)
