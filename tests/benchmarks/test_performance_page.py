"""The performance page: its tables are those of the committed data, and measured and modelled numbers never mix."""

import bench_path  # noqa: F401
import performance_page as page
import pytest
from record import Row


def test_page_is_that_of_the_committed_data():
    assert page.main(["--check"]) == 0


def test_wrong_or_missing_result_is_never_quoted_as_measured():
    rows = [
        Row("ops", "backward", "ours", "wrong: error 1", "green", ms=1.0),
        Row("ops", "backward", "rival", "out of memory", "green"),
        Row("job", "reviews", "ours", gate="green", ms=2.0, ms_low=1.5, ms_high=2.5, device="a card", commit="abc"),
    ]
    text = page.measured(rows)
    assert "backward" not in text and "2 ms (1.5 to 2.5)" in text and "a card; abc" in text


def test_a_row_that_was_measured_while_the_gate_was_red_says_so():
    red, green = (
        [Row("ops", case, name, gate=gate, ms=1.0, device="a card", commit="abc") for name in ("ours", "torch")]
        for case, gate in (("outer", "red"), ("expand_", "green"))
    )
    first, second = page.operations(red + green).splitlines()[2:]
    assert first.endswith("| a card; abc; gate red |") and second.endswith("| a card; abc |")
    step = Row("steps", "a model", "ours", gate="red", ms=1.0, device="a card", commit="abc", date="today")
    assert page.measured([step]).endswith("| a card; abc; today; gate red |")


def test_rivals_are_said_in_times_of_ours():
    rows = [
        Row(*place, name, gate="green", ms=10.0 * number, device="a card")
        for place in page.STEPS.values()
        for number, name in enumerate(["ours", *page.RIVALS.values()], start=1)
    ]
    line = "| a card | **10 ms** | 20 ms (2.00 ×) | 30 ms (3.00 ×) | 40 ms (4.00 ×) |"
    assert page.summary(rows).count(line) == len(page.STEPS) > 1


def test_modelled_numbers_name_no_time_and_no_device():
    text = page.modelled()
    assert " ms" not in text and "GB/s" not in text and "TFLOP" not in text


def test_measured_question_is_no_longer_unknown():
    before, after = page.unknown([]), page.unknown([Row("steps", "model", "ours", gate="green", ms=1.0)])
    assert page.QUESTIONS["steps"] in before and page.QUESTIONS["steps"] not in after
    assert page.QUESTIONS["ops"] in after


def test_formats_are_compared_over_their_own_seeds_and_rounds():
    def row(rounds, seed, wide, narrow):
        return {"method": "ffa", "rounds": rounds, "seed": seed, "float32_accuracy": wide, "bfloat16_accuracy": narrow}

    text = page.accuracy([row("8", "0", "0.60", "0.61"), row("8", "1", "0.70", "0.69"), row("25", "0", "0.9", "0.1")])
    assert "demo, ffa, 8 rounds | 2 | 0.6500 | 0.6500 | +0.0000 (-0.1271 to +0.1271) | 0.0707" in text
    assert "25 rounds" not in text


def test_page_without_marks_is_refused():
    with pytest.raises(ValueError, match="lacks the marks"):
        page.fill("# Performance\n", {"measured": "a table"})
