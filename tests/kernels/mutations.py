"""Kernels broken on purpose, and the case that must fail for each: the tests of the tests.

A mutation replaces one piece of one file of ``ffalora_kernels/triton`` by another. ``INTERPRETED`` ones are run under
Triton's interpreter; ``EMULATED`` ones need the emulator: they write out of bounds, which would corrupt the process
that interprets them, or change what only compiled code shows.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import ffalora_kernels
from ffalora_kernels import triton as shipped


@dataclass(frozen=True)
class Mutation:
    """``old`` becomes ``new`` in ``file``; ``seen_by`` is the case that must fail, ``what`` says what was broken."""

    what: str
    file: str
    old: str
    new: str
    seen_by: str


INTERPRETED = [
    Mutation(
        "first token of a segment skipped",
        "backward",
        "first = start\n",
        "first = start + 1\n",
        "backward-plain",
    ),
    Mutation("scale of g lost", "backward", "acc = acc * scale", "acc = acc", "backward-plain"),
    Mutation(
        "scale of dh lost",
        "backward",
        'input_precision="ieee") * scale',
        'input_precision="ieee")',
        "backward-plain",
    ),
    Mutation("every segment uses client 0", "backward", "client + segment", "client + 0", "backward-three_clients"),
    Mutation("accumulation forgotten", "backward", "if ACCUMULATE:", "if False:", "backward-accumulate"),
    Mutation(
        "chunk one token too long",
        "backward",
        "first + CHUNK, end",
        "first + CHUNK + 1, end",
        "backward-long_segment",
    ),
    Mutation(
        "slots of chunks overlap",
        "backward",
        "start // CHUNK + segment + chunk",
        "start // CHUNK + chunk",
        "backward-long_segment_accumulate",
    ),
    Mutation("norm of other numbers", "backward", "wide * wide", "wide", "backward-plain"),
    Mutation("norm in float32", "backward", "0.0).to(tl.float64)", "0.0)", "backward-plain"),
    Mutation(
        "norm before the scale",
        "backward",
        "wide = tl.where(tile_live, acc,",
        "wide = tl.where(tile_live, acc / scale,",
        "backward-plain",
    ),
    Mutation("last block of dh lost", "join", "k + part < dh_parts", "k + part < dh_parts - 1", "backward-ragged_bf16"),
    Mutation(
        "last block of norms lost",
        "join",
        "k + part < n_square_parts",
        "k + part < n_square_parts - 1",
        "backward-ragged_bf16",
    ),
    Mutation(
        "last chunk lost",
        "join",
        "tl.cdiv(end - start, CHUNK)",
        "(end - start) // CHUNK",
        "backward-long_segment",
    ),
    Mutation("scale lost at the second read", "project", "acc * scale", "acc", "backward-rank_128_reads_dy_twice"),
    Mutation("scale lost", "expand", " * scale + y_tile", " + y_tile", "expand-plain"),
    Mutation("y overwritten", "expand", "* scale + y_tile", "* scale + 0 * y_tile", "expand-plain"),
    Mutation("every segment uses client 0", "expand", "client + segment", "client + 0", "expand-fp16_three_clients"),
    Mutation("bias in the wrong column", "outer", "(k == 0)", "(k == 1)", "outer-bias"),
    Mutation("scale lost", "outer", "acc = acc * scale", "acc = acc", "outer-plain"),
    Mutation("margin of the norm lost", "clip", "norm * MARGIN", "norm", "clip-flat"),
    Mutation("broken rows kept", "clip", "broken == 0", "broken >= 0", "clip-not_finite"),
    Mutation("broken only where their group is", "clip", "broken == 0", "norm < 1e300", "clip-not_finite_per_layer"),
    Mutation(
        "rows of all clients summed",
        "clip",
        "if ORDERED:\n        first",
        "if False:\n        first",
        "clip-per_layer",
    ),
    Mutation(
        "order of clients ignored",
        "clip",
        "row = tl.load(order + i, mask=i < last, other=0)",
        "row = row",
        "clip-clients_out_of_order",
    ),
    Mutation(
        "group bound off by one",
        "clip",
        "column >= tl.load(group_columns + k)",
        "column > tl.load(group_columns + k)",
        "clip-per_layer_given_norms",
    ),
    Mutation("squares in float32", "clip", "x, 0.0).to(tl.float64)", "x, 0.0)", "clip-huge"),
    Mutation("total overwritten", "clip", "tl.load(at, mask=in_row, other=0.0) + acc", "acc", "clip-flat"),
    Mutation("lanes swapped", "optim", "lane % 2 == 0", "lane % 2 == 1", "privatize-sgd"),
    Mutation(
        "noise by row, not by client id",
        "optim",
        "who = tl.load(client_id + owner)",
        "who = owner",
        "privatize-sgd",
    ),
    Mutation(
        "noise equal at every step",
        "optim",
        "when = tl.load(step + owner)",
        "when = owner * 0",
        "privatize-sgd",
    ),
    Mutation("noise by column, not by parameter", "optim", "tl.maximum(p, 0)", "column", "privatize-padding"),
    Mutation("noise not divided by the batch", "optim", "grad = grad / expected", "grad = grad", "privatize-sgd"),
    Mutation("second key word lost", "optim", "key_high.to(tl.uint32),", "key_low.to(tl.uint32),", "privatize-sgd"),
    Mutation("DP bias correction lost", "optim", "if DP_CORRECTION:", "if False:", "privatize-adamw_dp"),
    Mutation("proximal term pushes away", "optim", "theta - centre", "centre - theta", "privatize-proximal"),
    Mutation(
        "tokens of dy in 32 bits",
        "backward",
        "tl.cast(t, tl.int64)",
        "tl.cast(t, tl.int32)",
        "far_activations",
    ),
    Mutation(
        "row of the arena in 32 bits",
        "backward",
        "g += segment.to(tl.int64) * g_units",
        "g += segment * g_units",
        "far_activations",
    ),
    Mutation("tokens of y in 32 bits", "expand", "row = first.to(tl.int64)", "row = first", "far_activations"),
    Mutation(
        "pitch of the partial dh in 32 bits",
        "backward",
        "nb.to(tl.int64) * dh_units",
        "nb * dh_units",
        "far_partial_sums",
    ),
    Mutation(
        "pitch of the partial dh in 32 bits when summed",
        "join",
        "dh_units.to(tl.int64) * PART_UNIT",
        "dh_units * PART_UNIT",
        "far_sums",
    ),
    Mutation(
        "room of the partial dh not rounded up", "join", "cdiv(size, PART_UNIT) * PART_UNIT", "size", "padded_sums"
    ),
    Mutation(
        "atomics although deterministic, for many blocks",
        "backward",
        "if not deterministic:",
        "if not deterministic or nb > 3:",
        "deterministic_sums",
    ),
    Mutation(
        "current device left as it is",
        "launch",
        'if first.device.type != "cuda" or first.device.index == torch.cuda.current_device():',
        "if True:",
        "current_device",
    ),
    Mutation(
        "chunks read from another segment's slots",
        "join",
        "start // CHUNK + segment + chunk",
        "start // CHUNK + chunk",
        "backward-long_segment_accumulate",
    ),
    Mutation(
        "every segment uses client 0",
        "project",
        "client + segment",
        "client + 0",
        "backward-rank_128_reads_dy_twice",
    ),
    Mutation("accumulation forgotten", "outer", "if ACCUMULATE:", "if False:", "outer-accumulate"),
    Mutation("row of the arena in 32 bits when summed", "clip", "row = i.to(tl.int64)", "row = i", "far_clip"),
    Mutation(
        "row of the arena in 32 bits when squared",
        "clip",
        "row = (tl.program_id(0) // PARTS // G).to(tl.int64)",
        "row = tl.program_id(0) // PARTS // G",
        "far_clip",
    ),
    Mutation(
        "only infinity is broken", "clip", '(~(norm < float("inf")))', '(norm == float("inf"))', "clip-not_finite"
    ),
    Mutation("gamma of automatic clipping lost", "clip", "(widened + GAMMA)", "widened", "clip-automatic"),
    Mutation(
        "row of the state in 32 bits",
        "optim",
        "(tl.program_id(0) // n_blocks).to(tl.int64)",
        "tl.program_id(0) // n_blocks",
        "far_state",
    ),
    Mutation(
        "noise of the expected batch's size",
        "optim",
        "std = tl.load(noise_std + owner)",
        "std = tl.load(denominator + owner)",
        "privatize-four_clients",
    ),
    Mutation("weight decay lost", "optim", " + WEIGHT_DECAY * theta", "", "privatize-without_noise"),
    Mutation(
        "second moment corrected as the first",
        "optim",
        "tl.load(correction2 + owner)",
        "tl.load(correction1 + owner)",
        "privatize-adamw",
    ),
    Mutation("one-hot lost", "cross_entropy", " - (column == target).to(tl.float32)", "", "linear_cross_entropy-plain"),
    Mutation(
        "ignored tokens counted in the mean",
        "cross_entropy",
        "(live & (target != ignore_index))",
        "live",
        "linear_cross_entropy-plain",
    ),
    Mutation("bias lost", "cross_entropy", "if BIASED:", "if False:", "linear_cross_entropy-fp16_with_bias"),
    Mutation(
        "columns beyond the vocabulary counted",
        "cross_entropy",
        'tl.where(column < n, z, float("-inf"))',
        "z",
        "linear_cross_entropy-plain",
    ),
    Mutation(
        "sums of earlier blocks not lowered",
        "cross_entropy",
        "sums * tl.exp(peaks - shift)",
        "sums",
        "linear_cross_entropy-bf16_of_three_chunks_of_vocabulary",
    ),
    Mutation(
        "slope of the cap lost",
        "cross_entropy",
        "slope *= tl.where(column < n, 1.0 - (z / softcap) * (z / softcap), 0.0)",
        "slope *= 1.0",
        "linear_cross_entropy-capped",
    ),
    Mutation(
        "gain of float16 kept", "cross_entropy", "weights[rows] / gain", "weights[rows]", "linear_cross_entropy-sharp"
    ),
    Mutation(
        "a target that does not exist is taken for the first",
        "cross_entropy",
        'tl.where(known, logarithm, float("nan"))',
        "logarithm",
        "linear_cross_entropy-unknown_targets",
    ),
    Mutation(
        "targets of the first chunk for all", "cross_entropy", "targets + token", "targets + row", "chunks_of_tokens"
    ),
]
EMULATED = [
    Mutation(
        "segment bound one token too far",
        "backward",
        "(t + t_in < hi)",
        "(t + t_in < hi + 1)",
        "backward-ragged_bf16",
    ),
    Mutation(
        "store mask of out-features",
        "backward",
        "n_live = n < n_size",
        "n_live = n < n_size + 1",
        "backward-ragged_bf16",
    ),
    Mutation(
        "segment bound at the second read",
        "project",
        "first + t_in < end",
        "first + t_in < end + 1",
        "backward-rank_128_reads_dy_twice",
    ),
    Mutation("segment bound", "expand", "first + t_in < end", "first + t_in < end + 1", "expand-fp16_three_clients"),
    Mutation("mask of out-features", "expand", "n_in < n_units", "n_in <= n_units", "expand-strided_rows"),
    Mutation("segment bound", "outer", "(t + t_in < hi)", "(t + t_in < hi + 1)", "outer-gradient_of_a"),
    Mutation("mask of the wide side", "outer", "k_live = k < k_size", "k_live = k < k_size + 1", "outer-plain"),
    Mutation("NaN times zero", "clip", "factor > 0", "factor >= 0", "clip-not_finite"),
    Mutation("padding moves", "optim", "live = p >= 0", "live = p >= -1", "privatize-padding"),
    Mutation(
        "mask of rank on h: reads past its end",
        "backward",
        "mask=live & (r < R)[None, :], other=0.0)  # [BLOCK_T, BLOCK_R]",
        "mask=live, other=0.0)",
        "backward-three_clients",
    ),
    Mutation(
        "mask of out-features on dy: reads past its end",
        "backward",
        "mask=live & n_live[None, :], other",
        "mask=live, other",
        "backward-ragged_bf16",
    ),
    Mutation(
        "TF32 instead of fp32",
        "backward",
        'h_tile, acc, input_precision="ieee"',
        "h_tile, acc",
        "backward-plain",
    ),
    Mutation(
        "TF32 instead of fp32",
        "outer",
        'q_tile, acc, input_precision="ieee"',
        "q_tile, acc",
        "outer-plain",
    ),
    Mutation(
        "false promise of 16 bytes",
        "launch",
        "return stride // unit, unit",
        "return stride // unit, 16",
        "backward-strided_rows",
    ),
    Mutation(
        "mask of a row's logits: reads past its end",
        "cross_entropy",
        "tl.load(products + column, mask=column < pitch, other=0.0)",
        "tl.load(products + column)",
        "linear_cross_entropy-plain",
    ),
    Mutation(
        "mask of a row's gradient: writes past its end",
        "cross_entropy",
        "gradient.dtype.element_ty), mask=column < pitch)",
        "gradient.dtype.element_ty))",
        "linear_cross_entropy-plain",
    ),
    Mutation("an argument that Triton keeps for itself", "optim", "tag", "stream", "privatize-sgd"),
    Mutation("two programs write one g", "backward", "g += segment.to", "g += (segment // 2).to", "backward-plain"),
]


@contextmanager
def mutated(mutation: Mutation) -> Iterator[None]:
    """Within the block the triton backend is a copy of the package with the mutation in it."""
    source = Path(shipped.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "triton")
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        file = copy / f"{mutation.file}.py"
        text = file.read_text()
        if mutation.old not in text:
            raise ValueError(f"{mutation.file}.py does not contain {mutation.old!r}: the mutation is out of date")
        file.write_text(text.replace(mutation.old, mutation.new))
        name = f"{ffalora_kernels.__name__}.mutant"
        spec = importlib.util.spec_from_file_location(
            name, copy / "__init__.py", submodule_search_locations=[str(copy)]
        )
        package = importlib.util.module_from_spec(spec)
        sys.modules[name] = package
        try:
            spec.loader.exec_module(package)
            with mock.patch.dict(shipped.IMPLEMENTATIONS, package.IMPLEMENTATIONS):
                yield
        finally:
            for module in [m for m in sys.modules if m == name or m.startswith(name + ".")]:
                del sys.modules[module]


def table() -> str:
    """What was broken and which case sees it, as a Markdown table."""
    rows = [
        f"| {m.file} | {m.what} | {m.seen_by} | {how} |"
        for how, some in (("T1", INTERPRETED), ("T3", EMULATED))
        for m in some
    ]
    return "\n".join(["| file | broken | seen by | tier |", "| --- | --- | --- | --- |", *rows])


if __name__ == "__main__":
    print(table())
