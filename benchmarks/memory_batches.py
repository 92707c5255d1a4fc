"""Memory of a private step over the batch size, without allocating any: python benchmarks/memory_batches.py

The steps of ``memory.py`` (RoBERTa-large's size, 128 tokens, adapters of rank 8 on query and value) with growing
batches, counted on tensors that have shapes and no data. Nothing here was measured on a device.

    --write   writes benchmarks/data/memory_batches.csv and memory-batches.png     --check   fails where it differs
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from csv_tables import read_table, write_table
from memory import COLUMNS, PROVIDERS, measure
from workload import roberta

DATA = Path(__file__).parent / "data"
TABLE, PICTURE = DATA / "memory_batches.csv", DATA / "memory-batches.png"
BATCHES = (8, 16, 32, 64, 128)
COMPARED = ("floor", "opacus hooks", "opacus hooks, a frozen", "opacus ghost, a frozen", "ours")


def measure_batches(batches: Sequence[int] = BATCHES) -> list[dict[str, Any]]:
    """Rows of ``memory.measure`` for each batch size, with the size in a column of its own."""
    providers = {name: PROVIDERS[name] for name in COMPARED}
    device = torch.device("meta")
    return [
        {"batch": batch} | row
        for batch in batches
        for row in measure(roberta(device, samples=batch, batch=batch), providers)
    ]


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Peak of a step, and what it takes above the frozen model's step, over the batch size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5))
    for column, title, axes in (
        ("peak_mib", "peak of a step", panels[0]),
        ("extra_mib", "kept and held, above the frozen model", panels[1]),
    ):
        for name in COMPARED:
            line = [(int(row["batch"]), float(row[column])) for row in rows if row["provider"] == name]
            style = "s--" if name == "ours" else "o-"  # its line lies on that of the hooks with a frozen
            axes.plot([batch for batch, _ in line], [mib for _, mib in line], style, label=name, alpha=0.8)
        axes.set(xlabel="samples in a batch", ylabel="MiB", title=f"{title} (modelled)")
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)


def drift(fresh: Sequence[dict[str, Any]]) -> list[str]:
    """What the committed table says differently of the batch sizes that were measured afresh."""
    committed = {(row["batch"], row["provider"]): row for row in read_table(TABLE)}
    now = [{k: str(v) for k, v in row.items()} for row in fresh]
    pairs = [(row, committed.get((row["batch"], row["provider"]))) for row in now]
    return [
        f"B{row['batch']} {row['provider']}: {TABLE.name} says {old}, now {row}" for row, old in pairs if old != row
    ]


def main(arguments: list[str] | None = None) -> int:
    """Command line; 1 where the committed table drifted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table and the picture")
    parser.add_argument("--check", action="store_true", help="fail where the committed table differs")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    rows = measure_batches()
    for row in rows:
        print(f"B{row['batch']:<5}{row['provider']:24}" + "".join(f"{row[c]:12.1f}" for c in COLUMNS[2:]))
    if options.write:
        write_table(TABLE, ("batch", *COLUMNS), rows)
        draw(rows, PICTURE)
    found = drift(rows) if options.check else []
    print("\n".join(found))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
