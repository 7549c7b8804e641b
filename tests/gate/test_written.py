import math
import re

import pytest

from lightning_robust.gate.budget import Rules, read_budget
from lightning_robust.gate.check import Check
from lightning_robust.gate.written import write_budget


def checks(**values):
    return [Check(name.replace("__", "-"), "rel_l2", value) for name, value in values.items()]


def test_closed_form(tmp_path):
    """The value and a quarter more, rounded up to three digits; what fp32 rounds is no limit."""
    path = tmp_path / "ci" / "parity.yaml"
    told = write_budget(
        path,
        "parity",
        [
            Check("emulated-fp16", "lateral_px_p99", 0.628, low=0.41, high=0.9),
            Check("emulated-fp16", "bias", -0.1),
            Check("onnxruntime-fp32", "rel_l2", 0.0),
        ],
        Rules(),
        line="lightning-robust parity --onnx=net.onnx --write-budget",
        origin="weights 9f2c51d0",
    )
    assert told == ["wrote 3 limits to parity.yaml with a margin of 25 %"]
    text = path.read_text()
    assert "emulated-fp16/lateral_px_p99: 0.785  # measured 0.628 px (0.41 to 0.9)\n" in text
    assert "emulated-fp16/bias: 0.125  # measured -0.1\n" in text
    assert "onnxruntime-fp32/rel_l2: 1e-06  # measured 0\n" in text
    assert text.startswith("# measured: parity (lightning-robust parity --onnx=net.onnx --write-budget)\n")
    assert re.search(r"\n# \d{4}-\d\d-\d\d, lightning_robust \S+, weights 9f2c51d0; .* 25 % more\n", text)
    limits = read_budget(path, Rules()).of("parity")
    assert limits == {
        "emulated-fp16/lateral_px_p99": 0.785,
        "emulated-fp16/bias": 0.125,
        "onnxruntime-fp32/rel_l2": 1e-6,
    }
    assert not list(path.parent.glob(".*"))


def test_what_was_measured_keeps_its_own_limits(tmp_path):
    """Whatever the size of a value, it lies within what is written of it, with at most 1 % to spare."""
    values = {f"t{i}": 10.0**e * m for i, (e, m) in enumerate((e, m) for e in range(-5, 6) for m in (1, 1.2345, 9.999))}
    write_budget(tmp_path / "b.yaml", "parity", checks(**values), Rules(), margin=0.0)
    limits = read_budget(tmp_path / "b.yaml", Rules()).of("parity")
    for name, value in values.items():
        assert value <= limits[f"{name}/rel_l2"] * (1 + 1e-12) <= value * 1.011


def test_everything_else_in_the_file_stays_byte_for_byte(tmp_path):
    path = tmp_path / "parity.yaml"
    by_hand = "# ours\nemulated-fp16/rel_l2: 0.5   # the car\nnight: {p99: 3}\n\ngolden/engine/rel_l2: 0.1"
    path.write_text(by_hand)
    told = write_budget(path, "parity", checks(emulated__fp16=0.7, emulated__bf16=0.2), Rules())
    assert "left emulated-fp16/rel_l2 at 0.5, which was set by hand" in told
    assert path.read_text().startswith(by_hand + "\n")
    write_budget(path, "golden", [Check("whole", "rel_l2", 0.1)], Rules())
    path.write_text(path.read_text() + "compare/val/acc: 0.01\n")
    told = write_budget(path, "parity", checks(emulated__bf16=0.4), Rules())
    assert "changed emulated-bf16/rel_l2 from 0.25 to 0.5" in told
    text = path.read_text()
    assert text.startswith(by_hand + "\n")
    assert text.endswith(
        "golden/whole/rel_l2: 0.125  # measured 0.1\n# end of measured: golden\ncompare/val/acc: 0.01\n"
    )
    budget = read_budget(path, Rules())
    assert budget.of("parity") == {"emulated-fp16/rel_l2": 0.5, "emulated-bf16/rel_l2": 0.5}
    assert budget.of("golden") == {"engine/rel_l2": 0.1, "whole/rel_l2": 0.125}


def test_a_limit_that_was_not_measured_now_stays_in_the_block(tmp_path):
    path = tmp_path / "parity.yaml"
    write_budget(path, "parity", checks(emulated__fp16=0.2, tensorrt__fp16=0.4), Rules())
    lost = [*checks(emulated__fp16=0.2), Check("tensorrt-fp16", "rel_l2", math.nan, note="no device")]
    told = write_budget(path, "parity", lost, Rules())
    assert told[1:] == ["left tensorrt-fp16/rel_l2, which was not measured now"]
    assert read_budget(path, Rules()).of("parity") == {"emulated-fp16/rel_l2": 0.25, "tensorrt-fp16/rel_l2": 0.5}


def test_of_several_cases_the_worst_is_the_limit(tmp_path):
    cases = [
        Check("emulated-fp16", "p99_px", value, case=name) for name, value in {"a": 1.0, "b": 2.0, "c": 0.5}.items()
    ]
    write_budget(tmp_path / "b.yaml", "replay", cases, Rules())
    assert read_budget(tmp_path / "b.yaml", Rules()).of("replay") == {"emulated-fp16/p99_px": 2.5}


def test_writing_twice_changes_nothing_but_the_date(tmp_path):
    path = tmp_path / "parity.yaml"
    write_budget(path, "parity", checks(emulated__fp16=0.2), Rules())
    first = path.read_text()
    write_budget(path, "parity", checks(emulated__fp16=0.2), Rules())
    assert path.read_text() == first


def test_keys_that_yaml_would_misread_are_quoted(tmp_path):
    key = 'val: acc #1 "x"'
    write_budget(tmp_path / "b.yaml", "compare", [Check(key, "p99", 1.0)], Rules(), line="a\nb: [")
    assert read_budget(tmp_path / "b.yaml", Rules()).of("compare") == {f"{key}/p99": 1.25}


@pytest.mark.parametrize("values", [{}, {"a": math.nan}, {"a": math.inf}])
def test_rejects_nothing_measured_and_leaves_the_file(tmp_path, values):
    path = tmp_path / "parity.yaml"
    path.write_text("emulated-fp16/rel_l2: 0.5\n")
    with pytest.raises(ValueError, match="nothing was measured"):
        write_budget(path, "parity", checks(**values), Rules())
    assert path.read_text() == "emulated-fp16/rel_l2: 0.5\n"


def test_rejects_a_file_that_is_no_budget_and_leaves_it(tmp_path):
    path = tmp_path / "parity.yaml"
    path.write_text("trainer: [max_epochs]\n")
    with pytest.raises(ValueError, match=r"parity.yaml: trainer: expected a number"):
        write_budget(path, "parity", checks(a=1.0), Rules())
    assert path.read_text() == "trainer: [max_epochs]\n"


def test_what_is_better_than_before_leaves_no_room_to_be_worse(tmp_path):
    """Of two cases the one that is worse counts, whatever its size."""
    path = tmp_path / "budget.yaml"
    checks = [Check("tensorrt-fp16", "boxes_map_worse", value) for value in (-0.5, 0.1)]
    for given, limit in ((checks, "0.125"), (checks[:1], "1e-06")):
        write_budget(path, "parity", given, Rules(), line="lightning-robust parity", origin="")
        assert f"tensorrt-fp16/boxes_map_worse: {limit}  #" in path.read_text()
