"""Tables of measurements on the disk: read, written anew, or with a row more as soon as it is measured."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a whole CSV anew."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def extend_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Adds rows to a CSV, with its line ends; a file that is not there yet gets its header."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(path, columns, rows)
        return
    with path.open("r+", newline="", encoding="utf-8") as file:
        end = "\r\n" if file.readline().endswith("\r\n") else "\n"
        file.seek(0, 2)
        csv.DictWriter(file, columns, lineterminator=end).writerows(rows)
