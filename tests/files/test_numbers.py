"""Numbers on the way to a file: valid JSON, and bounds that are still bounds."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffalora.files.numbers import decimals_up, plain, restored, rounded_up, to_json


@given(st.floats(min_value=1e-6, max_value=1e6), st.integers(2, 6))
def test_a_rounded_bound_lies_above_the_bound_by_less_than_its_last_digit(value, digits):
    up = rounded_up(value, digits)
    assert value <= up <= value * (1 + 1.0001 * 10 ** (1 - digits))
    assert float(f"{up:.{digits}g}") == up == rounded_up(up, digits)


@given(st.floats(min_value=0, max_value=1e300))
def test_a_bound_with_fixed_decimals_is_not_below_it(value):
    assert value <= float(decimals_up(value)) <= value * (1 + 1e-15) + 1e-4
    assert decimals_up(0.7) == "0.7000" and decimals_up(0.70001) == "0.7001" and decimals_up(math.inf) == "inf"


def test_bounds_without_digits_stay_as_they_are():
    assert rounded_up(0.0) == 0.0 and math.isinf(rounded_up(math.inf)) and math.isnan(rounded_up(math.nan))


def test_json_holds_only_what_every_reader_knows():
    value = {"a": [math.inf, -math.inf, 1.5], "b": {"c": (math.nan, None, "text", True)}}
    text = to_json(value)

    def refuse(word):
        raise AssertionError(word)

    again = json.loads(text, parse_constant=refuse)
    assert again == plain(value) == {"a": ["infinity", "-infinity", 1.5], "b": {"c": ["nan", None, "text", True]}}
    back = restored(again)
    assert back["a"] == value["a"] and math.isnan(back["b"]["c"][0]) and back["b"]["c"][1:] == [None, "text", True]


@pytest.mark.parametrize(
    ("value", "up"), [(0.0, 0.0), (1e-9, 0.01), (4.75, 4.75), (4.7500001, 4.76), (12.341, 12.35), (1e300, 1e300)]
)
def test_an_upper_bound_of_so_many_decimals_is_not_below_and_the_nearest(value, up):
    assert rounded_up(value, decimals=2) == up
