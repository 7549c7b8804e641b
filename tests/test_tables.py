"""Numbers and names as tables show them."""

import math

import pytest

from lightning_robust.tables import number, shorten


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.89349, "0.893"), (1e-6, "1e-06"), (123.4, "123"), (math.inf, "inf")]
)
def test_numbers_have_three_significant_digits(value, text):
    assert number(value) == text


def test_an_unknown_number_is_empty():
    assert number(None) == number(math.nan) == ""


def test_long_names_keep_their_end():
    assert shorten("a" * 24) == "a" * 24
    assert shorten("x" + "a" * 24) == "..." + "a" * 21
