import math

import pytest

from lightning_robust.gate.budget import Budget, Rules, check_subject, read_budget, read_limits

TARGETS = ("emulated-fp16", "tensorrt-fp16", "onnxruntime-fp32")


def rule(key):
    target, _, metric = key.partition("/")
    check_subject(target, TARGETS)
    return f"{target}/{metric or 'rel_l2'}"


RULES = Rules(TARGETS, {"parity": rule})


def written(tmp_path, text):
    path = tmp_path / "parity.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_every_form_of_a_key(tmp_path):
    """Flat and nested, with the command's name and without, numbers as YAML and as people write them."""
    text = """
    emulated-fp16: 5e-3                       # a text to YAML 1.1, rel_l2 by default
    emulated-fp16/lateral_px_p99: 0.5
    parity/onnxruntime-fp32/rel_l2: 1.0e-5
    tensorrt-fp16: {rel_l2: 0.01, latency_ms: 4}
    golden: {engine/lateral_px_p99: 0.3, engine: {rel_l2: 0}}
    compare/val/acc: 0.01
    replay/p99: 2
    replay/tensorrt-fp16/p99: 2.5
    night: {replay/tensorrt-fp16/p99: 3, p99: 4, tensorrt-fp16: {swing: 1}}
    """
    path = written(tmp_path, text)
    assert read_budget(path, RULES) == Budget(
        str(path),
        {
            "parity": {
                "emulated-fp16/rel_l2": 5e-3,
                "emulated-fp16/lateral_px_p99": 0.5,
                "onnxruntime-fp32/rel_l2": 1e-5,
                "tensorrt-fp16/rel_l2": 0.01,
                "tensorrt-fp16/latency_ms": 4.0,
            },
            "golden": {"engine/lateral_px_p99": 0.3, "engine/rel_l2": 0.0},
            "compare": {"val/acc": 0.01},
            "replay": {"p99": 2.0, "tensorrt-fp16/p99": 2.5},
        },
        {"night": {"tensorrt-fp16/p99": 3.0, "p99": 4.0, "tensorrt-fp16/swing": 1.0}},
    )


def test_a_class_goes_before_the_rest():
    budget = read_limits({"replay/p99": 2, "night": {"p99": 3}, "rain": {"swing": 1}}, "here", RULES)
    assert budget.of("replay") == {"p99": 2.0}
    assert budget.of("replay", "night") == {"p99": 3.0}
    assert budget.of("replay", "rain") == {"p99": 2.0, "swing": 1.0}
    assert budget.of("golden") == {}


BROKEN = {
    "": "but got nothing",
    "# a comment alone\n": "but got nothing",
    "[1, 2]": "but got [1, 2]",
    "5": "but got 5",
    "a: [": "Expected YAML",
    "a: b: c": "Expected YAML",
    "\tx: 1": "Expected YAML",
    "x: !!python/object/apply:os.system ['true']": "Expected YAML",
    "emulated-fp16/rel_l2: 1\nemulated-fp16/rel_l2: 2": "'emulated-fp16/rel_l2' a second time in line 2",
    "emulated-fp16: 1\nemulated-fp16/rel_l2: 2": "expected one limit, but got two for emulated-fp16/rel_l2",
    "emulated-fp61/rel_l2: 1": "Did you mean 'emulated-fp16'",
    "emulated-fp61: {rel_l2: 1}": "Did you mean 'emulated-fp16'?",
    "relpay: {p99: 1}": "Did you mean 'replay'?",
    "golde/engine/rel_l2: 1": "Did you mean 'golden'",
    "emulated-fp16/rel_l2: -1": "expected a number of at least 0, but got -1",
    "emulated-fp16/rel_l2: .nan": "but got nan",
    "emulated-fp16/rel_l2: .inf": "but got inf",
    "emulated-fp16/rel_l2: true": "but got True",
    "emulated-fp16/rel_l2: much": "but got 'much'",
    "emulated-fp16/rel_l2:": "but got None",
    "emulated-fp16/rel_l2: [1]": "but got [1]",
    "emulated-fp16/rel_l2: 2026-11-27": "but got datetime.date",
    "emulated-fp16: {}": "expected limits, but got nothing",
    "night: {golden/engine/rel_l2: 1}": "expected limits of replay for a class of cases, but got one of golden",
    "night: {}": "expected limits, but got nothing",
    "1: 2": "but got '1'",
    "null: 2": "but got 'None'",
    "golden: {a: {b: {c: {d: {e: 1}}}}}": "mappings within mappings",
    "&a golden: &b {c: *b}": "the alias *b stands inside of what it names",
    "? [a, b]\n: 1": "Expected YAML",
    b"\xff\xfe\x00": "it is no UTF-8 text",
    "a: " + "[" * 5000: "Expected YAML",
}


@pytest.mark.parametrize(("text", "message"), BROKEN.items(), ids=range(len(BROKEN)))
def test_rejects_what_is_broken_in_one_line_that_names_the_file(tmp_path, text, message):
    with pytest.raises(ValueError) as raised:
        read_budget(written(tmp_path, text), RULES)
    assert message in str(raised.value)
    assert "parity.yaml" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_rejects_folders_missing_and_huge_files(tmp_path):
    with pytest.raises(ValueError, match="it is a folder"):
        read_budget(tmp_path, RULES)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_budget(tmp_path / "none.yaml", RULES)
    with pytest.raises(ValueError, match="more than 50000 values"):
        read_budget(written(tmp_path, "\n".join(f"golden/engine/m{i}: 1" for i in range(30_000))), RULES)


def test_limits_of_other_commands_are_not_checked_by_a_reader_that_does_not_know_them():
    budget = read_limits({"replay/anything/at_all": 1, "emulated-fp16": 2}, "here", RULES)
    assert budget.of("replay") == {"anything/at_all": 1.0}
    assert math.isclose(budget.of("parity")["emulated-fp16/rel_l2"], 2)
