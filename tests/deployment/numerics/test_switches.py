"""Switchable graphs: on is the emulation, off is fp32, layer by layer."""

import numpy as np
import pytest

from lightning_robust.deployment.graph.session import Session
from lightning_robust.deployment.numerics.emulate import emulate
from lightning_robust.deployment.numerics.sweep import NodeSweep
from lightning_robust.deployment.numerics.switches import SWITCHES, switchable
from lightning_robust.deployment.numerics.trace import trace_rounding

from .operators import GRAPHS


def run(switched, feeds, mask):
    return Session(switched).run({**feeds, SWITCHES: np.array(mask)})[0].numpy()


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_all_on_is_the_emulation_and_all_off_is_fp32(name, precision):
    model, feeds = GRAPHS[name]
    switched, switches = switchable(model, precision)
    count = 1 + max(switches.values())
    assert set(switches) <= {node.name for node in model.graph.node}
    assert set(switches.values()) == set(range(count))
    emulated = Session(emulate(model, precision)).run(feeds)[0].numpy()
    scale = {"fp16": 2**-10, "bf16": 2**-7}[precision]  # kernels that sum in another order may turn a rounding over
    on, off = (run(switched, feeds, [state] * count) for state in (True, False))
    np.testing.assert_allclose(on, emulated, rtol=scale, atol=scale * np.abs(emulated[np.isfinite(emulated)]).max())
    (exact,) = Session(model).run(feeds)[:1]
    np.testing.assert_allclose(off, exact.numpy(), rtol=2e-5, atol=2e-5 * float(exact.abs().max()))


@pytest.mark.parametrize("name", GRAPHS)
def test_one_switch_off_is_that_layer_kept(name):
    model, feeds = GRAPHS[name]
    switched, switches = switchable(model, "fp16")
    count = 1 + max(switches.values())
    for node, position in switches.items():
        mask = np.arange(count) != position
        kept = Session(emulate(model, "fp16", [node])).run(feeds)[0].numpy()
        bound = 2**-10 * np.abs(kept[np.isfinite(kept)]).max()
        np.testing.assert_allclose(run(switched, feeds, mask), kept, rtol=2**-10, atol=bound, err_msg=node)


@pytest.mark.parametrize("name", GRAPHS)
def test_every_graph_is_swept_and_traced_by_the_names_of_its_nodes(name):
    model, feeds = GRAPHS[name]
    names = {node.name for node in model.graph.node}
    sweep = NodeSweep(model, feeds)
    assert set(sweep.computing) <= set(sweep.names) <= names
    assert {node.name for node in sweep.sensitivity().nodes} == set(sweep.computing)
    assert set(trace_rounding(model, feeds, "bf16")) <= names
