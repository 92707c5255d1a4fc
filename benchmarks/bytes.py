"""Bytes that every operation must move, for layers of real models, without a GPU: python benchmarks/bytes.py

Prints the byte table from the byte functions (``ffalora_kernels.traffic``), the adapter's traffic under each scheme
relative to ours, and beside them what the PTX emulator counted and what the compiler reported. Everything here is
modelled or counted; no number is a time.

    --write   also writes benchmarks/data/bytes.csv and bytes-roofline.png
    --check   fails where the committed table differs from the byte functions, or a count exceeds what the derivation
    allows
    --count   counts some of the emulator's rows afresh and compares ('all': every one of them, which takes an hour)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from csv_tables import read_table, write_table
from op_peers import LAYERS, layer_of
from plan import ARENAS, HEADS, SWEEP
from schemes import SCHEMES, Layer

from ffalora_kernels import traffic

DATA = Path(__file__).parent / "data"
TABLE, PICTURE = DATA / "bytes.csv", DATA / "bytes-roofline.png"
EMULATED, SAMPLED = DATA / "emulator_counts.csv", DATA / "emulator_samples.csv"
COMPILED = DATA / "compile_report.csv"
COLUMNS = ("op", "case", "floor_bytes", "flops", "flops_per_byte", "to_base_gemm")
#: As the vendor publishes them: GB/s of memory, TFLOP/s of dense bfloat16 products.
PARTS = {"A100 80 GB SXM": (2039, 312), "H100 SXM": (3350, 989)}
#: Kernels that serve an operation.
KERNELS = {
    "expand_": ("expand_kernel",),
    "backward": ("backward_kernel", "project_kernel", "sum_parts_kernel", "join_chunks_kernel"),
    "outer": ("outer_kernel",),
    "clip_reduce_": ("squares_kernel", "factors_kernel", "reduce_kernel"),
    "privatize_step_": ("privatize_step_kernel",),
    "linear_cross_entropy": ("weights_kernel", "softmax_gradient_kernel", "segments_kernel"),
}
#: Operations that arithmetic decides, not memory: two products of the vendor's with a kernel between them.
COMPUTE_BOUND = {"linear_cross_entropy"}
#: Public functions that are no operations of their own: a product of the vendor's and, in the forward pass, a kernel.
ENTRIES = ("adapted_product", "adapted_input_gradient")
#: Public functions that are torch's own product and no kernel of ours: what ``to_base_gemm`` divides by.
VENDOR = {"base_product", "base_input_gradient"}
#: Unique bytes over what the derivation allows (floor, partials) that a count may reach: sector rounding, atomics.
ALLOWED = 1.05
Row = dict[str, Any]


def op_rows() -> list[Row]:
    """The byte table: every operation on every shape."""
    rows = []
    for where, s, t, r, dtype in SWEEP:
        q = layer_of(where, s, t, r, dtype)
        case = f"{where} S{s} T{t} R{r} {str(dtype).removeprefix('torch.')}"
        base = (q.m * q.k + q.n * q.k + q.m * q.n) * q.e
        rows += [
            row("expand_", case, traffic.expand_floor(q.m, q.n, q.r, q.e), 2 * q.m * q.n * q.r, base),
            row("backward", case, traffic.backward_floor(q.m, q.n, q.r, q.s, q.e), 4 * q.m * q.n * q.r, base),
            row("outer", case, traffic.outer_floor(q.m, q.r, q.n, q.s, q.e), 2 * q.m * q.n * q.r, base),
        ]
        whole = (
            (traffic.adapted_product_floor, q.n * (q.k + q.r)),
            (traffic.adapted_input_gradient_floor, q.k * (q.n + q.r)),
        )
        rows += [
            row(entry, case, floor(q.m, q.n, q.k, q.r, q.e), 2 * q.m * flops, base)
            for entry, (floor, flops) in zip(ENTRIES, whole, strict=True)
        ]
    for s, p in ARENAS:
        for given in (True, False):
            case = f"S{s} P{p} {'norms given' if given else 'norms from the arena'}"
            rows.append(
                row("clip_reduce_", case, traffic.clip_reduce_floor(s, p, 1, 1, given), (2 if given else 4) * s * p)
            )
    for p in sorted({p for _, p in ARENAS}):
        for moments, optimizer in enumerate(("sgd", "momentum", "adamw")):
            floor = traffic.privatize_step_floor(1, p, moments)
            rows.append(row("privatize_step_", f"P{p} {optimizer}", floor, (4 + 5 * moments) * p))
    for m, d, v in HEADS:
        floor = traffic.linear_cross_entropy_floor(m, d, v, m // 512, 2)
        rows.append(row("linear_cross_entropy", f"M{m} D{d} V{v} bfloat16", floor, 4 * m * d * v))
    return rows


def row(op: str, case: str, floor: int, flops: int, base: int | None = None) -> Row:
    """One line; flops count products and sums of the formula, not the generator of the noise."""
    share = "" if base is None else round(floor / base, 4)
    return dict(zip(COLUMNS, (op, case, floor, flops, round(flops / floor, 3), share), strict=True))


def scheme_table(layers: dict[str, Layer]) -> str:
    """Bytes beside the base products of each way to train the adapter, relative to ours, forward and backward
    together.
    """
    chosen = "ours, expand_ and addmm_"
    lines = ["scheme".ljust(28) + "".join(name.rjust(18) for name in layers)]
    for name, scheme in SCHEMES.items():
        cells = []
        for q in layers.values():
            total, ours = (x.forward(q) + x.backward(q) for x in (scheme, SCHEMES[chosen]))
            cells.append(f"{total / 2**20:9.1f} {total / ours:5.2f}x")
        lines.append(f"{name} {'(private)' if scheme.private else ''}".ljust(28) + "".join(c.rjust(18) for c in cells))
    return "\n".join(lines)


def counted() -> dict[str, str]:
    """For each operation, what emulator and compiler say: worst ratio of unique bytes, registers, spills."""
    emulated, compiled = [*read_table(EMULATED), *read_table(SAMPLED)], read_table(COMPILED)
    found = {}
    for op, kernels in KERNELS.items():
        counts = [r for r in emulated if r["op"] == op]
        worst = max((float(r["unique_to_allowed"]) for r in counts), default=None)
        report = [r for r in compiled if r["kernel"] in kernels and r["arch"] == "sm_90"]
        half = [r for r in report if r["dtype"] != "float32"] or report
        parts = ["not counted yet" if worst is None else f"emulator: at most {worst:.3f} of what the derivation allows"]
        if half:
            most, spills = max(int(r["registers"]) for r in half), sum(int(r["spill_bytes"]) for r in half)
            parts.append(f"sm_90: {len(half)} launches, at most {most} registers, {spills} bytes spilled")
        found[op] = "; ".join(parts)
    return found


def problems() -> list[str]:
    """Differences between the committed table and the byte functions, and counts above what is allowed."""
    now = [{k: str(v) for k, v in r.items()} for r in op_rows()]
    committed = {(r["op"], r["case"]): r for r in read_table(TABLE)}
    found = [f"{r['op']} {r['case']}: not in {TABLE.name}" for r in now if (r["op"], r["case"]) not in committed]
    found += [
        f"{r['op']} {r['case']}: {TABLE.name} says {committed[key]}, the byte functions say {r}"
        for r in now
        if (key := (r["op"], r["case"])) in committed and committed[key] != r
    ]
    gone = set(committed) - {(r["op"], r["case"]) for r in now}
    found += [f"{' '.join(key)}: in {TABLE.name} but no longer measured" for key in sorted(gone)]
    floors = {(r["op"], r["case"]): r["floor_bytes"] for r in now}
    found += [
        f"{SAMPLED.name}: {r['op']} {r['case']} was counted against a floor of {r['floor_bytes']}, now {floor}"
        for r in read_table(SAMPLED)
        if (floor := floors.get((r["op"], r["case"]))) != r["floor_bytes"]
    ]
    return found + [
        f"emulator: {r['op']} {r.get('shape') or r['case']} on {r['part']}: {r['unique_to_allowed']} of what is allowed"
        for r in (*read_table(EMULATED), *read_table(SAMPLED))
        if float(r["unique_to_allowed"]) > ALLOWED
    ]


def draw(path: Path) -> None:
    """The operations at their floors under the published rooflines: all far left of the ridge, so bytes decide."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    reach = [2.0**i for i in range(-4, 12)]
    for part, (bandwidth, tflops) in PARTS.items():
        axes.loglog(reach, [min(1e3 * tflops, bandwidth * x) for x in reach], label=f"{part} (published)")
    bandwidth = min(part[0] for part in PARTS.values())
    for op in (op for op in (*KERNELS, *ENTRIES) if op not in COMPUTE_BOUND):
        at = [r["flops_per_byte"] for r in op_rows() if r["op"] == op]
        axes.plot(at, [bandwidth * x for x in at], "o", label=op, alpha=0.6)
    axes.set(
        xlabel="flops a byte, at the floor", ylabel="GFLOP/s attainable", title="Where the operations lie (modelled)"
    )
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)


