"""The short table at the end of a benchmark: ours beside the best and the usual rival of each case."""

from __future__ import annotations

from record import OK, Row

HEADER = ("case", "ours ms", "GB/s", "of copy", "best rival", "its ms", "speed-up", "peak MiB", "its peak", "error")


def short_table(rows: list[Row], sections: tuple[str, ...] = ("ops", "layer", "steps", "memory")) -> str:
    """One line a case, as text; '' where nothing was measured."""
    lines = []
    for section in sections:
        by_case: dict[str, list[Row]] = {}
        for row in rows:
            if row.section == section:
                by_case.setdefault(row.case, []).append(row)
        lines += [line(case, providers) for case, providers in by_case.items()]
    if not lines:
        return ""
    table = [HEADER, *lines]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEADER))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table)


def line(case: str, rows: list[Row]) -> tuple[str, ...]:
    """The cells of one case. The best rival computes the same: it clips where ours does, and it is not the floor."""
    mine = next((row for row in rows if row.provider == "ours"), None)
    if mine is None:
        return case, "not measured", *[""] * (len(HEADER) - 2)
    if mine.status != OK:
        return case, mine.status, *[""] * (len(HEADER) - 2)
    rivals = [r for r in rows if r.status == OK and is_rival(r) and r.ms == r.ms]
    best = min(rivals, key=lambda r: r.ms, default=None)
    return (
        case, f"{mine.ms:.3f}", number(mine.gb_per_s, ".0f"), number(100 * mine.copy_share, ".0f", "%"),
        best.provider if best else "", f"{best.ms:.3f}" if best else "", f"{best.ms / mine.ms:.2f}x" if best else "",
        number(mine.peak_mib, ".0f"), number(best.peak_mib, ".0f") if best else "", number(mine.error, ".0e"),
    )  # fmt: skip


def is_rival(row: Row) -> bool:
    """Whether a provider is somebody else's way to the same result."""
    if row.section in ("layer", "steps", "memory"):
        return row.provider.startswith(("opacus", "opake"))
    return not row.provider.startswith("ours") and row.provider != "Opacus ghost"


def number(value: float, form: str, unit: str = "") -> str:
    """A formatted number, '' for NaN."""
    return "" if value != value else f"{value:{form}}{unit}"
