"""The child on NVIDIA's bindings over a stand-in, on a machine behind a command: built, run and compared."""

import shlex
import sys

import numpy as np
import pytest
import torch

from lightning_robust.deployment.engines import (
    BuildSettings,
    Subject,
    abilities,
    available,
    can_build,
    run_batches,
    runtime,
)
from lightning_robust.deployment.engines.execution import execute

from ..elsewhere import leftovers, make_ssh, make_tmp
from .machine import DEVICE, Machine
from .test_bindings import LAYERS, MODEL, answers, batch, build

pytestmark = pytest.mark.bindings


def command_of(machine, folder):
    """What starts Python on that machine, as ssh would; this process sees nothing of it."""
    settings = machine.environment | {"TMPDIR": str(make_tmp(folder))}
    words = [f"{name}={value}" for name, value in settings.items()]
    return [*make_ssh(folder / "ssh", f'exec env -i {shlex.join(words)} sh -c "$*"'), sys.executable]


def test_built_and_run_where_the_library_is(version, tmp_path, stubs):
    machine = Machine(version, tmp_path / "machine", stubs)
    command = command_of(machine, tmp_path)
    assert not abilities.device_name()
    assert abilities.device_name(command) == DEVICE
    engine = build(tmp_path, command=command)
    assert (engine.layers, engine.library) == (LAYERS, f"tensorrt {machine.library}")
    assert engine.inspector
    feeds = [batch(rows, rows) for rows in (2, 4)]
    run = run_batches(engine, feeds, timed_runs=3)
    for feed, outputs in zip(feeds, run.outputs, strict=True):
        for name, expected in answers(MODEL, feed).items():
            np.testing.assert_array_equal(outputs[name], expected)
    assert len(run.latencies) == 3
    assert build(tmp_path, command=command).cached
    assert len(list((tmp_path / "cache").glob("*.timings"))) == 1  # what the builder has timed came back too
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("version", ["11"], indirect=True)
def test_a_driver_that_is_too_old(version, tmp_path, stubs):
    machine = Machine(version, tmp_path / "machine", stubs)
    machine.environment["STAND_IN_DRIVER"] = "12020"
    reason = can_build("tensorrt", command_of(machine, tmp_path)).reason
    assert f"TensorRT {machine.library} was built for CUDA 13, and the driver" in reason
    assert "knows CUDA 12.2. Update the driver" in reason


@pytest.mark.parametrize("version", ["10"], indirect=True)
def test_a_target_of_a_parity_pass(version, tmp_path, stubs):
    """The settings' command reaches everything: "auto", the build, all samples in one process, what is asked before."""
    command = command_of(Machine(version, tmp_path / "machine", stubs), tmp_path)
    settings = BuildSettings(command=command, cache=str(tmp_path / "cache"))
    assert "tensorrt-fp16" in [made.name for made in available("auto", settings)]
    torch.manual_seed(0)
    module, x = torch.nn.Linear(8, 3).eval(), torch.randn(5, 8)
    execution = execute(runtime("tensorrt-fp16"), Subject(module, (x,), settings))
    assert (execution.status, execution.note) == ("measured", "")
    # inputs, weights and outputs are rounded to 11 bits, eight products of them are summed
    torch.testing.assert_close(execution.outputs[0].float(), module(x), rtol=2**-9, atol=8 * 2**-10)
    assert len(list((tmp_path / "cache").glob("*.engine"))) == 1