def write() -> None:
    """Writes table and picture."""
    DATA.mkdir(exist_ok=True)
    write_table(TABLE, COLUMNS, op_rows())
    draw(PICTURE)


def main(arguments: list[str] | None = None) -> int:
    """Command line; 1 where something drifted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table and the picture")
    parser.add_argument("--check", action="store_true", help="fail on drift")
    parser.add_argument("--count", nargs="?", const="some", choices=("some", "all"), help="count afresh and compare")
    options = parser.parse_args(arguments)
    if options.write:
        write()
    remarks = counted()
    samples = {(r["op"], r["case"]): r["unique_to_allowed"] for r in read_table(SAMPLED)}
    for op in (*KERNELS, *ENTRIES):
        print(f"\n{op}   ({remarks.get(op, 'the vendor computes the base product')})")
        for r in op_rows():
            if r["op"] == op:
                share = f"{r['to_base_gemm']:7.3f} of the base product" if r["to_base_gemm"] != "" else ""
                size = f"{r['floor_bytes'] / 2**20:10.2f} MiB"
                ratio = samples.get((op, r["case"]))
                seen = f"   emulator, sampled: {ratio} of what is allowed" if ratio else ""
                print(f"  {r['case']:<46}{size} {r['flops_per_byte']:8.2f} flops a byte {share}{seen}")
    print("\nMiB beside the base products in bfloat16, forward and backward, and relative to ours")
    chosen = ("roberta-large q", "llama-7b q", "llama-7b up")
    print(scheme_table({name: layer_of(name, 32, 128, 8, torch.bfloat16) for name in chosen if name in LAYERS}))
    found = problems() if options.check else []
    if options.count:
        from recount import drifted

        found += drifted(everything=options.count == "all")
    print("\n".join(["", *found]))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
