"""The card: its YAML is a budget for every command, and its Python runs."""

import re
from pathlib import Path

import yaml

from lightning_robust.deployment.budget_keys import RULES
from lightning_robust.gate import budget as module
from lightning_robust.gate.budget import JUDGES, parse_budget

TEXT = (Path(module.__file__).parent / "README.md").read_text()


def test_yaml_is_a_budget_for_every_command():
    (text,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    budget = parse_budget(text, "the card", RULES)
    assert {*budget.limits} == {*JUDGES}
    assert budget.of("replay", "night") == {"tensorrt-fp16/p99_px": 3.0}
    assert budget.of("parity") == {
        "emulated-fp16/lateral_px_p99": 0.5,
        "tensorrt-fp16/rel_l2": 5e-3,
        "tensorrt-fp16/latency_ms": 4.0,
    }


def test_python_runs_and_the_workflow_is_yaml():
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(code, {})
    workflow = re.search(r"(    # \.github.*?)\n\n", TEXT, re.DOTALL)[1]
    steps = yaml.safe_load(workflow)["jobs"]["parity"]["steps"]
    assert steps[-1]["run"].startswith("lightning-robust parity --onnx")
