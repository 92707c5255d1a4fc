"""Pictures from benchmark rows: the operations on a roofline, speed-ups, memory over batch size.

python benchmarks/plot.py runs/bench/gpu.csv [--folder DIR]
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from record import OK, Row, latest, read
from report import is_rival


def draw(table: Path, folder: Path) -> list[Path]:
    """Draws what the rows of a CSV allow; returns the files. Rows of several devices are drawn apart."""
    rows = list(latest(read(table)).values())
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number, device in enumerate(sorted({row.device for row in rows})):
        mine = [row for row in rows if row.device == device and row.status == OK]
        stem = table.stem if number == 0 else f"{table.stem}-{number}"
        for name, painter in (("roofline", roofline), ("speedup", speedups), ("memory", memory)):
            figure = painter(mine, device)
            if figure is not None:
                made.append(folder / f"{stem}-{name}.png")
                figure.savefig(made[-1], dpi=130, bbox_inches="tight")
                plt.close(figure)
    return made


def roofline(rows: list[Row], device: str) -> plt.Figure | None:
    """Each operation of ours under the copy bandwidth and the rate of matrix products that the same run measured."""
    machine = next((row for row in reversed(rows) if row.section == "device"), None)
    points = [r for r in rows if r.section.startswith("ops") and r.provider == "ours" and r.bytes and r.ms > 0]
    points = [row for row in points if row.config.get("flops")]
    if machine is None or not points:
        return None
    figure, axes = plt.subplots(figsize=(8, 5))
    for name in sorted({row.case.split()[0] for row in points}):
        chosen = [row for row in points if row.case.split()[0] == name]
        at = [row.config["flops"] / row.bytes for row in chosen]
        axes.loglog(at, [row.config["flops"] / row.ms / 1e6 for row in chosen], "o", label=name, alpha=0.7)
    reach = [2.0**i for i in range(-3, 12)]
    for dtype, tflops in machine.config.get("tflops", {}).items():
        roof = [min(1e3 * tflops, machine.gb_per_s * x) for x in reach]
        axes.loglog(reach, roof, label=f"copy {machine.gb_per_s:.0f} GB/s, {dtype} products {tflops:.3g} TFLOP/s")
    axes.set(
        xlabel="flops a byte, at the least bytes that the operation moves",
        ylabel="GFLOP/s",
        title=f"Roofline, {device}",
    )
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3, which="both")
    return figure


def speedups(rows: list[Row], device: str) -> plt.Figure | None:
    """For each case, how many times as long the rivals take."""
    cases: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.section not in ("device", "gate", "memory", "counters", "ablation", "rss") and row.ms == row.ms:
            cases.setdefault(f"{row.section}: {row.case}", {})[row.provider] = row.ms
            if row.provider != "ours" and not is_rival(row):
                del cases[f"{row.section}: {row.case}"][row.provider]
    bars = [
        (case, name, ms / times["ours"])
        for case, times in cases.items() if "ours" in times
        for name, ms in times.items() if name != "ours"
    ]  # fmt: skip
    if not bars:
        return None
    figure, axes = plt.subplots(figsize=(9, 0.22 * len(bars) + 1))
    axes.barh(
        range(len(bars)), [ratio for *_, ratio in bars], color=["tab:blue" if r >= 1 else "tab:red" for *_, r in bars]
    )
    axes.set_yticks(range(len(bars)), [f"{case}: {name}" for case, name, _ in bars], fontsize=6)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set(xlabel="time relative to ours", title=f"Rivals, {device}")
    axes.invert_yaxis()
    return figure


def memory(rows: list[Row], device: str) -> plt.Figure | None:
    """Peak memory of a step over the number of samples in it."""
    points = [(row, re.search(r" B(\d+) ", row.case)) for row in rows if row.section == "memory"]
    points = [(row, int(found[1])) for row, found in points if found and row.peak_mib == row.peak_mib]
    if not points:
        return None
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for provider in dict.fromkeys(row.provider for row, _ in points):
        line = sorted((batch, row.peak_mib) for row, batch in points if row.provider == provider)
        axes.plot([batch for batch, _ in line], [mib for _, mib in line], "o-", label=provider)
    axes.set(xlabel="samples in a batch", ylabel="MiB above what is resident", title=f"Peak memory of a step, {device}")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return figure


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="CSV of a benchmark")
    parser.add_argument("--folder", type=Path, help="where pictures go [beside the CSV]")
    options = parser.parse_args()
    for path in draw(options.table, options.folder or options.table.parent):
        print(path)


if __name__ == "__main__":
    main()
