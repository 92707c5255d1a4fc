"""Counts rows of the emulator's two tables afresh and says which of the committed ones drifted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import emulate
import sampled
from csv_tables import read_table

#: Columns that decide; the others follow from them.
DECISIVE = ("floor_bytes", "allowed_bytes", "unique_bytes")
#: Sampled cases that are counted again in seconds, one an operation.
QUICK_SAMPLES = {
    "backward": "roberta-large q S32 T128 R8 bfloat16",
    "expand_": "roberta-large q S32 T128 R8 bfloat16",
    "outer": "roberta-large q S32 T128 R8 bfloat16",
    "clip_reduce_": "S32 P393216 norms given",
    "privatize_step_": "P393216 sgd",
}
Key = tuple[str, ...]


def counts(everything: bool = False) -> dict[Key, Callable[[], dict]]:
    """Counts of whole grids by the key (op, shape, variant, part) of their committed row; a quick one an operation."""
    if everything:
        every = emulate.cases()
        return {(c.op, c.shape, c.variant, f"sm_{c.cap}"): lambda c=c: emulate.count(c) for c in every}
    quick = (
        emulate.backward(90, [128] * 2, 4096, 16, True, "B2 T128 N4096 R16"),
        emulate.expand(90, 256, 4096, 16),
        emulate.clip(90, 12, 8192, 3, True),
        emulate.privatize(90, 2, 8192, 0),
        emulate.outer(90, [128] * 4, 8, 1024),
        emulate.head_loss(90, 32, 16, 9000),
    )
    return {(c.op, c.shape, c.variant, f"sm_{c.cap}"): lambda c=c: emulate.count(c) for c in quick}


def samples(everything: bool = False) -> dict[Key, Callable[[], dict]]:
    """Sampled counts by the key (op, case, part) of their committed row; a quick one an operation."""
    return {
        (op, name, "sm_90"): lambda make=make: sampled.estimate(make())
        for op, name, make in sampled.cases()
        if everything or QUICK_SAMPLES.get(op) == name
    }


def drift(fresh: dict, key: Key, table: Path) -> str | None:
    """What the committed row of a fresh count says differently; None if they agree."""
    columns = ("op", "shape", "variant", "part") if table == emulate.CSV else ("op", "case", "part")
    committed = next((r for r in read_table(table) if tuple(r[c] for c in columns) == key), None)
    if committed is None:
        return f"{' '.join(key)}: no committed row in {table.name}"
    differ = {c: (committed[c], str(fresh[c])) for c in DECISIVE if committed[c] != str(fresh[c])}
    return f"{' '.join(key)}: committed and fresh {differ}" if differ else None


def drifted(everything: bool = False) -> list[str]:
    """Committed rows that a fresh count does not give again."""
    jobs = [(key, again, emulate.CSV) for key, again in counts(everything).items()]
    jobs += [(key, again, sampled.CSV) for key, again in samples(everything).items()]
    found = [text for key, again, table in jobs if (text := drift(again(), key, table))]
    print(f"\n{len(jobs)} counts made afresh, {len(found)} differ from the committed tables")
    return found
