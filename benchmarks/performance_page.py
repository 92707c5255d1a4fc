"""Fills the tables of docs/performance.md, and one of README.md: python benchmarks/performance_page.py

Measured, modelled and unknown stay apart: a row comes from a CSV of times, or from a CSV of counts, or says that
nobody has measured it yet. ``--check`` writes nothing and fails where the page differs.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from cpu_kernels import ratio_to_best, share_of_peak
from csv_tables import read_table
from number_format import compare
from record import OK, Row, latest, latest_by_device, read

ROOT = Path(__file__).resolve().parents[1]
PAGE, README, DATA = ROOT / "docs" / "performance.md", ROOT / "README.md", ROOT / "benchmarks" / "data"
CHOICES = ROOT / "kernels" / "ffalora_kernels" / "cpu_choices.csv"
#: Whole private steps that stand for the rest: what, section and case of the rows.
STEPS = {
    "RoBERTa-large's size, 32 × 128 tokens, rank 8, bfloat16": ("steps", "roberta 24x1024 B32 T128 R8 bfloat16"),
    "the same in float32": ("steps", "roberta 24x1024 B32 T128 R8 float32"),
    "a Llama of 1B's size, 4 × 512 tokens, rank 8, bfloat16": ("steps", "llama 16x2048 B4 T512 R8 bfloat16"),
    "MiniLM on movie reviews, Poisson batches of 64": ("job", "MiniLM movie reviews, Poisson 64, q,v R8"),
}
#: Who is shown: the column's title, and the rows' provider.
RIVALS = {
    "Opacus hooks, `A` frozen": "opacus hooks, a frozen",
    "Opacus ghost, `A` frozen": "opacus ghost, a frozen",
    "PEFT, no privacy": "peft",
}
#: What a GPU's owner can find out with one command, and where its rows would come from.
QUESTIONS = {
    "ops": "time of each operation on a GPU, and its share of the copy bandwidth",
    "layer": "private step of one adapted linear layer on a GPU",
    "steps": "private step of RoBERTa-large and a 1B Llama on a GPU, against PEFT, Opacus and opake",
    "memory": "peak memory of those steps on a GPU",
    "counters": "bytes of the compiled kernels by hardware counters, against the emulator's",
}


def summary(rows: list[Row]) -> str:
    """The steps that stand for the rest, ours beside its rivals': milliseconds, and how many times ours."""
    lines = [
        f"| a step of | on | ffalora, private | {' | '.join(RIVALS)} |",
        f"| --- | --- | --- |{' --- |' * len(RIVALS)}",
    ]
    for what, place in STEPS.items():
        by_device: dict[str, dict[str, Row]] = {}
        for row in latest_by_device(rows):
            if (row.section, row.case) == place and row.status == OK:
                by_device.setdefault(row.device, {})[row.provider] = row
        for device, found in by_device.items():
            ours = found["ours"]
            rivals = [f"{found[name].ms:.0f} ms ({found[name].ms / ours.ms:.2f} ×)" for name in RIVALS.values()]
            lines.append(f"| {what} | {device} | **{ours.ms:.0f} ms** | {' | '.join(rivals)} |")
    return "\n".join(lines)


