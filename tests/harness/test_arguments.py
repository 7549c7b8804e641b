import pytest

from lightning_robust.harness.arguments import parse_duration, parse_fraction


def test_fractions():
    assert parse_fraction("8/255") == 8 / 255
    assert parse_fraction(0.1) == 0.1
    for bad in ("8/0", "-1/255", "nan", "eight", float("inf"), -1):
        with pytest.raises(ValueError, match="'8/255'"):
            parse_fraction(bad)


def test_durations():
    assert parse_duration("500 steps") == (500, "steps")
    assert parse_duration(" 1.5epoch ") == (1.5, "epochs")
    for bad in ("3", "3 weeks", "steps", "-1 steps"):
        with pytest.raises(ValueError, match="'500 steps' or '2 epochs'"):
            parse_duration(bad)


@pytest.mark.parametrize("value", ["8/", "/255", "8//255"])
def test_half_a_quotient_is_none(value):
    with pytest.raises(ValueError, match="a quotient such as '8/255'"):
        parse_fraction(value)
