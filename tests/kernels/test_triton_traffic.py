"""The counts and tables that are committed say what the formulas and the bars say."""

import csv
from pathlib import Path

import pytest
from mutations import table

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "kernels" / "README.md").read_text()
COUNTS = list(csv.DictReader((ROOT / "benchmarks" / "data" / "emulator_counts.csv").read_text().splitlines()))


def test_the_table_of_mutations_in_the_readme_is_the_one_that_is_tested() -> None:
    assert table() in README


def test_every_row_of_counts_is_in_the_readme() -> None:
    for row in COUNTS:
        assert f"| {row['shape']} | {row['part']} | {row['programs']} | {row['unique_to_floor']} |" in README


@pytest.mark.parametrize("row", COUNTS, ids=lambda r: f"{r['op']} {r['variant']} {r['shape']} {r['part']}")
def test_no_operation_moves_more_than_a_twentieth_above_what_it_may(row: dict) -> None:
    assert float(row["unique_to_allowed"]) <= 1.05


@pytest.mark.parametrize(
    "row", [r for r in COUNTS if r["variant"] == "deterministic"], ids=lambda r: f"{r['shape']} {r['part']}"
)
def test_deterministic_backward_asks_the_caches_for_few_more_bytes_than_memory(row: dict) -> None:
    assert float(row["sectors_to_unique"]) <= 1.3