def measured(rows: list[Row]) -> str:
    """Times that somebody took: medians, with the 20% and 80% quantiles; processes' peak memory."""
    lines = [
        "| what | who | time (20% to 80%) | over the floor | peak memory | device, commit, date |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in latest_by_device(rows):
        says_nothing = row.ms != row.ms and row.peak_mib != row.peak_mib
        if row.status != OK or row.section in ("device", "gate", "ops") or says_nothing:
            continue
        time = "" if row.ms != row.ms else f"{row.ms:.4g} ms ({row.ms_low:.4g} to {row.ms_high:.4g})"
        time += "" if row.gb_per_s != row.gb_per_s else f", {row.gb_per_s:.0f} GB/s"
        floor = "" if "to_floor" not in row.config else "{:.3f} ({:.3f} to {:.3f})".format(*row.config["to_floor"])
        memory = "" if row.peak_mib != row.peak_mib else f"{row.peak_mib:.0f} MiB"
        where = f"{row.device}; {row.commit}; {row.date}{_red(row)}"
        lines.append(f"| {row.section}: {row.case} | {row.provider} | {time} | {floor} | {memory} | {where} |")
    return "\n".join(lines) if len(lines) > 2 else "Nothing has been measured and committed yet."


def _red(row: Row) -> str:
    """What a row says of a gate that was red, although its own result was right."""
    return "; gate red" if row.gate == "red" else ""


def operations(rows: list[Row]) -> str:
    """Operations on a GPU beside the fastest rival with the same result; every rival's row is in the CSV."""
    lines = [
        "| operation and shape | ours (20% to 80%) | GB/s | of a copy | fastest rival | times ours | device, commit |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    by_case: dict[str, list[Row]] = {}
    for row in latest(rows).values():
        if row.section == "ops" and row.status == OK and row.ms == row.ms:
            by_case.setdefault(row.case, []).append(row)
    for case, group in by_case.items():
        ours = next((row for row in group if row.provider == "ours"), None)
        rivals = [row for row in group if not row.provider.startswith("ours")]
        if ours is None or not rivals:
            continue
        best = min(rivals, key=lambda row: row.ms)
        time = f"{1e3 * ours.ms:.1f} us ({1e3 * ours.ms_low:.1f} to {1e3 * ours.ms_high:.1f})"
        lines.append(
            f"| {case} | {time} | {ours.gb_per_s:.0f} | {ours.copy_share:.0%} | {best.provider} "
            f"| {best.ms / ours.ms:.2f} | {ours.device}; {ours.commit}{_red(ours)} |"
        )
    return "\n".join(lines) if len(lines) > 2 else "Nothing has been measured and committed yet."


def kernels(rows: list[Row]) -> str:
    """The C++ kernels beside the fastest form in torch of the same case; every rival's row is in the CSV."""
    by_case: dict[tuple[int, str], dict[str, list[Row]]] = {}
    for row in latest_by_device(rows):
        part = row.device.rpartition(", ")[0]
        by_case.setdefault((row.config["threads"], row.case), {}).setdefault(part, []).append(row)
    parts = list(dict.fromkeys(part for groups in by_case.values() for part in groups))
    lines = [
        "| threads | operation and shape | ours (20% to 80%) | GB/s | of the peak | fastest torch form | "
        f"{' | '.join(f'times ours, {part}' for part in parts)} |",
        f"| --- | --- | --- | --- | --- | --- |{' --- |' * len(parts)}",
    ]
    for (threads, case), groups in by_case.items():
        group = list(groups.values())[-1]
        ours = next(row for row in group if row.provider == "ours")
        time = f"{ours.ms:.3f} ms ({ours.ms_low:.3f} to {ours.ms_high:.3f})"
        share = share_of_peak(ours)
        peak = "" if math.isnan(share) else f"{share:.0%}"
        ratios = [f"{ratio_to_best(groups[part])[0]:.2f}" if part in groups else "" for part in parts]
        lines.append(
            f"| {threads} | {case} | {time} | {ours.gb_per_s:.0f} | {peak} | {ratio_to_best(group)[1]} | "
            f"{' | '.join(ratios)} |"
        )
    return "\n".join(lines) if len(lines) > 2 else "Nothing has been measured and committed yet."


def accuracy(rows: Sequence[dict[str, str]]) -> str:
    """Test accuracy with a bfloat16 base beside a float32 one, over seeds that differ in nothing else."""
    lines = [
        "| what | seeds | float32 base | bfloat16 base | difference (95% interval) | standard deviation over seeds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    by_case: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        by_case.setdefault((row["method"], row["rounds"]), []).append(row)
    for (method, rounds), group in by_case.items():
        if len(group) > 1:
            found = compare(group)
            lines.append(
                f"| demo, {method}, {rounds} rounds | {found.seeds} | {found.float32:.4f} | {found.bfloat16:.4f} | "
                f"{found.difference:+.4f} ({found.low:+.4f} to {found.high:+.4f}) | {found.spread:.4f} |"
            )
    return "\n".join(lines) if len(lines) > 2 else "Nothing has been measured and committed yet."


def modelled() -> str:
    """Numbers that were derived or counted without the hardware that they speak of."""
    lines = ["| what | number | how it was found |", "| --- | --- | --- |"]
    for row in read_table(DATA / "memory.csv"):
        what = f"step of {row['case']}, {row['provider']}: memory above the frozen model's"
        number = f"{row['extra_mib']} MiB (peak {row['extra_peak_mib']} MiB)"
        lines.append(f"| {what} | {number} | storages of tensors without data, counted while they live |")
    worst: dict[tuple[str, str], float] = {}
    for row in read_table(DATA / "emulator_counts.csv"):
        key = row["op"], row["part"]
        worst[key] = max(worst.get(key, 0.0), float(row["unique_to_allowed"]))
    for (op, part), ratio in worst.items():
        what = f"`{op}` on {part}: bytes moved over what its derivation allows"
        lines.append(f"| {what} | at most {ratio:.3f} | compiled PTX in an emulator, small shapes |")
    sampled: dict[str, list[float]] = {}
    for row in read_table(DATA / "emulator_samples.csv"):
        sampled.setdefault(row["op"], []).append(float(row["unique_to_allowed"]))
    for op, ratios in sampled.items():
        what = f"`{op}` on sm_90, {len(ratios)} shapes of whole layers: bytes moved over what its derivation allows"
        lines.append(f"| {what} | at most {max(ratios):.4f} | some programs of each grid in the emulator, scaled up |")
    for row in read_table(DATA / "bytes.csv"):
        if row["case"].startswith(("roberta-large q S32 T128 R8 bfloat16", "S32 P393216 norms given", "P393216 sgd")):
            size = int(row["floor_bytes"]) / 2**20
            lines.append(f"| `{row['op']}`, {row['case']}: least bytes | {size:.2f} MiB | byte function |")
    return "\n".join(lines)


def unknown(rows: list[Row]) -> str:
    """What no committed row answers."""
    answered = {row.section for row in rows if row.status == OK}
    lines = ["| what | how to find out |", "| --- | --- |"]
    for section, question in QUESTIONS.items():
        if section not in answered:
            lines.append(f"| {question} | `python benchmarks/gpu.py --section {section}` |")
    lines.append("| how far the emulator's model is from a real part | `python benchmarks/gpu.py --section counters` |")
    if "amx" not in {row["part"] for row in read_table(CHOICES)}:
        what = "whether the C++ kernels by AMX are faster than torch's products, which answer for bfloat16 till then"
        lines.append(f"| {what} | `python benchmarks/cpu_kernels.py --tune` |")
    return "\n".join(lines)


def tables() -> dict[str, str]:
    """Every table by its name."""
    on_gpu = read(DATA / "gpu.csv")
    timed = [*read(DATA / "cpu.csv"), *on_gpu]
    return {
        "summary": summary(timed),
        "measured": measured(timed),
        "operations": operations(on_gpu),
        "kernels": kernels(read(DATA / "cpu_kernels.csv")),
        "accuracy": accuracy(read_table(DATA / "number_format.csv")),
        "modelled": modelled(),
        "unknown": unknown(on_gpu),
    }


def fill(page: str, filled: dict[str, str]) -> str:
    """The page with these tables written between their marks."""
    for name, text in filled.items():
        start, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
        before, found, rest = page.partition(start)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"a page lacks the marks {start.strip()!r} and {end.strip()!r}")
        page = before + start + text + end + after
    return page


def main(arguments: list[str] | None = None) -> int:
    """Command line; 1 where a page is out of date and ``--check`` was given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page is out of date")
    options = parser.parse_args(arguments)
    filled = tables()
    pages = {PAGE: fill(PAGE.read_text(), filled), README: fill(README.read_text(), {"summary": filled["summary"]})}
    old = [path for path, text in pages.items() if path.read_text() != text]
    if options.check:
        names = ", ".join(path.name for path in old)
        print(f"out of date: {names}; python benchmarks/performance_page.py" if old else "up to date")
        return int(bool(old))
    for path in old:
        path.write_text(pages[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
