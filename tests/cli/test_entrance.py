import json
import os
import resource
import subprocess
import sys

import pytest

from lightning_robust.cli.entrance import TRAINING, main
from lightning_robust.commands import COMMANDS

WRONG = {  # command -> a missing file, and a bad number
    "compare": (["/nowhere"], []),
    "fingerprint": (["/nowhere.npy", "/nowhere.npy"], []),
    "golden": (["--ckpt=/nowhere.ckpt"], ["--ckpt=/nowhere.ckpt", "--samples=0"]),
    "parity": (["--onnx=/nowhere.onnx"], ["--onnx=/nowhere.onnx", "--time_limit=0"]),
    "precision": (["/nowhere.onnx", "--budget=1"], ["/nowhere.onnx", "--budget=-1"]),
    "replay": (["--ckpt=/nowhere.ckpt", "--frames=/"], ["--ckpt=/nowhere.ckpt", "--frames=/", "--stride=0"]),
    "sweep": (["/nowhere.yaml"], ["/nowhere.yaml", "--cpus=none"]),
}
HEAVY = ("torch", "lightning", "onnx", "onnxruntime", "onnx_ir", "numpy", "scipy", "pandas", "matplotlib", "PIL")
PROGRAM = """
import contextlib, io, json, sys
from lightning_robust.cli import main
for line in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        try:
            main(line)
            status = 0
        except SystemExit as stop:
            status = stop.code
    heavy = sorted({*json.loads(sys.argv[2])} & {*sys.modules})
    print(json.dumps([line, status, said.getvalue(), heavy]))
"""


def test_what_is_wrong_before_the_work_is_said_before_the_work_is_imported():
    lines = [[], ["--help"], ["soop"]]
    for name, (missing, number) in WRONG.items():
        lines += [
            [name, "--help"],
            [name, "--typo=1"],
            [name, *missing],
            [name, *number, "--outputt=a"],
            [name, *number],
        ]
    lines += [["parity", "--onnx=/nowhere.onnx", "--targets=[emulated-fp61]"], ["parity"]]
    lines += [["replay", "--ckpt=a", "--frames=/", "--perturbations=[bgrr]"]]
    program = [sys.executable, "-c", PROGRAM, json.dumps(lines), json.dumps(HEAVY)]
    done = subprocess.run(program, capture_output=True, text=True, check=True, env=os.environ)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == len(lines)
    for line, status, said, heavy in told:
        assert heavy == [], line
        assert status == (0 if "--help" in line else 2), (line, said)


def processor_time(*command):
    """Seconds of the processor that a command takes, the least of three."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], capture_output=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def test_an_answer_takes_less_than_half_of_what_importing_torch_takes():
    importing = processor_time("-c", "import torch")
    assert processor_time("-m", "lightning_robust", "parity", "--onnx=/nowhere.onnx") < importing / 2


def test_the_list_has_every_command_in_one_line(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert listed == [*TRAINING, *COMMANDS]
    assert {*COMMANDS} <= {*listed}


@pytest.mark.parametrize(
    ("given", "meant"), [("soop", "soup"), ("parityy", "parity"), ("Fit", "fit"), ("swep", "sweep")]
)
def test_a_misspelt_command_gets_the_nearest(given, meant, capsys):
    with pytest.raises(SystemExit) as stop:
        main([given])
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[0].endswith(f"but got {given!r}. Did you mean {meant!r}?")
